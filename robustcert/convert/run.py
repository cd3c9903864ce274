"""From a published checkpoint to a run's folder, which ``certify`` takes."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustcert.config.build import CHECKPOINT_TARGETS, build_dataset, build_model
from robustcert.convert import DATASETS, SOURCES, aol_mlp, bronet, compared, lipconvnet, liresnet
from robustcert.convert.network import Converted
from robustcert.convert.published import ConversionError, read_published
from robustcert.data import Dataset
from robustcert.training.checkpoint import write_checkpoint


@dataclass(frozen=True)
class Reader:
    """How checkpoints of a source are read.

    Attributes:
        read: From what a file holds, its path and the dataset to the network.
        dataset: From what a file holds to the name of its dataset; None where no file names one.
    """

    read: Callable[[Any, Path, Dataset], Converted]
    dataset: Callable[[Any, Path], str] | None = None


READERS = {
    "liresnet": Reader(liresnet.read, liresnet.dataset),
    "bronet": Reader(bronet.read, liresnet.dataset),
    "lipconvnet": Reader(lipconvnet.read, lipconvnet.dataset),
    "aol_mlp": Reader(aol_mlp.read),
    "compared": Reader(compared.read),
}

# 36/255, and the other radii of these publications.
EPSILON = 36 / 255
RADII = [36 / 255, 72 / 255, 108 / 255, 1.0]


def convert(
    source: str, checkpoint: str | Path, out: str | Path, *, dataset: str | None = None
) -> Path:
    """Write a run's folder with the network of a published checkpoint.

    Nothing that the file holds is executed, and nothing is written unless all of it is understood.

    Args:
        source: A key of ``SOURCES``.
        checkpoint: The file, as it was published.
        out: The folder, which must not hold a checkpoint yet.
        dataset: A key of ``DATASETS``, for sources whose files name none; CIFAR-10 by default.

    Returns:
        The checkpoint in it.

    Raises:
        ConversionError: the file is not readable, or not a checkpoint of this source.
        FileExistsError: the folder holds a checkpoint.
    """
    path, target = Path(checkpoint), Path(out) / "checkpoints" / "best.ckpt"
    if target.exists():
        raise FileExistsError(f"{target} exists and is not replaced: name another folder")
    known = READERS[source]
    content = read_published(path)
    named = known.dataset(content, path) if known.dataset else dataset or "cifar10"
    if named != (dataset or named):
        raise ConversionError(f"{path}: it names the dataset {named}, not {dataset}")
    root = os.path.join(os.environ.get("ROBUSTCERT_DATA", "data"), named)
    config: dict[str, Any] = {"dataset": {**DATASETS[named], "root": root}}
    data = build_dataset(config, CHECKPOINT_TARGETS)
    node, model = network_of(source, content, path, data)
    config |= {
        "model": node,
        "epsilon": EPSILON,
        "radii": RADII,
        "loader": {"validation": 0.1, "num_workers": 0},
        "converted": {
            "source": source,
            "repository": SOURCES[source],
            "file": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        },
    }
    write_checkpoint(
        target,
        config=config,
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        model_state=model.state_dict(),
    )
    return target


def network_of(
    source: str, content: Any, path: Path, data: Dataset
) -> tuple[dict[str, Any], nn.Module]:
    """The network of a published checkpoint, as a configuration describes it and as a module.

    Args:
        source: A key of ``SOURCES``.
        content: What the file holds.
        path: The file, for messages.
        data: Gives the shape of an input and the number of classes.

    Raises:
        ConversionError: it is no checkpoint of this source.
    """
    network: Converted = READERS[source].read(content, path, data)
    node = network.model()
    # What estimates start from is the module's own, the same for the same file.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        shape, classes = data.input_shape, data.num_classes
        model = build_model({"model": node}, shape, classes, CHECKPOINT_TARGETS)
    model.load_state_dict({**model.state_dict(), **network.state()})
    return node, model
