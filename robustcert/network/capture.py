"""From any module to operations: its forward runs, and what it calls of torch is recorded.

No line of the user's code is parsed. A copy of the module is evaluated on a small batch; every
function of torch that it calls with a value that depends on the input is looked up in
:mod:`robustcert.network.torch_functions`, which says which operations that is, and whatever is not
known there is refused with the line that calls it. Modules that state their own ``fold`` are one
step each. There are two evaluations, of batches of two sizes, whose graphs have to be the same. The
claim is about the operations, which callers compare with the module besides
(:func:`robustcert.network.agreement.require_agreement`).
"""

import copy
import linecache
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from robustcert.errors import UnknownLipschitz, UnsoundNetworkError
from robustcert.network import torch_functions
from robustcert.network.generators import kept_generators, states_of_generators
from robustcert.network.merging import merged
from robustcert.network.operation import Operation, Shape, join_path, same
from robustcert.network.overrides import class_of, override_of, own_method
from robustcert.network.series_parallel import Value, decomposed, in_order
from robustcert.network.twins import has_twin, with_twins

Fold = Callable[[nn.Module], list[Operation]]

# Sizes of the two batches, and maximum number of characters of a quoted line.
BATCHES = (2, 3)
MAX_QUOTED = 100
_TORCH = str(Path(torch.__file__).parent)


def capture(module: nn.Module, input_shape: Shape, fold: Fold) -> list[Operation]:
    """The operations that a module computes on inputs of shape ``(N, *input_shape)``.

    Args:
        module: The module, in evaluation mode; it is copied and not called itself.
        input_shape: Shape of one input.
        fold: What gives the operations of a module that states its own ``fold``.

    Raises:
        UnknownLipschitz: its forward calls what is not known, depends on data or on the size of the
            batch, draws random numbers, or reads what was changed in place; the line is named.
        UnsoundNetworkError: the module cannot be copied or does not run.
    """
    for path, part in _parts(module):
        if reason := override_of(part):
            raise UnknownLipschitz(f"{_kind(part)} cannot be captured: {reason}", path)
    # Tensors of inference mode do not count how often they were changed.
    with torch.inference_mode(False):
        copied = _copied(module)
        if has_twin(copied):
            module = with_twins(copied, _precision(copied))
            copied = _copied(module)
        first, second = (_Recording(module, copied, fold).run(input_shape, n) for n in BATCHES)
    _require_same(first, second)
    return merged(decomposed(first), input_shape)


