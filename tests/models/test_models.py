"""Every model of conf/model with every layer and activation is the network that is certified."""

import inspect
import math
from functools import partial
from typing import Any

import pytest
import torch
from helpers.configs import (
    SIGNALS,
    build,
    build_model,
    crossed,
    input_shape,
    layered_models,
    names,
    read,
)
from torch import Tensor, nn

from robustcert.activations import GroupSort, NormPair, SinCos
from robustcert.errors import UnsoundNetworkError
from robustcert.layers import UnconstrainedConv2d, UnconstrainedLinear
from robustcert.lipschitz import lipschitz_bound, lipschitz_estimate, pairwise_lipschitz_estimate
from robustcert.margins import row_distances
from robustcert.models import MLP, ConvNet, Head, LayerFamily, MeanPool, Normalize
from robustcert.models.scores import training_scores
from robustcert.network.agreement import require_agreement
from robustcert.network.fold import fold_network
from robustcert.network.linear import Convolution, Dense
from robustcert.network.network import PlainNetwork, pairwise_bound

MODELS = layered_models()
SHAPE = (2, 8, 8)
FREE = LayerFamily(dense=UnconstrainedLinear, conv=UnconstrainedConv2d)
MAXMIN = partial(GroupSort, group_size=2)

Model = Any


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def perturb(model: Model, scale: float = 0.3) -> Model:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn_like(parameter)
    return model


def inputs(model: str) -> Tensor:
    """Images, or their numbers as signals."""
    return images().view(-1, *input_shape(model))


def images() -> Tensor:
    """Random images, constant ones, and single pixels in the corners and on the edges."""
    pixels = torch.zeros(6, *SHAPE)
    for k, (i, j) in enumerate([(0, 0), (0, 7), (7, 0), (7, 7), (0, 4), (4, 7)]):
        pixels[k, k % 2, i, j] = 1
    constants = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, *SHAPE)
    return torch.cat([torch.rand(12, *SHAPE), pixels, constants])


def agree(network: PlainNetwork, model: Model, x: Tensor, tolerance: float) -> None:
    expected = model(x).detach()
    size = expected.abs().max().item()
    torch.testing.assert_close(network(x), expected, rtol=tolerance, atol=tolerance * size)


def slopes(network: PlainNetwork, x: Tensor, y: Tensor) -> Tensor:
    """Differences of differences of logits over distances, shape ``(C, C)``, the largest."""
    moved = network(x) - network(y)
    distance = (x - y).flatten(1).norm(dim=1)
    return ((moved[:, :, None] - moved[:, None]).abs() / distance[:, None, None]).amax(0)


def steepest(network: PlainNetwork, x: Tensor) -> Tensor:
    """Norms of the gradients of differences of logits, shape ``(C, C)``, the largest."""
    x = x.clone().requires_grad_()
    logits = network(x)
    rows = [torch.autograd.grad(f.sum(), x, retain_graph=True)[0] for f in logits.unbind(1)]
    jacobian = torch.stack(rows, 1).flatten(2)
    return (jacobian[:, :, None] - jacobian[:, None]).norm(dim=3).amax(0)


@pytest.mark.parametrize(("name", "layer", "activation"), crossed("model", "layer", "activation"))
def test_the_plain_network_is_the_model_and_keeps_its_bound(
    name: str, layer: str, activation: str
) -> None:
    model = perturb(build_model(name, layer, activation)).eval()
    x, shape = inputs(name), input_shape(name)
    network = fold_network(model, shape)
    assert network.dtype == torch.float32
    assert network.head is not None
    agree(network, model, x, 1e-5)
    require_agreement(model, network, x)

    pairwise = pairwise_bound(network)
    x = x.double()
    near = x + 1e-3 * torch.randn_like(x)
    for y in (near, x.roll(1, 0), x + torch.randn_like(x)):
        assert (slopes(network, x, y) <= pairwise + 1e-9).all()
    assert (steepest(network, x) <= pairwise * (1 + 1e-9)).all()

    model.double()
    wide = fold_network(model, shape)
    assert wide.dtype == torch.float64
    agree(wide, model, x, 1e-12)


