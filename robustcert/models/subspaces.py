"""Squared distances to affine subspaces: one smooth layer with an exact certificate."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustcert.plain import Flatten, Operation, constant
from robustcert.quadric import Quadratics

# Examples of a class from which its subspaces start, and rounds of Lloyd's algorithm.
STARTING, ROUNDS = 2000, 10


class Subspaces(nn.Module):
    r"""Logits that fall with the least squared distance to affine subspaces of each class.

    Class c has ``per_class`` subspaces :math:`p + \mathrm{span}\, W`, W with ``rank`` orthonormal
    columns, and the logit

    .. math:: f_c(x) = \lVert x \rVert^2 - \min_p \mathrm{dist}(x, p + \mathrm{span}\, W)^2 ,

    whose first term all classes share. Differences of two of its pieces are quadratics with
    eigenvalues in [-1, 1]; no global Lipschitz constant exists, and ``certifier=quadric`` proves
    the radii. The layer takes inputs as they are: it has neither normalisation, activation nor
    head. :meth:`start_at` puts the subspaces at clusters of the data before training.

    Args:
        input_shape: Shape of one input, without the batch dimension.
        num_classes: Number of logits.
        per_class: Subspaces of each class.
        rank: Their dimension.
    """

    started: Tensor

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, *, per_class: int, rank: int
    ) -> None:
        super().__init__()
        features = math.prod(input_shape)
        if per_class < 1 or not 1 <= rank <= features:
            raise ValueError(
                f"expected at least 1 subspace of a rank from 1 to {features}, got {per_class} of "
                f"{rank}: set model.per_class and model.rank"
            )
        self.num_classes = num_classes
        self.per_class = per_class
        count = num_classes * per_class
        self.point = nn.Parameter(torch.rand(count, features))
        self.raw = nn.Parameter(torch.randn(count, features, rank))
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def start_at(self, inputs: Tensor, labels: Tensor) -> None:
        """Put the subspaces at clusters of each class and along their main directions, once.

        A model that has been started, or loaded from a checkpoint of such a one, stays as it is.

        Args:
            inputs: Shape ``(N, *input_shape)``.
            labels: Classes, shape ``(N,)``; those without enough examples keep random subspaces.
        """
        if self.started:
            return
        rank = self.raw.shape[2]
        for c in range(self.num_classes):
            own = inputs[labels == c].flatten(1)
            if len(own) < self.per_class:
                continue
            centre = _clusters(own, self.per_class)
            nearest = torch.cdist(own, centre).argmin(1)
            for j in range(self.per_class):
                noise = 1e-3 * torch.randn(rank, own.shape[1])
                rows = torch.cat([own[nearest == j] - centre[j], noise])
                directions = torch.linalg.svd(rows, full_matrices=False)[2][:rank]
                self.point[c * self.per_class + j] = centre[j]
                self.raw[c * self.per_class + j] = directions.T
        self.started.fill_(True)

    @property
    def basis(self) -> Tensor:
        """Orthonormal columns, shape ``(P, D, rank)``."""
        return torch.linalg.qr(self.raw)[0]

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(N, C)``."""
        x = x.flatten(1)
        square, _ = self._squares(x, self.basis)
        least = square.view(len(x), self.num_classes, -1).amin(2)
        return x.square().sum(1, keepdim=True) - least

    def distance_logits(self, x: Tensor, target: Tensor) -> Tensor:
        r"""Minus the estimated radius towards each class, 0 for the target; shape ``(N, C)``.

        With f the difference of two squared distances and g the norm of its gradient, f falls by at
        most :math:`g s + s^2` within s, and so stays positive up to
        :math:`2 f / (g + \sqrt{g^2 + 4 f})`. Where another class is nearer, f and the radius are
        negative.
        """
        x, basis = x.flatten(1), self.basis
        square, within = self._squares(x, basis)
        rows = torch.arange(len(x), device=x.device)
        group = square.view(len(x), self.num_classes, -1)
        own = target * self.per_class + group.detach()[rows, target].argmin(1)
        residual = x - self.point[own] - torch.einsum("ndm,nm->nd", basis[own], within[rows, own])
        # Inner products of the residuals, without the residuals of all subspaces.
        inner = (x * residual).sum(1, keepdim=True) - residual @ self.point.T
        inner = inner - (torch.einsum("nd,pdm->npm", residual, basis) * within).sum(2)
        best = square[rows, own][:, None]
        gradient2 = 4 * (square + best - 2 * inner).clamp_min(1e-9)
        ahead = square - best
        radius = 2 * ahead / (gradient2.sqrt() + (gradient2 + 4 * ahead.abs()).sqrt())
        nearest = radius.view(len(x), self.num_classes, -1).amin(2)
        return -nearest.scatter(1, target[:, None], 0.0)

    def _squares(self, x: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances ``(N, P)``, and coordinates in the subspaces ``(N, P, rank)``."""
        origin = torch.einsum("pdm,pd->pm", basis, self.point)
        within = torch.einsum("nd,pdm->npm", x, basis) - origin
        far = x.square().sum(1, keepdim=True) - 2 * x @ self.point.T + self.point.square().sum(1)
        return (far - within.square().sum(2)).clamp_min(1e-12), within

    def fold(self) -> list[Operation]:
        """The quadratics with constant weights."""
        basis = self.basis
        quadratics = Quadratics(
            constant(basis.mT),
            constant(torch.einsum("pdm,pd->pm", basis, self.point)),
            constant(2 * self.point),
            constant(-self.point.square().sum(1)),
            self.num_classes,
        )
        return [Flatten(), quadratics]


def _clusters(points: Tensor, count: int) -> Tensor:
    """Centres of clusters, by Lloyd's algorithm from random points."""
    centre = points[torch.randperm(len(points))[:count]].clone()
    for _ in range(ROUNDS):
        nearest = torch.cdist(points, centre).argmin(1)
        for j in range(count):
            if (nearest == j).any():
                centre[j] = points[nearest == j].mean(0)
    return centre
