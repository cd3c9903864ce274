"""What training takes of memory at least, known from parameters while they are made."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakIdKeyDictionary

from robustcert.certificate.memory import require_memory

# Optimizers that keep two tensors as large as every parameter; nothing is known of others.
_WITH_TWO = ("Adam", "AdamW", "NAdam", "ScheduleFreeAdamW")
# Bytes of parameters after which the memory that is free is looked at again.
_STEP = 2**26


def tensors_of(optimizer: Mapping[str, Any]) -> int:
    """Tensors of a parameter's size in training: itself, its gradient and the optimizer's.

    Args:
        optimizer: The optimizer's node.
    """
    inner = optimizer.get("optimizer")
    if isinstance(inner, Mapping):  # of which the outer one averages the steps
        return tensors_of(inner)
    name = str(optimizer.get("_target_")).rpartition(".")[2]
    return 4 if name in _WITH_TWO else 2


def is_accelerated(trainer: Mapping[str, Any]) -> bool:
    """Whether training steps may run elsewhere than on the CPU.

    Args:
        trainer: The trainer's node.
    """
    named = trainer.get("accelerator", "auto")
    return named != "cpu" and (named != "auto" or torch.accelerator.is_available())


@contextmanager
def refused_if_too_large(tensors: int) -> Iterator[None]:
    """A context in which a module is made, and refused as soon as its training cannot fit.

    Args:
        tensors: Tensors of every parameter's size that are to be on this machine's CPU.

    Raises:
        ConfigError: the parameters so far are too many.
    """
    known: WeakIdKeyDictionary = WeakIdKeyDictionary()
    unseen = 0

    def look() -> None:
        # Those parameters that there are already may have taken their memory.
        _require((tensors - 1) * sum(known.values()), torch.device("cpu"))

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal unseen
        if parameter is None or parameter.device.type != "cpu":
            return
        # By identity: a parametrization registers a parameter again.
        known[parameter] = parameter.numel() * parameter.element_size()
        unseen += known[parameter]
        if unseen >= _STEP:
            unseen = 0
            look()

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
        look()
    finally:
        handle.remove()


def require_training(model: nn.Module, tensors: int, device: torch.device) -> None:
    """Refuse a network whose training certainly does not fit into the memory of a device.

    Activations are left out, and whatever validation takes.

    Args:
        model: The network, on the CPU.
        tensors: Tensors of every parameter's size in training.
        device: Where it is trained.

    Raises:
        ConfigError: it does not fit; the message has both numbers.
    """
    sizes = [p.numel() * p.element_size() for p in model.parameters() if p.requires_grad]
    there_already = device.type == "cpu"
    _require((tensors - there_already) * sum(sizes), device)


def _require(need: int, device: torch.device) -> None:
    remedy = "choose a smaller model or capacity, or train it where there is more"
    require_memory(need, device, "model, in training", remedy)
