"""Whether a module and the network folded from it are one function, as far as some inputs tell.

A fold is code that people write, and nothing else holds it to the ``forward`` that it speaks for.
This is a safeguard and no proof: what differs elsewhere than at the compared inputs is not seen.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustcert.arithmetic.products import untested_products
from robustcert.errors import UnsoundNetworkError
from robustcert.network.bounds import run
from robustcert.network.fold import fold_for, fold_network
from robustcert.network.network import PlainNetwork
from robustcert.network.overrides import class_of
from robustcert.network.stated import own_modules, require_stated_bounds
from robustcert.network.units import in_units

# Largest number of inputs that are compared, half of them moved by noise.
COMPARED = 64
# Smallest number of those that are moved, however few inputs there are.
MIN_MOVED = 8
# Inputs of one forward pass of the folded network, whose kernels may be as large as the maps.
_AT_ONCE = 4
# Largest difference in float64, in units of the largest value.
TOLERANCE = 1e-9
# Largest entry of a compared input; beyond, a periodic activation is all rounding.
MAX_ENTRY = 1000.0
# Standard deviations of the noise, in units of the largest input.
_NOISE = (0.1, 1.0)


class DisagreementError(UnsoundNetworkError):
    """A module computes something else than the operations that it was folded into."""


def compared_rows(count: int) -> Tensor:
    """Rows of ``count`` inputs of which a module is compared, spread evenly, ``COMPARED / 2``."""
    chosen = min(count, COMPARED // 2)
    return torch.arange(chosen, dtype=torch.int64, device="cpu") * count // max(chosen, 1)


def require_agreement(module: nn.Module, network: PlainNetwork, inputs: Tensor) -> None:
    """Compare a module with its folded network on some inputs and on others near them.

    A copy of the module is evaluated in its own precision, in which the outputs must agree to half
    of its digits, and in float64, in which it is folded again and agrees to ``TOLERANCE`` of the
    largest value. Activations that a user wrote are measured as well
    (:func:`robustcert.network.stated.require_stated_bounds`). The module itself is not called.
    Without autocast and on the CPU; callers see to strict settings, without which the two may
    differ.

    Args:
        module: The module; compared in evaluation mode.
        network: What it was folded into.
        inputs: Shape ``(N, *input_shape)``, see :func:`robustcert.network.units.in_units`.

    Raises:
        DisagreementError: the two differ; it names the first module, in the order of execution,
            whose own fold does.
        UnsoundNetworkError: the module cannot be copied, or its copy does not run, or an activation
            exceeds what it states.
    """
    x = _points(inputs, tuple(network.input_shape))
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        torch.autocast("cpu", enabled=False),
        untested_products(),
    ):
        copied = _copied(module)
        dtype = _dtype(copied)
        _compare(copied, network.to(torch.device("cpu")), x.to(dtype))
        if dtype != torch.float64:
            copied.double()
            _compare(copied, fold_network(copied, network.input_shape), x)
        own = own_modules(copied)
        for m, given, _ in _calls(copied, x) if own else ():
            if m in own:
                require_stated_bounds(m, own[m], given)


def _points(inputs: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Inputs and as many seeded points near them, float64."""
    x = in_units(inputs[compared_rows(len(inputs)).to(inputs.device)]).cpu().double()
    # NaN compares false.
    x = x[(x.abs() <= MAX_ENTRY).flatten(1).all(1)]
    size = float(x.abs().amax()) if x.numel() else 1.0
    generator = torch.Generator("cpu").manual_seed(0)
    count = max(MIN_MOVED, len(x))
    noise = torch.randn(count, *shape, generator=generator, dtype=torch.float64, device="cpu")
    scale = torch.tensor(_NOISE, dtype=torch.float64, device="cpu").repeat(count)[:count]
    scale = scale.view(-1, *(1,) * len(shape)) * (size or 1.0)
    rows = torch.arange(count, dtype=torch.int64, device="cpu")
    start = x[rows % len(x)] if len(x) else torch.full_like(noise, 0.5)
    return torch.cat([x, start + scale * noise])


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module).cpu().eval()
    except Exception as error:  # whatever a user's class makes it raise
        raise _unable(module, "cannot be copied by copy.deepcopy", error) from error