@pytest.mark.parametrize("name", sorted({*names("model")} - {*MODELS}))
def test_the_plain_network_is_the_model_of_distances(name: str) -> None:
    sizes: dict[str, Any] = {"input_shape": SHAPE, "num_classes": 3}
    deep = "width" in read("model", name)
    model = build_model(name, "aol", "smooth", rank=3) if deep else build("model", name, **sizes)
    perturb(model).eval()
    x = images()
    scores = training_scores(model, x)
    assert torch.equal(scores.pairwise, 1 - torch.eye(3))
    target = torch.arange(len(x)) % 3
    assert torch.equal(scores.logits(target), model.distance_logits(x, target))
    agree(fold_network(model, SHAPE), model, x, 1e-5)
    require_agreement(model, fold_network(model, SHAPE), x)
    agree(fold_network(model.double(), SHAPE), model, x.double(), 1e-12)


@pytest.mark.parametrize("name", ["mlp", "deep_subspaces"])
def test_images_are_read_through_means_of_windows(name: str) -> None:
    sizes = {"rank": 3} if name == "deep_subspaces" else {}
    model = build_model(name, "aol", "maxmin", pool=2, **sizes).eval()
    x = images()
    agree(fold_network(model, SHAPE), model, x, 1e-5)
    blocks = x.unfold(2, 2, 2).unfold(3, 2, 2)
    torch.testing.assert_close(MeanPool(2, 2)(x), blocks.sum((-1, -2)) / 2)
    # What is constant in every window keeps its norm; what is not has none.
    constant = MeanPool(2, 2)(x).repeat_interleave(2, 2).repeat_interleave(2, 3) / 2
    torch.testing.assert_close(MeanPool(2, 2)(constant).norm(), constant.norm())
    torch.testing.assert_close(MeanPool(2, 2)(x - constant), torch.zeros(len(x), 2, 4, 4))


def test_means_need_windows_that_tile_images() -> None:
    for size in (3, 0):
        with pytest.raises(ValueError, match=r"set model\.pool"):
            build_model("mlp", "aol", "maxmin", pool=size)
    sizes = {"width": 4, "depth": 1, "layer": FREE, "activation": MAXMIN, "pool": 2}
    with pytest.raises(ValueError, match=r"set model\.pool"):
        MLP((4,), 3, **sizes)


@pytest.mark.parametrize(("name", "layer"), crossed("model", "layer"))
def test_estimates_are_near_the_bound_and_differentiable(name: str, layer: str) -> None:
    model = perturb(build_model(name, layer, "maxmin"))
    with torch.no_grad():
        for _ in range(100):
            lipschitz_estimate(model)
    estimate = pairwise_lipschitz_estimate(model)
    bound = pairwise_bound(fold_network(model, input_shape(name))).float()
    assert (estimate >= 0.9 * bound).all()
    free = layer == "unconstrained"
    # The constraint's own claim is 1 a layer, above the norms that a rescaled layer has.
    assert not free or (estimate <= bound * (1 + 1e-4)).all()
    whole = lipschitz_estimate(model).item()
    assert not free or whole <= lipschitz_bound(model, input_shape(name)) * (1 + 1e-4)
    estimate.sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.abs().max() > 0 for g in gradients)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("activation", "kind", "ratio"), [("norm_pair", NormPair, 0.5), ("sin_cos", SinCos, 2)]
)
def test_layers_take_as_many_features_as_the_activation_gives(
    name: str, activation: str, kind: type[nn.Module], ratio: float
) -> None:
    model = build_model(name, "unconstrained", activation, depth=3)
    x, met = inputs(name), 0
    for module in model.backbone:
        features, x = x.shape[1], module(x)
        if isinstance(module, kind):
            met += 1
            assert x.shape[1] == features * ratio
    # Beside the three of the depth those of stem, neck and dense layers; three blocks or two stages
    # of three; residual layers are inside their connections.
    more = {"convnet1d": 7, "liresnet": 6, "lipnext": 4, "lip_convnet": 10, "residual_mlp": 1}
    assert met == {"mlp": 3, "convnet": 4, **more}[name]
    assert model.head(x).shape == (len(x), 3)


