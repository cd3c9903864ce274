"""The trained network as a torch module, from the checkpoint that holds its weights."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from robustcert.certificate.places import checkpoint_of
from robustcert.config.build import CHECKPOINT_TARGETS, Config, build_model
from robustcert.training.checkpoint import Checkpoint, read_checkpoint


def load_module(
    path: str | os.PathLike[str],
    *,
    allow_targets: Sequence[str] = (),
    device: str | torch.device = "cpu",
) -> nn.Module:
    """The trained network of a run, to use, to inspect or to train further.

    It is the module that was trained, constraints included, in eval mode:
    ``robustcert.certify(load_module(run), x)`` gives the radii of the run's certificate. Nothing
    that the checkpoint holds is executed; it may name classes of robustcert and ``torch.nn`` alone.

    Args:
        path: A run's folder, whose ``checkpoints/best.ckpt`` is read, or a checkpoint.
        allow_targets: Packages whose classes the checkpoint may name beside these.
        device: Where the module is put.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged or of another format.
        ConfigError: the checkpoint names a class that is not allowed.
    """
    checkpoint = read_checkpoint(checkpoint_of(os.fspath(path)))
    with torch.device("cpu"):
        model = restore_module(checkpoint, checkpoint.config, (*CHECKPOINT_TARGETS, *allow_targets))
    return model.to(device)


def restore_module(checkpoint: Checkpoint, config: Config, allowed: Sequence[str]) -> nn.Module:
    """The module that a configuration describes, with a checkpoint's weights, in eval mode."""
    # Some initialisations do not exist in half precision; what they give is replaced.
    with _default_dtype(torch.float32):
        model = build_model(config, checkpoint.input_shape, checkpoint.num_classes, allowed)
    checkpoint.load_into(model)
    return model.eval()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