def _parts(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules by path, down to those that state their own fold, as often as they are held."""
    yield path, module
    if own_method(module, "fold") is None:
        for name, child in module._modules.items():
            if child is not None:
                yield from _parts(child, join_path(path, name))


def _copied(module: nn.Module) -> nn.Module:
    try:
        copied: nn.Module = copy.deepcopy(module).cpu().eval()
    except Exception as error:  # whatever a user's class makes it raise
        raise UnsoundNetworkError(
            f"{_kind(module)} cannot be copied by copy.deepcopy: {_reason(error)}"
        ) from error
    kinds = [[(path, type(m)) for path, m in _parts(whole)] for whole in (module, copied)]
    if kinds[0] != kinds[1] or _changed(module, copied):
        raise UnsoundNetworkError(f"copy.deepcopy makes another module of {_kind(module)}")
    return copied


def _precision(module: nn.Module) -> torch.dtype:
    floating = (t.dtype for t in _tensors(module).values() if t.is_floating_point())
    return next(floating, torch.float64)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    named = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor.detach().cpu() for name, tensor in named}


def _changed(module: nn.Module, copied: nn.Module) -> str | None:
    """Name of a parameter or buffer in which a copy differs from its original."""
    first, second = _tensors(module), _tensors(copied)
    return next((k for k in [*first, *second] if not same(first.get(k), second.get(k))), None)


class _Recording(TorchFunctionMode):
    """One evaluation of a copied module, with the value of every tensor that it makes."""

    def __init__(self, module: nn.Module, copied: nn.Module, fold: Fold) -> None:
        super().__init__()
        self.module, self.copied, self.fold = module, copied, fold
        self.paths: dict[int, str] = {}
        # By the identity of tensors, which are held, so that none gets the place of another.
        self.held: list[Tensor] = []
        self.values: dict[int, Value] = {}
        # Lines that wrote to the memory of a tensor since it was made.
        self.written: dict[int, str] = {}
        self.size, self.quiet = 0, False
        self.refusal: UnsoundNetworkError | None = None
        self.generators = states_of_generators()

    def run(self, input_shape: Shape, size: int) -> Value:
        """Evaluate the module on ``size`` inputs and return the value of its output."""
        self.size = size
        generator = torch.Generator("cpu").manual_seed(size)
        x = torch.rand(size, *input_shape, generator=generator, dtype=torch.float64, device="cpu")
        x = x.to(_precision(self.copied))
        self._hold(x, Value())
        exact = torch.autocast("cpu", enabled=False)
        with torch.no_grad(), exact, kept_generators(), self._leaves():
            output = self._evaluate(x)
        if name := _changed(self.module, self.copied):
            moving = "parametrizations" in name.split(".")
            remedy = ": certify robustcert.freeze(module), whose weights are constants"
            raise UnknownLipschitz(
                f"the forward of {_kind(self.module)} changes its {name}" + remedy * moving
            )
        if id(output) not in self.values:
            raise UnknownLipschitz(
                f"{_kind(self.module)}: expected as output one tensor that depends on the input, "
                f"got {type(output).__name__} that torch's functions did not make of it"
            )
        if id(output) in self.written:
            raise UnknownLipschitz(
                f"{self.written[id(output)]} changes in place what the output shares memory with"
            )
        value = self.values[id(output)]
        if value.unknown is not None:
            raise value.unknown
        return value

    def _evaluate(self, x: Tensor) -> Any:
        output = None
        try:
            with self, _Kernels(self):
                output = self.copied(x)
                self._refuse_draws("its forward")
        except Exception as error:  # whatever a user's class makes it raise
            if self.refusal is None:
                raise UnsoundNetworkError(
                    f"{_kind(self.module)} does not run on inputs of shape {tuple(x.shape)} in "
                    f"{x.dtype}: {_reason(error)}"
                ) from error
        if self.refusal is not None:
            # Also where the user's code went on without it.
            raise self.refusal
        return output

    @contextmanager
    def _leaves(self) -> Iterator[None]:
        """Within it, modules of the copy that state their own fold are one step each."""
        originals, leaves = dict(_parts(self.module)), []
        for path, part in _parts(self.copied):
            self.paths.setdefault(id(part), path)
            if own_method(part, "fold") is not None and part not in leaves:
                leaves.append(part)
        for part in leaves:
            vars(part)["forward"] = self._leaf(part, originals[self.paths[id(part)]])
        try:
            yield
        finally:
            for part in leaves:
                del vars(part)["forward"]

    def _leaf(self, part: nn.Module, original: nn.Module) -> Callable[..., Any]:
        forward = part.forward

        def step(*args: Any, **kwargs: Any) -> Any:
            if self.quiet:
                return forward(*args, **kwargs)
            with self._unwatched():
                return self._step(forward, original, *args, **kwargs)

        return step

    @contextmanager
    def _unwatched(self) -> Iterator[None]:
        """Within it, functions of torch are called by a step that is recorded as a whole."""
        self.quiet = True
        try:
            yield
        finally:
            self.quiet = False

    def _step(self, forward: Any, original: nn.Module, *args: Any, **kwargs: Any) -> Any:
        name = f"{_kind(original)}, which states its own fold(),"
        if len(args) != 1 or kwargs or id(args[0]) not in self.values:
            raise self._refuse(name, "is called with other arguments than one captured value")
        version, value = args[0]._version, self._value(args[0], name)
        try:
            output, operations = forward(args[0]), self.fold(original)
        except UnsoundNetworkError as error:
            error.path = join_path(self._path(), error.path)
            self.refusal = self.refusal or error
            raise
        if args[0]._version != version:
            raise self._refuse(name, "changes its input in place")
        try:
            if value.unknown is not None:
                raise value.unknown
            self._hold_joined(output, name, [(value, operations)])
        except UnsoundNetworkError as error:
            self._hold_unknown(output, error)
        return output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.quiet or func in torch_functions.QUESTIONS:
            return func(*args, **kwargs)
        if func in torch_functions.CONSTANTS:
            with self._unwatched():
                return func(*args, **kwargs)
        name = _function(func)
        self._refuse_draws(f"what comes before {name}")
        given = list(_tensors_in((args, kwargs)))
        known = [t for t in given if id(t) in self.values]
        if known and func in torch_functions.DATA:
            raise self._refuse(name, "lets the values of an input decide what is computed")
        values = [self._value(t, name) for t in known]
        versions = [_version(t) for t in given]
        with self._unwatched():
            output = func(*args, **kwargs)
        self._refuse_draws(name)
        if not known:
            return output
        written = [t for t, version in zip(given, versions, strict=True) if _version(t) != version]
        if any(t is not output or id(t) not in self.values for t in written):
            raise self._refuse(name, "changes in place what depends on no input, or other views")
        try:
            with self._unwatched():
                self._record(func, name, args, kwargs, known, values, output)
        except UnknownLipschitz as error:
            self._hold_unknown(output, error)
        except UnsoundNetworkError as error:
            self._hold_unknown(output, self._error(name, error.message))
        if written:
            self._forget_others(output, name)
        return output

    def _record(
        self,
        func: Any,
        name: str,
        args: Any,
        kwargs: dict[str, Any],
        known: list[Tensor],
        values: list[Value],
        output: Any,
    ) -> None:
        # Nothing is refused before it is known to matter.
        for value in values:
            if value.unknown is not None:
                raise value.unknown
        outputs = list(output) if isinstance(output, (tuple, list)) else [output]
        joined = torch_functions.operations_of(func, args, kwargs, known, outputs)
        for tensor, made in zip(outputs, joined, strict=True):
            if made is None:
                self._hold_unknown(tensor, self._error(name, "gives places of entries, which jump"))
                continue
            sources = [self.values[id(t)] for t in made.sources] or values
            parts = list(zip(sources, made.steps, strict=True))
            self._hold_joined(tensor, name, parts, made.axis, made.after)

    def _hold_joined(
        self,
        output: Any,
        name: str,
        parts: list[tuple[Value, list[Operation]]],
        axis: int | None = None,
        after: Sequence[Operation] = (),
    ) -> None:
        """Hold an output made of operations applied to values: their sum, or side by side.

        What comes after that applies to all of them together.
        """
        if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != self.size:
            raise UnsoundNetworkError("does not return at least one entry for every input")
        path, where = self._path(), self._where(name)
        made = []
        for value, operations in parts:
            if operations:
                value = Value(_named(operations, path), (value,), path, where)
            made.append(value)
        whole = Value(_named(after, path), (*made,), path, where, axis)
        self._hold(output, made[0] if len(made) == 1 else whole)

    def _hold_unknown(self, output: Any, error: UnsoundNetworkError) -> None:
        """Hold what depends on the input and is no known function of it."""
        tensors = list(_tensors_in(output))
        if not tensors:
            self.refusal = self.refusal or error
            raise error
        for tensor in tensors:
            self._hold(tensor, Value(unknown=error))

    def _hold(self, tensor: Tensor, value: Value) -> None:
        self.held.append(tensor)
        self.values[id(tensor)] = value
        self.written.pop(id(tensor), None)

    def _forget_others(self, tensor: Tensor, name: str) -> None:
        """Of all that shares its memory, only the tensor that was written to is known."""
        memory = tensor.untyped_storage().data_ptr()
        for other in self.held:
            if other is not tensor and other.untyped_storage().data_ptr() == memory:
                self.written[id(other)] = self._where(name)

    def _value(self, tensor: Tensor, name: str) -> Value:
        if id(tensor) in self.written:
            line = self.written[id(tensor)]
            raise self._refuse(name, f"reads memory that was changed in place by {line}")
        return self.values[id(tensor)]

    def _refuse_draws(self, name: str) -> None:
        if states_of_generators() != self.generators:
            raise self._refuse(name, "draws random numbers")

    def _error(self, name: str, why: str) -> UnsoundNetworkError:
        return UnknownLipschitz(f"{self._where(name)} {why}", self._path())

    def _refuse(self, name: str, why: str) -> UnsoundNetworkError:
        error = self._error(name, why)
        self.refusal = self.refusal or error
        return error

    def _where(self, name: str) -> str:
        """The user's line that is being executed, and the function that it calls."""
        for filename, number, function, _ in _frames():
            if filename != __file__ and not filename.startswith(_TORCH):
                code = linecache.getline(filename, number).strip()[:MAX_QUOTED]
                line = f"{Path(filename).name}:{number}, in {function}"
                return f"{line}: `{code}`: {name}" if code else f"{line}: {name}"
        return name

    def _path(self) -> str:
        owners = (id(owner) for *_, owner in _frames())
        return next((self.paths[owner] for owner in owners if owner in self.paths), "")


class _Kernels(TorchDispatchMode):
    """What reaches torch's kernels, also from compiled code that no function of Python calls."""

    def __init__(self, recording: _Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        recording = self.recording
        if not recording.quiet:
            for tensor in _tensors_in((args, kwargs or {})):
                if id(tensor) in recording.values:
                    raise recording._refuse(str(func), "is called by code that cannot be followed")
        return func(*args, **(kwargs or {}))


def _frames() -> Iterator[tuple[str, int, str, Any]]:
    """File, line, function and ``self`` of all calls within the evaluation, the last one first."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not _Recording._evaluate.__code__:
        name = frame.f_code.co_name
        yield frame.f_code.co_filename, frame.f_lineno, name, frame.f_locals.get("self")
        frame = frame.f_back  # type: ignore[assignment]


def _require_same(first: Value, second: Value) -> None:
    """Refuse graphs of two evaluations that differ."""
    places: dict[Value | None, int] = {}
    for place, (one, other) in enumerate(zip_longest(in_order(first), in_order(second))):
        places[one] = places[other] = place
        alike = one is not None and other is not None and same(one.operations, other.operations)
        alike = alike and one.axis == other.axis
        if not alike or [places[v] for v in one.inputs] != [places[v] for v in other.inputs]:
            value = one or other
            raise UnknownLipschitz(
                f"{value.where}: what is computed here is another function for a batch of "
                f"{BATCHES[0]} inputs than for {BATCHES[1]}, or in another evaluation",
                value.name,
            )


def _named(operations: Sequence[Operation], path: str) -> tuple[Operation, ...]:
    return tuple(replace(op, name=join_path(path, op.name)) for op in operations)


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; constants of inference mode cannot be, here."""
    return 0 if tensor.is_inference() else tensor._version


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors_in(part)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))


def _function(func: Any) -> str:
    # An attribute is read by the method of its descriptor.
    name = getattr(func, "__name__", str(func))
    return getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name


def _kind(module: nn.Module) -> str:
    cls = class_of(module)
    return f"{cls.__module__}.{cls.__qualname__}"


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