SIZES = {"images": [(1, 9, 13), (3, 8, 8), (1, 4, 4)], "signals": [(1, 9), (3, 150), (1, 4)]}


@pytest.mark.parametrize(
    ("name", "shape"),
    [(m, s) for m in MODELS for s in SIZES["signals" if m in SIGNALS else "images"]],
)
def test_any_size_fits(name: str, shape: tuple[int, ...]) -> None:
    model = build_model(
        name, "unconstrained", "maxmin", input_shape=shape, mean=[0.5], std=[0.5], depth=3
    )
    network = fold_network(model, shape)
    x = torch.rand(4, *shape)
    torch.testing.assert_close(network(x), model(x).detach(), rtol=1e-5, atol=1e-5)


def test_an_mlp_takes_points_too() -> None:
    model = MLP((2,), 3, width=8, depth=1, layer=FREE, activation=MAXMIN, mean=[1.0, 2.0])
    x = torch.rand(4, 2)
    torch.testing.assert_close(fold_network(model, (2,))(x), model(x).detach())


# The convolutional networks of GloRo


@pytest.mark.parametrize(
    ("capacity", "convolutions", "dense"), [("2c2f", 2, 1), ("4c3f", 4, 2), ("6c2f", 6, 1)]
)
def test_the_networks_of_gloro_have_their_layers(
    capacity: str, convolutions: int, dense: int
) -> None:
    sizes = read("capacity", capacity)
    made: list[tuple[Any, ...]] = []

    def note(*arguments: int, **options: Any) -> nn.Module:
        made.append((*arguments, options.get("stride")))
        return nn.Identity()

    family = LayerFamily(dense=note, conv=note)
    ConvNet((1, 28, 28), 10, layer=family, activation=MAXMIN, **sizes)
    convs, denses = made[:convolutions], made[convolutions:]
    c, half = sizes["channels"], convolutions // 2
    stage = [*[(3, 1)] * (half - 1), (4, 2)]
    assert [conv[2:] for conv in convs] == stage * 2
    assert [conv[1] for conv in convs] == [c] * half + [2 * c] * half
    assert [d[:2] for d in denses] == [
        (2 * c * 49 if k == 0 else sizes["width"], sizes["width"]) for k in range(dense)
    ]


@pytest.mark.parametrize("capacity", names("capacity"))
def test_capacities_are_sizes_of_a_model(capacity: str) -> None:
    sizes = read("capacity", capacity)
    assert set(sizes) <= set(inspect.signature(ConvNet).parameters)
    common = set(inspect.signature(MLP).parameters)
    assert {"width", "depth"} <= set(sizes) & common
    # Divisible by the groups that activations are shipped with, so that any of them fits.
    assert sizes["width"] % 4 == sizes.get("channels", 0) % 4 == 0


# Normalisation and head


def test_the_normalisation_is_inside_the_bound() -> None:
    module = Normalize([0.1, 0.2], [0.5, 0.25], channels=2)
    x = torch.rand(3, 2, 4, 4)
    expected = (x - torch.tensor([0.1, 0.2]).view(2, 1, 1)) / torch.tensor([0.5, 0.25]).view(
        2, 1, 1
    )
    torch.testing.assert_close(module(x), expected)
    assert lipschitz_bound(module, SHAPE) == 4
    assert lipschitz_estimate(module).item() == 4


def test_a_grey_image_is_not_certified_by_a_colour_network() -> None:
    # Normalize would copy its one channel to both.
    model = build_model("mlp", "unconstrained", "maxmin")
    with pytest.raises(UnsoundNetworkError, match=r"backbone\.0: it does not take inputs"):
        fold_network(model, (1, 8, 8))


@pytest.mark.parametrize("normalize", [True, False])
def test_the_head_has_unit_rows_if_asked_for(normalize: bool) -> None:
    head = Head(6, 4, normalize=normalize)
    with torch.no_grad():
        head.raw.mul_(torch.tensor([0.01, 1.0, 3.0, 1e4])[:, None])
    unit = torch.allclose(head.weight.norm(dim=1), torch.ones(4))
    assert unit == normalize
    operation = head.fold()
    assert torch.equal(operation.weight, head.weight)
    assert lipschitz_estimate(head).item() <= lipschitz_bound(head, (6,)) * (1 + 1e-5)


