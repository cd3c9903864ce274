"""LiResNet: a trunk of convolutions of one size between a stem and a dense neck."""

from collections.abc import Callable, Sequence

from torch import nn

from robustcert.models.classifier import Classifier, check_sizes
from robustcert.models.head import Head
from robustcert.models.layer_family import LayerFamily
from robustcert.models.stack import Stack


class LiResNet(Classifier):
    """Stem, ``depth`` 3x3 convolutions of ``width`` channels, neck, dense layers, linear head.

    The layers say which network it is. With linear residual convolutions it is the original; with
    centred ones and with orthogonal patches and dense layers it is the one known as LiResNet++;
    with block reflectors for convolutions it is BRONet. An activation follows every layer, also the
    neck's convolution, where the latter two have none.

    Reference: Hu, Zou, Wang, Leino and Fredrikson, `Unlocking Deterministic Robustness
    Certification on ImageNet <https://arxiv.org/abs/2301.12549>`_, NeurIPS 2023; Hu, Leino, Wang
    and Fredrikson, `A Recipe for Improved Certifiable Robustness
    <https://arxiv.org/abs/2310.02513>`_, ICLR 2024; Lai et al., `Enhancing Certified Robustness via
    Block Reflector Orthogonal Layers <https://arxiv.org/abs/2505.15174>`_, ICML 2025.

    Args:
        input_shape: ``(C, H, W)`` of one input.
        num_classes: Number of logits.
        width: Channels of stem and trunk.
        depth: Convolutions of the trunk.
        layer: Layers of the trunk and of the dense part.
        activation: Called as ``activation(num_features)``.
        stem: Convolution of the stem; that of ``layer`` by default.
        stem_kernel: Side of its kernel; with ``stem_stride`` the same, it cuts the image in
            patches.
        stem_stride: Its stride.
        neck_channels: Outputs of the neck's convolution, 4x4 with stride 4; twice ``width`` by
            default.
        dense_width: Features after the neck; four times ``width`` by default.
        dense_depth: Dense layers after the neck.
        normalize_head: Whether the head's rows have unit norm.
        mean: Input mean, one value or one per channel.
        std: Input scale, one value or one per channel.

    Example:
        >>> family = LayerFamily(dense=CholeskyLinear, conv=LiResConv2d)
        >>> model = LiResNet((1, 8, 8), 3, width=4, depth=1, layer=family, activation=GroupSort)
        >>> model(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        width: int,
        depth: int,
        layer: LayerFamily,
        activation: Callable[[int], nn.Module],
        stem: Callable[..., nn.Module] | None = None,
        stem_kernel: int = 5,
        stem_stride: int = 2,
        neck_channels: int | None = None,
        dense_width: int | None = None,
        dense_depth: int = 0,
        normalize_head: bool = True,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        check_sizes(width, depth)
        if dense_depth < 0:
            raise ValueError(
                f"expected a dense_depth of at least 0, got {dense_depth}: set model.dense_depth"
            )
        dense_width = 4 * width if dense_width is None else dense_width
        stack = Stack(input_shape, activation, mean=mean, std=std, images="LiResNet")
        convolve(
            stack,
            width,
            depth,
            layer.conv,
            stem=stem or layer.conv,
            stem_kernel=stem_kernel,
            stem_stride=stem_stride,
            neck_channels=neck_channels or 2 * width,
        )
        for _ in range(1 + dense_depth):
            stack.connect(layer.dense, dense_width)
            stack.activate()
        super().__init__(stack.build(), Head(stack.features, num_classes, normalize=normalize_head))


def convolve(
    stack: Stack,
    width: int,
    depth: int,
    conv: Callable[..., nn.Module],
    *,
    stem: Callable[..., nn.Module],
    stem_kernel: int,
    stem_stride: int,
    neck_channels: int,
) -> None:
    """Append stem, trunk and neck, each with an activation, and a flattening."""
    _check_stem(stem_kernel, stem_stride)
    padding = (stem_kernel - stem_stride + 1) // 2
    stack.convolve(stem, width, stem_kernel, stride=stem_stride, padding=padding)
    stack.activate()
    for _ in range(depth):
        stack.convolve(conv, width, 3, padding=1)
        stack.activate()
    # Smaller maps than the papers' are read as one patch.
    patch = min(4, *stack.size)
    stack.convolve(conv, neck_channels, patch, stride=patch)
    stack.activate()
    stack.flatten()


def _check_stem(kernel: int, stride: int) -> None:
    if not kernel >= stride >= 1:
        raise ValueError(
            f"expected a stem that reads every pixel, got kernel {kernel} and stride {stride}: set "
            "model.stem_kernel to at least model.stem_stride"
        )
