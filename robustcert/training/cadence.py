"""How often a run validates: proofs of large networks may outlast the training between them."""

import logging
import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator

from robustcert.network.network import PlainNetwork
from robustcert.network.reflection import Reflection
from robustcert.network.shared_bounds import leaves

log = logging.getLogger(__name__)

# Share of training's time that bounds may take, and a time that nobody minds.
MAX_SHARE, MIN_SECONDS = 0.5, 5.0
# Multiplications per entry of a product of matrices: its Gram matrix, a factor, and what is left.
PER_PRODUCT = 6
# Nominal numbers of operations in a second: of proofs on the CPU, as none was timed elsewhere, and
# of training steps there and on an accelerator; and the least that a step takes. Measured times
# would differ from run to run, and with them the epochs that are validated.
PROOF_RATE, CPU_RATE, ACCELERATOR_RATE = 2.5e10, 5e10, 5e13
LEAST_STEP = 0.005


def is_validated(trainer: Trainer, epochs: int) -> bool:
    """Whether the last of so many epochs ends with a validation."""
    return epochs % (trainer.check_val_every_n_epoch or 1) == 0


def proof_seconds(network: PlainNetwork) -> float:
    """Nominal time of the bounds of all operations."""
    work = 0.0
    for operation, shape in leaves(network.operations, network.input_shape):
        if isinstance(operation, Reflection):  # whose norm is known
            continue
        for weight in operation.tensors().values():
            if weight.dim() >= 2:
                small, large = sorted(weight.shape[:2])
                work += math.prod(shape[1:]) * small**2 * large
    return PER_PRODUCT * work / PROOF_RATE


def training_seconds(network: PlainNetwork, steps: int, batch: int, *, accelerated: bool) -> float:
    """Nominal time of so many training steps: a forward pass, and twice as much backwards."""
    pairs = 0
    for operation, shape in leaves(network.operations, network.input_shape):
        positions = math.prod(operation.output_shape(shape)[1:])
        pairs += positions * sum(t.numel() for t in operation.tensors().values() if t.dim() >= 2)
    rate = ACCELERATOR_RATE if accelerated else CPU_RATE
    return steps * max(6 * pairs * batch / rate, LEAST_STEP)


def epochs_between(proof: float, training: float, epochs: int) -> int:
    """Number of epochs from a validation to the next, so that bounds take at most their share.

    A number that divides that of all epochs is preferred: then the last one is validated.

    Args:
        proof: Time of the bounds of a validation.
        training: Time of the training of an epoch.
        epochs: Number of epochs of the run, or -1.
    """
    if proof <= MIN_SECONDS:
        return 1
    least = max(1, math.ceil(proof / (MAX_SHARE * training)))
    if epochs < 1:
        return least
    whole = (k for k in range(least, 2 * least + 1) if epochs % k == 0)
    return min(next(whole, least), epochs)


class Cadence(Callback):
    """Validates every few epochs where bounds would take longer than training.

    Args:
        batch_size: Number of examples of a training step of a process.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose, once the number of steps is known."""
        module: Any = pl_module
        network = module.folded()
        proof = proof_seconds(network)
        training = training_seconds(
            network,
            int(trainer.num_training_batches),
            self.batch_size,
            accelerated=not isinstance(trainer.accelerator, CPUAccelerator),
        )
        every = epochs_between(proof, training, trainer.max_epochs or -1)
        trainer.check_val_every_n_epoch = every
        if every > 1 and trainer.is_global_zero:
            log.info(
                "validating every %d epochs: bounds take about %.3g s, an epoch of training %.3g "
                "s; set trainer.check_val_every_n_epoch for another number",
                *(every, proof, training),
            )