def test_unit_rows_may_be_further_apart_than_a_root_of_two() -> None:
    head = Head(2, 2)
    with torch.no_grad():
        head.raw.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.1]]))
    network = PlainNetwork((head.fold(),), (2,))
    assert pairwise_bound(network)[0, 1] > 1.99
    torch.testing.assert_close(
        pairwise_bound(network).float(), row_distances(head.weight.detach()), rtol=1e-5, atol=1e-6
    )


def test_a_zero_row_stays_finite() -> None:
    head = Head(4, 3)
    with torch.no_grad():
        head.raw[1] = 0
    head(torch.randn(2, 4)).sum().backward()
    assert head.raw.grad is not None
    assert head.raw.grad.isfinite().all()
    assert (head.fold().weight[1] == 0).all()


# What no network can have


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("mlp", {"width": 0}, r"model\.width"),
        ("mlp", {"depth": 0}, r"model\.depth"),
        ("mlp", {"depth": -1}, r"model\.depth"),
        ("convnet", {"width": 0}, r"model\.width"),
        ("convnet", {"depth": 1}, r"model\.depth"),
        ("convnet", {"channels": 0}, r"model\.channels"),
        ("convnet", {"dense_depth": -1}, r"model\.dense_depth"),
        ("convnet", {"input_shape": (2,)}, "model=mlp"),
        ("convnet", {"input_shape": (2, 3, 8)}, "at least 4x4"),
        ("convnet", {"input_shape": (2, 1, 1)}, "at least 4x4"),
        ("convnet1d", {"depth": 0}, r"model\.depth"),
        ("convnet1d", {"channels": 0}, r"model\.channels"),
        ("convnet1d", {"input_shape": (2, 8, 8)}, "model=convnet for images"),
        ("convnet1d", {"input_shape": (2,)}, "model=mlp"),
        ("convnet1d", {"input_shape": (2, 3)}, "3 steps: set model=mlp"),
        *[
            (model, {key: value}, rf"normalization\.{key}")
            for model in MODELS
            for key, value in (
                ("mean", [0.1, 0.2, 0.3]),
                ("mean", []),
                ("std", [1.0, 1.0, 1.0]),
                ("std", [1.0, 0.0]),
                ("std", [-1.0]),
                ("std", [math.nan]),
            )
        ],
    ],
)
def test_impossible_sizes_are_refused_by_key(name: str, options: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        build_model(name, "unconstrained", "maxmin", **options)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("activation", names("activation"))
def test_a_width_fits_the_activation_or_is_refused_by_key(name: str, activation: str) -> None:
    grouped = not _fits(activation, 9)
    if grouped:
        with pytest.raises(ValueError, match=r"model\.width"):
            build_model(name, "unconstrained", activation, width=9)
    else:
        model = build_model(name, "unconstrained", activation, width=9)
        network = fold_network(model, input_shape(name))
        assert network(torch.zeros(1, *input_shape(name))).shape == (1, 3)


def _fits(activation: str, features: int) -> bool:
    try:
        build("activation", activation)(features)
    except ValueError:
        return False
    return True


def test_channels_that_do_not_fit_the_activation_are_refused_by_key() -> None:
    with pytest.raises(ValueError, match=r"6 features evenly.*model\.channels"):
        build_model("convnet", "unconstrained", "groupsort", channels=6)
    # The default is made to fit, whatever the width is.
    for width in (4, 100, 132):
        build_model("convnet", "unconstrained", "groupsort", width=width)


def test_activations_without_a_number_of_outputs_keep_it() -> None:
    model = ConvNet(
        SHAPE, 3, width=4, depth=2, layer=FREE, activation=lambda n: nn.ReLU(), channels=3
    )
    kinds = [type(op) for op in fold_network(model, SHAPE).operations]
    assert kinds.count(Convolution) == 2
    assert kinds.count(Dense) == 2
