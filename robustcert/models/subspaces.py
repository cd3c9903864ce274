"""Squared distances to affine subspaces: one smooth layer with an exact certificate."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.models.scores import TrainingScores, distance_scores
from robustcert.network.linear import Flatten
from robustcert.network.operation import Operation, constant
from robustcert.network.quadratics import Quadratics, quadratic_distance

# Number of rounds of Lloyd's algorithm, which puts the subspaces at clusters before training.
CLUSTER_ROUNDS = 10
# Number of halvings of the interval in which training seeks the multiplier of a distance.
TRAINING_HALVINGS = 14
# Maximum number of subspaces of a class whose distance training finds by duality.
MAX_CANDIDATES = 2
# Initial value of the directions' lengths, before the sigmoid.
INITIAL_RAW_LENGTH = 2.0


class Subspaces(nn.Module):
    r"""Logits that fall with the least squared distance to affine subspaces of each class.

    Class c has ``per_class`` subspaces :math:`p + \mathrm{span}\, W`, W with ``rank`` orthogonal
    columns of lengths in (0, 1), and the logit

    .. math:: f_c(x) = \lVert x \rVert^2 - \min_p \left( \lVert x - p \rVert^2
        - \lVert W^T (x - p) \rVert^2 - b_p \right) ,

    whose first term all classes share. With columns of length 1 and no shift b the bracket is the
    squared distance to the subspace; shorter ones forgive a move along them in part. Differences of
    two pieces are quadratics with eigenvalues in [-1, 1]; no global Lipschitz constant exists, and
    ``certifier=quadratic`` proves the radii. The layer takes inputs as they are: it has neither
    normalisation, activation nor head. :meth:`start_at` puts the subspaces at clusters of the data
    before training.

    Args:
        input_shape: Shape of one input, without the batch dimension.
        num_classes: Number of logits.
        per_class: Subspaces of each class.
        rank: Their dimension.

    Example:
        >>> model = Subspaces((2,), 2, per_class=1, rank=1)
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> model.start_at(x, torch.tensor([0, 0, 1, 1]))
        >>> model(x).argmax(1)
        tensor([0, 0, 1, 1])
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
        self.raw_length = nn.Parameter(torch.full((count, rank), INITIAL_RAW_LENGTH))
        self.shift = nn.Parameter(torch.zeros(count))
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def start_at(self, inputs: Tensor, labels: Tensor) -> None:
        """Put the subspaces at clusters of each class and along their main directions, once.

        A model that has been started, or loaded from a checkpoint of such a one, stays as it is.
        The random choices follow from torch's seed and leave its generator alone.

        Args:
            inputs: Shape ``(N, *input_shape)``.
            labels: Classes, shape ``(N,)``; those without enough examples keep random subspaces.
        """
        if self.started:
            return
        generator = torch.Generator().manual_seed(torch.initial_seed())
        rank = self.raw.shape[2]
        for c in range(self.num_classes):
            own = inputs[labels == c].flatten(1)
            if len(own) < self.per_class:
                continue
            centre = _clusters(own, self.per_class, generator)
            nearest = torch.cdist(own, centre).argmin(1)
            for j in range(self.per_class):
                noise = 1e-3 * torch.randn(
                    rank, own.shape[1], generator=generator, dtype=own.dtype, device=own.device
                )
                rows = torch.cat([own[nearest == j] - centre[j], noise])
                directions = torch.linalg.svd(rows, full_matrices=False)[2][:rank]
                self.point[c * self.per_class + j] = centre[j]
                self.raw[c * self.per_class + j] = directions.T
        self.started.fill_(True)

    @property
    def basis(self) -> Tensor:
        """Orthonormal columns along those of W, shape ``(P, D, rank)``."""
        return torch.linalg.qr(self.raw)[0]

    @property
    def squared_length(self) -> Tensor:
        """Of the columns of W, shape ``(P, rank)``."""
        return self.raw_length.sigmoid().square()

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(N, C)``."""
        x = x.flatten(1)
        square, _, _ = self._squares(x, self.basis, x.dtype)
        least = square.view(len(x), self.num_classes, -1).amin(2)
        return x.square().sum(1, keepdim=True) - least

    def training_scores(self, x: Tensor) -> TrainingScores:
        """Minus the estimated distances to other classes as logits, with constants of 1."""
        return distance_scores(lambda y: self.distance_logits(x, y), self.num_classes, x.device)

    def distance_logits(self, x: Tensor, target: Tensor) -> Tensor:
        r"""Minus the estimated radius towards each class, 0 for the target; shape ``(N, C)``.

        The difference of the brackets of a subspace V of another class and of W, the target's best
        one, is :math:`f + g^T \delta + \delta^T A \delta` with :math:`A = W W^T - V V^T \succeq
        -V V^T`, so it is the radius of :func:`robustcert.network.quadratics.quadratic_distance` for
        :math:`-V V^T`, whose eigenvectors need no decomposition. Where another class is nearer, f
        and the radius are negative, and :math:`2 f / (g + \sqrt{g^2 + 4 \lvert f \rvert})`, for the
        eigenvalue -1 everywhere.
        """
        device = x.device.type
        # Nearly all of the work is in products with frames, the only ones that autocast is for.
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            return self._distance_logits(x.flatten(1).to(self.point.dtype), target, dtype)

    def _distance_logits(self, x: Tensor, target: Tensor, dtype: torch.dtype) -> Tensor:
        basis, length2 = self.basis, self.squared_length
        square, far, within = self._squares(x, basis, dtype)
        rows = torch.arange(len(x), dtype=torch.int64, device=x.device)
        group = square.view(len(x), self.num_classes, -1)
        own = target * self.per_class + group.detach()[rows, target].argmin(1)
        # Halves of gradients of brackets are (I - W W^T)(x - p).
        kept = (length2 * within)[rows, own]
        half = x - self.point[own] - torch.einsum("ndm,nm->nd", basis[own], kept)
        turned = _coordinates(half, basis, dtype)
        # Inner products of the halves, without those of all subspaces.
        inner = (x * half).sum(1, keepdim=True) - half @ self.point.T
        inner = inner - (turned * within * length2).sum(2)
        size2 = far - (within.square() * length2 * (2 - length2)).sum(2)
        ahead = square - square[rows, own][:, None]
        gradient2 = 4 * (size2 + size2[rows, own][:, None] - 2 * inner).clamp_min(1e-9)
        closed = 2 * ahead / (gradient2.sqrt() + (gradient2 + 4 * ahead.abs()).sqrt())
        # Of a class, those that are nearest by the closed form.
        count = min(MAX_CANDIDATES, self.per_class)
        found = closed.detach().view(group.shape).topk(count, dim=2, largest=False)[1]
        every = torch.arange(len(basis), dtype=torch.int64, device=x.device)
        first = every[:: self.per_class]
        rival = (found + first[:, None]).flatten(1)
        within, turned = (v[rows[:, None], rival] for v in (within, turned))
        along = 2 * ((1 - length2[rival]) * within - turned)
        across = (gradient2.gather(1, rival) - along.square().sum(2)).clamp_min(0)
        radius = quadratic_distance(
            ahead.gather(1, rival), along, across, -length2[rival], TRAINING_HALVINGS
        )
        radius = torch.where(radius > 1e-4, radius, closed.gather(1, rival))
        nearest = radius.view(len(x), self.num_classes, -1).amin(2)
        return -nearest.scatter(1, target[:, None], 0.0)

    def _squares(
        self, x: Tensor, basis: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Brackets and squared distances to points ``(N, P)``, coordinates ``(N, P, rank)``."""
        origin = torch.einsum("pdm,pd->pm", basis, self.point)
        within = _coordinates(x, basis, dtype) - origin
        far = x.square().sum(1, keepdim=True) - 2 * x @ self.point.T + self.point.square().sum(1)
        forgiven = (within.square() * self.squared_length).sum(2)
        return far - forgiven - self.shift, far, within

    def fold(self) -> list[Operation]:
        """The quadratics with constant weights."""
        frame = self.basis * self.raw_length.sigmoid()[:, None]
        quadratics = Quadratics(
            constant(frame.mT),
            constant(torch.einsum("pdm,pd->pm", frame, self.point)),
            constant(2 * self.point),
            constant(self.shift - self.point.square().sum(1)),
            self.num_classes,
        )
        return [Flatten(), quadratics]


def _coordinates(x: Tensor, basis: Tensor, dtype: torch.dtype) -> Tensor:
    """Inner products ``(N, P, rank)``, by a product in another precision."""
    rows = basis.mT.flatten(0, 1)
    product = F.linear(x.to(dtype), rows.to(dtype)).to(x.dtype)
    return product.view(len(x), len(basis), -1)


def _clusters(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Centres of clusters, by Lloyd's algorithm from random points."""
    order = torch.randperm(len(points), generator=generator, dtype=torch.int64, device="cpu")
    centre = points[order[:count]].clone()
    for _ in range(CLUSTER_ROUNDS):
        nearest = torch.cdist(points, centre).argmin(1)
        for j in range(count):
            if (nearest == j).any():
                centre[j] = points[nearest == j].mean(0)
    return centre
