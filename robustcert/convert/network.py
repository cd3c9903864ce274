"""A network under conversion: layers of this package with the constants of another's."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Node = dict[str, Any]

# Orders of features in which pairs are sorted elsewhere, as `Converted.sort` takes them.
# Here feature 2i becomes the smaller and 2i + 1 the larger of the two.


def halves(features: int) -> Tensor:
    """Pairs (i, i + features / 2), of which the first becomes the larger."""
    first = torch.arange(features // 2, dtype=torch.int64, device="cpu")
    return torch.stack([first + features // 2, first], 1).flatten()


def neighbours(features: int) -> Tensor:
    """Pairs (2i, 2i + 1), of which the first becomes the larger."""
    first = torch.arange(0, features, 2, dtype=torch.int64, device="cpu")
    return torch.stack([first + 1, first], 1).flatten()


def identity(features: int) -> Tensor:
    """The identity matrix, float64."""
    return torch.eye(features, dtype=torch.float64, device="cpu")


RELU = {"_target_": "robustcert.activations.ReLU", "_partial_": True}
# Terms, after the identity, of the exponential as SOC evaluates it.
EXPONENTIAL_TERMS = 12


@dataclass(eq=False)
class Converted:
    """Layers in the order in which they are applied, each with its state.

    Weights are given for features in the order of the original network. Sorted pairs lie elsewhere
    here, so features are reordered on the way: feature k is the original's ``order[k]``.

    Attributes:
        shape: Shape ``(C, H, W)`` or ``(C,)`` of what the last layer gives.
        mean: Input mean, one value per channel.
        scale: Input scale.
        order: See above.
        nodes: The layers, as a configuration describes them.
        states: Their parameters and buffers, by name within the layer.
        head: Weight and bias of the head.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    scale: float = 1.0
    order: Tensor = field(init=False)
    nodes: list[Node] = field(default_factory=list)
    states: list[dict[str, Tensor]] = field(default_factory=list)
    head: tuple[Tensor, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.order = torch.arange(self.shape[0], dtype=torch.int64, device="cpu")

    def add(self, target: str, state: dict[str, Tensor] | None = None, **options: Any) -> None:
        """Append a layer that keeps the shape and the order of features."""
        self.nodes.append({"_target_": f"robustcert.{target}", **options})
        self.states.append(state or {})

    def convolve(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: int = 1,
        padding: int = 0,
        order: Tensor | None = None,
    ) -> None:
        """Append a zero-padded convolution, its outputs in a given order."""
        channels, (height, width) = weight.shape[0], self.shape[1:]
        weight, shift = self._reordered(weight, bias, order)
        kernel = weight.shape[-1]
        self.add(
            "layers.UnconstrainedConv2d",
            {"weight": weight, "bias": shift},
            in_channels=self.shape[0],
            out_channels=channels,
            kernel_size=kernel,
            stride=stride,
            padding=padding,
            input_size=[height, width],
        )
        sides = ((n + 2 * padding - kernel) // stride + 1 for n in (height, width))
        self.shape = (channels, *sides)

    def convolve_circularly(
        self,
        weight: Tensor,
        bias: Tensor,
        *,
        order: Tensor,
        padding: int = 0,
        margin: int = 0,
    ) -> None:
        """Append a convolution on a torus, its outputs in a given order."""
        weight, bias = self._reordered(weight, bias, order)
        self.add(
            "layers.UnconstrainedCircularConv2d",
            {"weight": weight, "bias": bias},
            in_channels=self.shape[0],
            out_channels=len(weight),
            kernel_size=list(weight.shape[2:]),
            padding=padding,
            input_size=list(self.shape[1:]),
            margin=margin,
        )
        self.shape = (len(weight), *self.shape[1:])

    def subtract(self, weight: Tensor, bias: Tensor, scale: Tensor) -> None:
        """Append ``x -> x - W' (scale relu(W x + b))`` with a zero-padded convolution W."""
        channels, kernel = self.shape[0], weight.shape[-1]
        self.add(
            "layers.ScaledResidualConv2d",
            {"weight": weight[:, self.order], "bias": bias, "root": (scale / 2).sqrt()},
            in_channels=channels,
            out_channels=channels,
            kernel_size=kernel,
            padding=kernel // 2,
            input_size=list(self.shape[1:]),
            activation=RELU,
        )

    def turn(self, weight: Tensor, bias: Tensor) -> None:
        """Append the first terms of the exponential of a skew zero-padded convolution."""
        weight, bias = self._reordered(weight, bias, self.order)
        self.add(
            "layers.SkewSeriesConv2d",
            {"weight": weight, "bias": bias},
            channels=self.shape[0],
            kernel_size=weight.shape[-1],
            terms=EXPONENTIAL_TERMS,
        )

    def enclose(
        self, inner: Tensor, outer: Tensor, multiplier: Tensor, bias: Tensor, *, order: Tensor
    ) -> None:
        """Append ``x -> outer' relu(inner x + b)``, its outputs in a given order.

        Both are dense, or kernels as large as the map; see ``layers.FreeSandwich``.
        """
        channels = len(inner)
        self.add(
            "layers.FreeSandwich",
            {
                "inner": inner[:, self.order],
                "outer": outer[:, order],
                "multiplier": multiplier,
                "bias": bias,
            },
            in_features=self.shape[0],
            out_features=channels,
            input_size=list(self.shape[1:]) or None,
            activation=RELU,
        )
        self.order = order
        self.shape = (channels, *self.shape[1:])

    def connect(self, weight: Tensor, bias: Tensor, *, order: Tensor | None = None) -> None:
        """Append a dense layer, its outputs in a given order."""
        weight, bias = self._reordered(weight, bias, order)
        self.add(
            "layers.UnconstrainedLinear",
            {"weight": weight, "bias": bias},
            in_features=self.shape[0],
            out_features=len(weight),
        )
        self.shape = (len(weight),)

    def sort(self) -> None:
        """Append the activation that sorts pairs of neighbours."""
        self.add("activations.GroupSort", num_features=self.shape[0])

    def reorder(self, order: Tensor) -> None:
        """Append a permutation of channels, after which feature k is the original's ``order[k]``.

        It is a convolution with one weight of 1 for every channel.
        """
        self.convolve(identity(self.shape[0])[..., None, None], order=order)

    def restore_order(self) -> None:
        """Put the features in the order of the original, where they are in another."""
        order = torch.arange(self.shape[0], dtype=torch.int64, device="cpu")
        if not torch.equal(self.order, order):
            self.reorder(order)

    def flatten(self) -> None:
        """Append a flattening of the map."""
        self.nodes.append({"_target_": "torch.nn.Flatten"})
        self.states.append({})
        size = 1
        for side in self.shape[1:]:
            size *= side
        places = torch.arange(size, dtype=torch.int64, device="cpu")
        self.order = (self.order[:, None] * size + places).flatten()
        self.shape = (self.shape[0] * size,)

    def end(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Set the head."""
        self.head = self._reordered(weight, bias, None)

    def _reordered(
        self, weight: Tensor, bias: Tensor | None, order: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        weight = weight[:, self.order]
        if bias is None:
            bias = torch.zeros(len(weight), dtype=torch.float64, device="cpu")
        if order is None:
            order = torch.arange(len(weight), dtype=torch.int64, device="cpu")
        self.order = order
        return weight[order], bias[order]

    def model(self) -> Node:
        """The network, as a configuration describes it."""
        return {
            "_target_": "robustcert.models.Chain",
            "layers": self.nodes,
            "features": self.shape[0],
            "normalize_head": False,
            "mean": list(self.mean),
            "std": [self.scale],
        }

    def state(self) -> dict[str, Tensor]:
        """State of the network, in float32."""
        first = 1  # behind the normalisation
        named = {
            f"backbone.{first + place}.{name}": tensor
            for place, state in enumerate(self.states)
            for name, tensor in state.items()
        }
        named |= {"head.raw": self.head[0], "head.bias": self.head[1]}
        return {name: tensor.float().contiguous().clone() for name, tensor in named.items()}
