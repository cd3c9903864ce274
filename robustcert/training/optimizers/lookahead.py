"""Lookahead around any optimizer."""

from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import Optimizer

try:
    import pytorch_optimizer
except ImportError as error:
    raise ImportError(
        "Lookahead needs pytorch_optimizer: pip install 'robustcert[optimizers]'"
    ) from error


class Lookahead(pytorch_optimizer.Lookahead):
    r"""Every k steps of an optimizer, go back: :math:`\theta \leftarrow s + \alpha (\theta - s)`.

    s is where the last such point was. It becomes the new one.

    Reference: Zhang, Lucas, Hinton and Ba, `Lookahead Optimizer: k steps forward, 1 step back
    <https://arxiv.org/abs/1907.08610>`_, NeurIPS 2019.

    Args:
        params: What to optimise.
        optimizer: Called with the parameters.
        k: Steps forward.
        alpha: Share of the way that is kept. In (0, 1).
    """

    averages_weights = True

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        k: int = 5,
        alpha: float = 0.5,
    ) -> None:
        super().__init__(optimizer(params), k=k, alpha=alpha)
