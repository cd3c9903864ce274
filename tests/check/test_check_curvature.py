"""The independent checker on second-order certificates: bounds hold, forgeries are refused."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.check_curvature import SAMPLES, certify, write
from helpers.smooth_networks import COVERED, NETWORKS, convolutional, gradient, points, steps_from
from safetensors.numpy import load_file
from torch import nn

from benchmarks.soundness.forgeries import Folder, build
from robustcert.certifiers import CombinedCertifier, LipschitzCertifier
from robustcert.certifiers.second_order.curvature import second_order_distance
from robustcert.check import UnreadableError, activation_curvature, check, curvature
from robustcert.check.arithmetic import FLOAT64
from robustcert.check.fixed_point import to_integers
from robustcert.check.forward.exact import Exact, adjoint_exactly, trace_exactly
from robustcert.check.forward.floating import trace
from robustcert.check.forward.linear import adjoint, linear
from robustcert.check.network.operation import Operation
from robustcert.check.network.reading import read_network
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork


@pytest.mark.parametrize("arithmetic", ["float64", "float32"])
@pytest.mark.parametrize("name", NETWORKS)
def test_second_order_certificates_verify(name: str, arithmetic: Any, tmp_path: Path) -> None:
    folder = certify(tmp_path / "folder", NETWORKS[name](), arithmetic)
    assert Folder(folder).claim["claim"]["proof"] == "second-order"
    report = check(folder, exact=4, seed=0)
    assert report.mismatches == []
    assert report.verified
    # Without the gradients they do not follow.
    forged = Folder(folder)
    forged.claim["claim"]["proof"] = "lipschitz"
    forged.save()
    assert any("exceeds what the margin proves" in line for line in check(folder).mismatches)


# The bounds


def read(net: PlainNetwork, folder: Path) -> tuple[tuple[Operation, ...], dict[str, float]]:
    x = torch.zeros(1, *net.input_shape)
    certifier = LipschitzCertifier()
    write(folder, net, certifier.certify(net, x), x, certifier)
    claim = json.loads((folder / "certificate.json").read_text())
    operations = read_network(claim["network"], load_file(folder / "network.safetensors"))
    bounds = zip(operations, claim["bounds"], strict=True)
    return operations, {op.path: float.fromhex(entry["bound"]) for op, entry in bounds}


def holds(net: PlainNetwork, folder: Path, count: int = 300) -> bool:
    """Whether gradients at random points change no more than they may."""
    operations, norms = read(net, folder)
    x = points(net, count)
    states = trace(operations, x.numpy(), norms, [FLOAT64])
    direction = np.eye(3)[np.zeros(count, int)] - np.eye(3)[np.ones(count, int)]
    sizes = (1e-3, 0.03, 0.1, 0.3, 1.0, 3.0)
    ends = np.array(sizes)[:, None] * np.ones(count)
    found = curvature.gradients(operations, states, norms, np.arange(count), direction, ends)
    here = gradient(net, x, (0, 1))
    good = bool((here.norm(dim=1).numpy() <= found.norm).all())
    for k, turn in enumerate(found.turns):
        for size in (0.3, 1.0):
            y = x + steps_from(x, torch.from_numpy(ends[k] * size), seed=k)
            change = (gradient(net, y, (0, 1)) - here).norm(dim=1).numpy()
            good &= bool((change <= turn * ends[k] * size + 1e-9).all())
    return good


def tiny(name: str) -> PlainNetwork:
    """Two features only, where little is lost: the bounds are almost attained."""
    torch.manual_seed(0)
    features = getattr(COVERED[name](2), "out_features", 2)
    net = nn.Sequential(nn.Linear(2, 2), COVERED[name](2), nn.Linear(features, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
        net[0].bias.fill_(0.01)
    return fold_network(net, (2,))


@pytest.mark.parametrize("name", [*NETWORKS, *(f"tiny {name}" for name in COVERED)])
def test_gradients_stay_within_their_bounds(name: str, tmp_path: Path) -> None:
    assert holds(network(name), tmp_path / "folder")


def network(name: str) -> PlainNetwork:
    return tiny(name.removeprefix("tiny ")) if name.startswith("tiny") else NETWORKS[name]()


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_bounds_are_those_of_float64(name: str, tmp_path: Path) -> None:
    net = NETWORKS[name]()
    operations, norms = read(net, tmp_path / "folder")
    x = points(net, 3)
    ends = np.array([[1e-3], [0.1], [1.0]])
    states = trace(operations, x.numpy(), norms, [FLOAT64])
    exact = trace_exactly(operations, x.numpy(), norms)
    direction = np.array([0.0, -1.0, 1.0])
    truth = gradient(net, x, (2, 1)).norm(dim=1)
    for row in range(3):
        near = curvature.gradients(
            operations, states, norms, np.array([row]), direction[None], ends
        )
        found = curvature.gradients_exactly(operations, exact, norms, row, direction, ends[:, 0])
        assert float(found.norm[0]) == pytest.approx(float(truth[row]), rel=1e-6)
        # Float64 pays for its rounding.
        for theirs, ours in ((found.norm, near.norm), (found.turns, near.turns)):
            assert (theirs <= ours * (1 + 1e-6)).all()
            np.testing.assert_allclose(theirs, ours, rtol=1e-5)


def test_the_fall_undoes_the_distance() -> None:
    generator = np.random.default_rng(0)
    norm, extra, turn, gap = generator.uniform(0.1, 2, (4, 200))
    constant = norm + extra
    ends = np.stack(
        [0 * gap, second_order_distance(*map(torch.tensor, (gap, norm, constant, turn)))]
    )
    found = curvature.Gradient(norm, np.stack([turn, turn]))
    for drift in (0.0, 0.3):
        fall = curvature.fall(found, ends, constant, drift) - drift * ends[-1]
        np.testing.assert_allclose(fall, gap, rtol=1e-6)
        assert (fall >= gap * (1 - 1e-12)).all()


@pytest.mark.parametrize("place", [0, 2])
def test_the_transpose_of_a_convolution(place: int, tmp_path: Path) -> None:
    operations, _ = read(convolutional(), tmp_path / "folder")
    operation = operations[place]
    weight = operation.wide("weight")
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, *operation.input_shape))
    u = generator.standard_normal((2, *operation.output_shape))
    back = adjoint(operation, u, weight)
    forth = (linear(operation, x, weight) * u).sum()
    assert (x * back).sum() == pytest.approx(forth, rel=1e-12)
    values, places = adjoint_exactly(operation, Exact(*to_integers(u), np.zeros(2)))
    found = np.array([float(Fraction(v, 1 << places)) for v in values.ravel()])
    np.testing.assert_allclose(found, back.ravel(), rtol=0, atol=1e-12)


# Planted faults


def changed(name: str, **parts: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(patch: pytest.MonkeyPatch) -> None:
        bend = activation_curvature.CURVATURES[name]
        new = {key: make(getattr(bend, key)) for key, make in parts.items()}
        patch.setitem(activation_curvature.CURVATURES, name, replace(bend, **new))

    return plant


def put(owner: Any, name: str, new: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(owner, name, new)


def half(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: function(*arguments) / 2


def at_once(chord: Callable[..., Any]) -> Callable[..., Any]:
    """The steepness at the sample in place of that of chords."""
    return lambda m, z, c, doubt, d: chord(m, z, c, doubt, 0 * d + 1e-6)


FAULTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "chords of half the slope": ("tiny softplus", changed("softplus", chord=half)),
    "the steepness at the sample": ("smooth_abs", changed("smooth_abs", chord=at_once)),
    "half of a pair's share": ("smooth_maxmin", changed("smooth_maxmin", share=half)),
    "half of what a mirror turns": (
        "tiny smooth_householder",
        changed("smooth_householder", share=half),
    ),
    "corners exchanged": (
        "smooth_n",
        changed("smooth_n", pull=lambda f: lambda m, z, u, c: f(m, z, u, (c[1], c[0], c[2]))),
    ),
    "a Jacobian left out": (
        "tanh",
        changed("tanh", pull=lambda f: lambda m, z, u, c: tuple(part / 2 for part in u)),
    ),
    "lengths without their radius": (
        "tiny norm_pair",
        changed("norm_pair", chord=lambda f: lambda m, z, c, doubt, d: 0.5 / c[0] + 0 * z[0]),
    ),
    "no padding in the transpose": (
        "convolutional",
        put(curvature, "adjoint", lambda op, u, w: np.roll(adjoint(op, u, w), 1, -1)),
    ),
    "nothing before an activation": ("free tanh", put(curvature, "SLACK", 0.7)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kind, plant = FAULTS[name]
    plant(monkeypatch)
    assert not holds(network(kind), tmp_path / "folder")


# Forgeries


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("curved")
    kinds = ("tanh", "free norm_pair", "convolutional")
    return {kind: certify(root / kind, NETWORKS[kind]()) for kind in kinds}


def copied(path: Path, target: Path) -> Folder:
    target.mkdir()
    for file in path.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return Folder(target)


@pytest.mark.parametrize("exact", [0, SAMPLES])
@pytest.mark.parametrize("factor", [1.01, 1.5, 1e6])
@pytest.mark.parametrize("kind", ["tanh", "free norm_pair", "convolutional"])
def test_radii_that_are_too_large_are_refused(
    honest: dict[str, Path], kind: str, factor: float, exact: int, tmp_path: Path
) -> None:
    folder = copied(honest[kind], tmp_path / "forged")
    radii = [float.fromhex(row[6]) for row in folder.rows]
    for row, radius in enumerate(radii):
        folder.set_radius(row, radius * factor)
    folder.recount()
    folder.save()
    lines = check(folder.path, exact=exact, seed=0).mismatches
    certified = sum(radius > 0 for radius in radii)
    assert certified > SAMPLES // 2
    assert len({line.split(":")[0] for line in lines}) == certified
    # One of them is enough.
    for row, radius in enumerate(radii):
        folder.set_radius(row, radius * (factor if row == 3 else 1))
    folder.recount()
    folder.save()
    lines = check(folder.path, exact=exact, seed=0).mismatches
    assert {line.split(":")[0] for line in lines} == {"radii.csv line 5"}


def test_an_infinite_radius_is_refused(honest: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(honest["tanh"], tmp_path / "forged")
    folder.rows[2][4:7] = ["certified", "inf", "inf"]
    folder.recount()
    folder.save()
    assert check(folder.path).mismatches


def corruptions(folder: Folder) -> dict[str, Callable[[], None]]:
    claim = folder.claim

    def scale(key: str, factor: float) -> None:
        folder.tensors[key] = np.asarray(folder.tensors[key] * factor, np.float32)

    def lower(place: int) -> None:
        bound = claim["bounds"][place]
        bound["bound"] = (float.fromhex(bound["bound"]) * (1 - 1e-6)).hex()

    def table(factor: float) -> None:
        rows = [[(float.fromhex(k) * factor).hex() for k in r] for r in claim["pairwise"]]
        claim["pairwise"] = rows

    temperatures = [key for key in folder.tensors if key.endswith("temperature")]
    weights = [key for key in folder.tensors if key.endswith("weight")]
    return {
        **{f"bound {k}": (lambda k=k: lower(k)) for k in range(len(claim["bounds"]))},
        **{f"{key} scaled": (lambda key=key: scale(key, 0.9)) for key in (*temperatures, *weights)},
        "table": lambda: table(1 - 1e-6),
        "half the table": lambda: table(0.5),
    }


@pytest.mark.parametrize("kind", ["tanh", "free norm_pair", "convolutional"])
def test_what_gradients_rest_on_cannot_be_changed(
    honest: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    names = list(corruptions(Folder(honest[kind])))
    assert len(names) > 8
    for k, name in enumerate(names):
        folder = copied(honest[kind], tmp_path / str(k))
        corruptions(folder)[name]()
        folder.save()
        try:
            lines = check(folder.path, exact=2, seed=0).mismatches
        except UnreadableError as error:
            lines = [str(error)]
        assert lines, name


def test_a_sharper_network_does_not_have_the_radii_of_a_smooth_one(tmp_path: Path) -> None:
    # Everything is as the sharp network's certifier wrote it, but for the radii's curvature.
    net, x = NETWORKS["free softplus"](), torch.rand(SAMPLES, 3)
    operations = list(net.operations)
    for k, operation in enumerate(operations):
        if operation.kind == "activation":
            tau = operation.constants["temperature"] / 8
            operations[k] = replace(
                operation,
                constants={"temperature": tau},
                claimed=None,
                jacobian_lipschitz=0.25 / float(tau.min()),
            )
    sharp = PlainNetwork(tuple(operations), net.input_shape)
    certifier = CombinedCertifier()
    truth = certifier.certify(sharp, x)
    assert check(write(tmp_path / "true", sharp, truth, x, certifier)).verified
    gain = certifier.certify(net, x).radius / LipschitzCertifier().certify(net, x).radius
    wrong = LipschitzCertifier().certify(sharp, x).radius * gain.nan_to_num(1.0) * 1.5
    larger = wrong > truth.radius * 1.01
    assert larger.any()
    forged = replace(truth, radius=torch.where(larger, wrong, truth.radius))
    report = check(write(tmp_path / "false", sharp, forged, x, certifier))
    assert len({line.split(":")[0] for line in report.mismatches}) == int(larger.sum())


def test_gradients_need_a_smooth_network(tmp_path: Path) -> None:
    # Where no gradient is used, the claim is the usual one.
    x = torch.rand(SAMPLES, 1, 4, 4)
    for kind in ("relu", "residual", "Householder"):
        net, certifier = build(kind), CombinedCertifier()
        path = write(tmp_path / kind, net, certifier.certify(net, x), x, certifier)
        assert check(path).verified
        forged = Folder(path)
        assert forged.claim["claim"]["proof"] == "lipschitz"
        forged.claim["claim"]["proof"] = "second-order"
        forged.save()
        report = check(path)
        assert not report.verified
        assert report.uncovered[0].startswith("second-order radii through operation")
        forged.claim["claim"]["proof"] = "none"
        forged.save()
        with pytest.raises(UnreadableError, match="proof"):
            check(path)


def test_forms_that_are_not_finite_prove_nothing() -> None:
    found = curvature.Gradient(np.array([1.0, 1.0]), np.array([[math.nan, math.inf]]))
    fall = curvature.fall(found, np.array([[1.0, 1.0]]), np.array([2.0, 2.0]), 0.0)
    assert not (fall < 2).any()
