"""Muon for weight matrices, AdamW for what is no matrix."""

from collections.abc import Iterable

from torch import nn

try:
    import pytorch_optimizer
except ImportError as error:
    raise ImportError(
        "Muon needs pytorch_optimizer: pip install 'robustcert[optimizers]'"
    ) from error


class Muon(pytorch_optimizer.Muon):
    r"""Momentum whose steps are orthogonalised: :math:`W \leftarrow W - \eta\, U V^\top`.

    :math:`U S V^\top` is the momentum of the weight's gradient, with a kernel as the matrix of its
    outputs; the orthogonal factor comes from five Newton-Schulz steps. Parameters with fewer than
    two dimensions are AdamW's.

    Reference: Jordan et al., `Muon: an optimizer for hidden layers in neural networks
    <https://kellerjordan.github.io/posts/muon/>`_, 2024.

    Args:
        params: What to optimise.
        lr: Learning rate of weights with two dimensions or more.
        adamw_lr: Learning rate of all other parameters.
        momentum: Momentum factor.
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float = 0.02,
        adamw_lr: float = 0.003,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        given = list(params)
        parts = {kind: [p for p in given if (p.ndim >= 2) == kind] for kind in (True, False)}
        groups = [{"params": part, "use_muon": kind} for kind, part in parts.items() if part]
        super().__init__(
            groups,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            adamw_lr=adamw_lr,
            adamw_wd=weight_decay,
        )
