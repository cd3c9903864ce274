"""A device that stands for an accelerator: its tensors meet no others, as those of one do not."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

# Nothing else computes there, so that whatever is there came through the mode below.
STAND_IN = torch.device("meta")


class MixedError(AssertionError):
    """An operation of the device's tensors with some of the CPU, which an accelerator refuses."""


class OnDevice(Tensor):
    """A tensor of the device.

    Args:
        held: What it is, where the mode computes with it.
    """

    held: Tensor

    @staticmethod
    def __new__(cls: type["OnDevice"], held: Tensor) -> "OnDevice":
        held = held.resolve_conj().resolve_neg()
        made: OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=STAND_IN
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise MixedError(f"{func} outside of the mode")


class StandIn(TorchDispatchMode):
    """Within it there is the device, which computes as the CPU does.

    Attributes:
        operations: Names of the operations that were computed there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        there = [isinstance(t, OnDevice) for t in tensors]
        name = func.overloadpacket.__name__
        # Values may be copied from one to the other, and a scalar belongs to both.
        if name not in ("_to_copy", "copy_") and any(there):
            if not all(k or t.dim() == 0 for k, t in zip(there, tensors, strict=True)):
                raise MixedError(f"{func} of tensors on two devices")
            self.operations.append(name)
        named = kwargs.get("device")
        goes = any(there) if named is None else torch.device(named) == STAND_IN
        if named is not None:
            kwargs["device"] = torch.device("cpu")
        plain_args, plain_kwargs = tree_map_only(OnDevice, lambda t: t.held, (args, kwargs))
        found = func(*plain_args, **plain_kwargs)
        return tree_map_only(Tensor, OnDevice, found) if goes else found