def _dtype(module: nn.Module) -> torch.dtype:
    tensors = (*module.parameters(), *module.buffers())
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.float64)


def _compare(module: nn.Module, network: PlainNetwork, x: Tensor) -> None:
    """Raise unless a copy of a module and its network agree on inputs of the module's dtype."""
    try:
        # At once, for a module computes its constrained weights in every pass.
        expected = module(x.clone())
    except Exception as error:  # whatever a user's class makes it raise
        raise _unable(module, f"does not run in {x.dtype}, as a copy", error) from error
    found = torch.cat([network(_wide(part)) for part in x.split(_AT_ONCE)])
    difference = _difference(expected, found)
    if difference is None:
        return
    worst, message = difference
    path, kind = _first_that_differs(module, x[worst : worst + 1])
    name = f"{kind.__module__}.{kind.__qualname__}"
    found_by, advice = (
        (f"the fold() of {name}", "make fold() return what forward computes in evaluation mode")
        if hasattr(kind, "fold")
        else (f"what was captured of {name}", "give the module a fold()")
    )
    raise DisagreementError(
        f"{found_by} is another function than its forward: {message}, among {len(x)} inputs in "
        f"{x.dtype}. Nothing is certified: {advice}",
        path,
    )


def _difference(expected: Any, found: Tensor) -> tuple[int, str] | None:
    """The row in which outputs differ most, and how; None where they agree."""
    if not isinstance(expected, Tensor) or expected.shape != found.shape:
        shape = tuple(expected.shape) if isinstance(expected, Tensor) else type(expected).__name__
        return 0, f"outputs are {shape} and {tuple(found.shape)}"
    if expected.numel() == 0:
        return None
    dtype = expected.dtype
    tolerance = TOLERANCE if dtype == torch.float64 else torch.finfo(dtype).eps ** 0.5
    expected, found = expected.double(), found.double()
    finite = torch.isfinite(expected)
    size = float(torch.where(finite, expected.abs(), 0.0).max())
    gap = torch.where(finite | torch.isfinite(found), (expected - found).abs(), 0.0)
    # Where only one of the two is a number, this is none.
    gap = gap.flatten(1).nan_to_num(nan=torch.inf).amax(1)
    worst = int(gap.argmax())
    if gap[worst] <= tolerance * size:
        return None
    return worst, f"they differ by {float(gap[worst]):.3g} where the largest value is {size:.3g}"


def _first_that_differs(module: nn.Module, x: Tensor) -> tuple[str, type[nn.Module]]:
    """Path and class of the first module, in the order of execution and the innermost first."""
    paths = {id(m): path for path, m in module.named_modules()}
    for m, given, output in _calls(module, x):
        try:
            found = run(fold_for(m, tuple(given.shape[1:])), _wide(given))
        except (UnsoundNetworkError, ValueError, RuntimeError, IndexError):
            continue  # not a module of its own, such as a parametrization
        if _difference(output, found) is not None:
            return paths[id(m)], class_of(m)
    return "", class_of(module)


def _calls(module: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor, Any]]:
    """Every call of a module within a module, in the order in which they end."""
    began: list[Any] = []
    calls: list[tuple[nn.Module, Tensor, Any]] = []

    def begin(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        # Copied, for it may be changed in place.
        first = inputs[0] if len(inputs) == 1 else None
        began.append(first.clone() if isinstance(first, Tensor) else None)

    def end(m: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        given = began.pop()
        if given is not None:
            calls.append((m, given, output.clone() if isinstance(output, Tensor) else output))

    with _hooked(module, begin, end):
        module(x.clone())
    return calls


@contextmanager
def _hooked(module: nn.Module, begin: Any, end: Any) -> Iterator[None]:
    handles = []
    for m in module.modules():
        handles += [m.register_forward_pre_hook(begin), m.register_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _wide(x: Tensor) -> Tensor:
    # Folded networks are evaluated in float32 or float64.
    return x if x.dtype == torch.float64 else x.float()


def _unable(module: nn.Module, what: str, error: Exception) -> UnsoundNetworkError:
    cls = class_of(module)
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UnsoundNetworkError(
        f"{cls.__module__}.{cls.__qualname__} {what}, so that it cannot be compared with what is "
        f"certified: {reason}. Keep its tensors as parameters and buffers, and constants in the "
        "dtype of the input"
    )
