"""What bounds of an epoch before still prove: plus the norm of the difference, over fresh ones.

    python train.py experiment=cifar10_small trainer.max_epochs=4 certify=false hydra.run.dir=RUN
    python -m benchmarks.studies.reused_bounds EPOCH_1.ckpt EPOCH_2.ckpt ...

Checkpoints are copies of ``RUN/checkpoints/last.ckpt`` after each epoch, in their order. For every
layer with a weight W, and W' of the checkpoint before, the excess is

    (c bound(W') + bound(W - c W')) / bound(W) - 1,    c = <W, W'> / |W'|^2.
"""

import argparse
from dataclasses import replace
from itertools import pairwise

from robustcert.config.build import CHECKPOINT_TARGETS, build_model
from robustcert.network.fold import fold_network
from robustcert.network.linear import Convolution, Dense
from robustcert.network.network import PlainNetwork
from robustcert.network.shared_bounds import leaves
from robustcert.training.checkpoint import read_checkpoint


def folded(path: str) -> PlainNetwork:
    """The network of a checkpoint."""
    read = read_checkpoint(path)
    model = build_model(read.config, read.input_shape, read.num_classes, CHECKPOINT_TARGETS)
    read.load_into(model)
    return fold_network(model, read.input_shape)


def excess(old: Dense | Convolution, new: Dense | Convolution, shape: tuple[int, ...]) -> float:
    """By how much the bound of a layer would be larger, as a share of the fresh one."""
    before, weight = old.weight.double(), new.weight.double()
    scale = float((weight * before).sum() / before.square().sum())
    rest = replace(new, weight=weight - scale * before).lipschitz_bound(shape)
    return (scale * old.lipschitz_bound(shape) + rest) / new.lipschitz_bound(shape) - 1


def main() -> None:
    """Print the excess of every layer, from each checkpoint to the next."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+")
    networks = [folded(path) for path in parser.parse_args().checkpoints]
    for number, (old, new) in enumerate(pairwise(networks), 1):
        pairs = zip(
            leaves(old.operations, old.input_shape),
            leaves(new.operations, new.input_shape),
            strict=True,
        )
        found = [
            excess(before, after, shape)
            for (before, _), (after, shape) in pairs
            if isinstance(before, Dense | Convolution) and isinstance(after, Dense | Convolution)
        ]
        kept = sum(share <= 1e-3 for share in found)
        shown = " ".join(f"{share:.3g}" for share in found)
        print(f"checkpoint {number} to the next: {kept} of {len(found)} within 1e-3; {shown}")


if __name__ == "__main__":
    main()
