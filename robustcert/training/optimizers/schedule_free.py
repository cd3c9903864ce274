"""AdamW without a learning-rate schedule."""

from collections.abc import Iterable

from torch import nn

try:
    import schedulefree
except ImportError as error:
    raise ImportError(
        "ScheduleFreeAdamW needs schedulefree: pip install 'robustcert[optimizers]'"
    ) from error


class ScheduleFreeAdamW(schedulefree.AdamWScheduleFree):
    """AdamW whose averaged weights need no schedule; they are in place outside of training steps.

    Reference: Defazio et al., `The Road Less Scheduled <https://arxiv.org/abs/2405.15682>`_,
    NeurIPS 2024.

    Args:
        params: What to optimise.
        lr: Learning rate, constant after the warm-up.
        weight_decay: Decoupled weight decay.
        warmup_steps: Steps in which the rate rises linearly.
    """

    averages_weights = True

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float = 0.0025,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, warmup_steps=warmup_steps)
