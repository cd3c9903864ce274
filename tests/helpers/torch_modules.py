"""Every class of torch that is covered, with the shape of its inputs."""

from collections.abc import Callable

from torch import nn

# Covered classes, also several times with other options.
MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear on rows": (lambda: nn.Linear(4, 3), (2, 4)),
    "Conv1d": (lambda: nn.Conv1d(2, 3, 3, 2, 1), (2, 7)),
    "Conv1d same": (lambda: nn.Conv1d(2, 2, 3, padding="same", groups=2), (2, 7)),
    "Conv2d": (lambda: nn.Conv2d(2, 4, 3, 2, 1, groups=2), (2, 7, 6)),
    "Conv2d same": (lambda: nn.Conv2d(2, 4, (3, 5), padding="same", dilation=2), (2, 7, 9)),
    "Conv2d valid": (lambda: nn.Conv2d(2, 4, 3, padding="valid"), (2, 7, 6)),
    "Conv2d reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 4, 4)),
    "Conv2d replicate": (
        lambda: nn.Conv2d(2, 3, 3, 2, padding=1, padding_mode="replicate"),
        (2, 4, 5),
    ),
    "Conv2d circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 4, 4)),
    "Conv1d circular": (lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (2, 6)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(2, 3, 4, 2, 1, 1), (2, 5)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, padding=1, groups=2), (4, 5, 6)),
    "ConvTranspose2d strided": (lambda: nn.ConvTranspose2d(2, 3, 2, 2), (2, 3, 4)),
    "ConvTranspose2d cropped": (
        lambda: nn.ConvTranspose2d(4, 2, (3, 4), (2, 3), (1, 2), (1, 2), groups=2, bias=False),
        (4, 3, 4),
    ),
    "ConvTranspose2d dilated": (lambda: nn.ConvTranspose2d(2, 3, 3, 2, dilation=3), (2, 3, 3)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), (4,)),
    "BatchNorm1d rows": (lambda: nn.BatchNorm1d(4), (4, 5)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3, affine=False), (3, 4, 5)),
    "Flatten": (lambda: nn.Flatten(2), (2, 3, 4)),
    "Unflatten": (lambda: nn.Unflatten(1, (2, 3)), (6,)),
    "Identity": (lambda: nn.Identity(), (4,)),
    "Dropout": (lambda: nn.Dropout(0.5), (4,)),
    "Dropout1d": (lambda: nn.Dropout1d(0.5), (2, 4)),
    "Dropout2d": (lambda: nn.Dropout2d(0.5), (2, 4, 4)),
    "AlphaDropout": (lambda: nn.AlphaDropout(0.5), (4,)),
    "ReLU": (lambda: nn.ReLU(inplace=True), (4,)),
    "ReLU6": (lambda: nn.ReLU6(), (4,)),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.1), (4,)),
    "LeakyReLU steep": (lambda: nn.LeakyReLU(-2.5), (4,)),
    "PReLU": (lambda: nn.PReLU(), (4,)),
    "PReLU channels": (lambda: nn.PReLU(3, init=1.75), (3, 2, 2)),
    "RReLU": (lambda: nn.RReLU(), (4,)),
    "ELU": (lambda: nn.ELU(1.5), (4,)),
    "CELU": (lambda: nn.CELU(0.5), (4,)),
    "SELU": (lambda: nn.SELU(), (4,)),
    "SiLU": (lambda: nn.SiLU(), (4,)),
    "GELU": (lambda: nn.GELU(), (4,)),
    "GELU tanh": (lambda: nn.GELU("tanh"), (4,)),
    "Hardtanh": (lambda: nn.Hardtanh(-0.5, 2), (4,)),
    "Hardsigmoid": (lambda: nn.Hardsigmoid(), (4,)),
    "Hardswish": (lambda: nn.Hardswish(), (4,)),
    "Sigmoid": (lambda: nn.Sigmoid(), (4,)),
    "LogSigmoid": (lambda: nn.LogSigmoid(), (4,)),
    "Tanh": (lambda: nn.Tanh(), (4,)),
    "Tanhshrink": (lambda: nn.Tanhshrink(), (4,)),
    "Softplus": (lambda: nn.Softplus(2.0, 30), (4,)),
    "Softshrink": (lambda: nn.Softshrink(0.25), (4,)),
    "Softsign": (lambda: nn.Softsign(), (4,)),
    "AvgPool2d borders": (
        lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        (2, 6, 5),
    ),
    "AvgPool1d": (lambda: nn.AvgPool1d(3, 2, 1), (2, 7)),
    "AvgPool2d": (lambda: nn.AvgPool2d(3, 2, 1), (2, 7, 8)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((1, 2)), (3, 5, 4)),
    "AdaptiveAvgPool2d uneven": (lambda: nn.AdaptiveAvgPool2d((2, 3)), (2, 5, 4)),
    "MaxPool1d": (lambda: nn.MaxPool1d(3, 2, 1), (2, 7)),
    "MaxPool2d": (lambda: nn.MaxPool2d((3, 2), 2, (1, 0)), (2, 5, 6)),
    "MaxPool2d disjoint": (lambda: nn.MaxPool2d(2), (2, 4, 4)),
    "LPPool2d": (lambda: nn.LPPool2d(2, 2), (2, 4, 6)),
    "ZeroPad2d": (lambda: nn.ZeroPad2d((1, 2, 0, 3)), (2, 3, 4)),
    "ConstantPad1d": (lambda: nn.ConstantPad1d((1, 2), 0.75), (2, 3)),
    "ConstantPad2d": (lambda: nn.ConstantPad2d(1, 0.0), (2, 3, 4)),
    "ReflectionPad1d": (lambda: nn.ReflectionPad1d(2), (2, 4)),
    "ReflectionPad2d": (lambda: nn.ReflectionPad2d((1, 2, 0, 1)), (2, 3, 4)),
    "ReplicationPad2d": (lambda: nn.ReplicationPad2d(1), (2, 3, 4)),
    "CircularPad2d": (lambda: nn.CircularPad2d(1), (2, 3, 4)),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), (8, 2, 3)),
    "PixelUnshuffle": (lambda: nn.PixelUnshuffle(2), (2, 4, 6)),
    "ChannelShuffle": (lambda: nn.ChannelShuffle(2), (4, 2, 2)),
    "Upsample": (lambda: nn.Upsample(scale_factor=2), (2, 2, 3)),
    "Upsample sizes": (lambda: nn.Upsample((5, 4)), (2, 2, 3)),
    "UpsamplingNearest2d": (lambda: nn.UpsamplingNearest2d(scale_factor=3), (1, 2, 2)),
    "Upsample bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 3)),
    "UpsamplingBilinear2d": (lambda: nn.UpsamplingBilinear2d(scale_factor=2), (1, 2, 3)),
    "Unfold": (lambda: nn.Unfold(2, padding=1), (2, 3, 3)),
}


def drawn(make: Callable[[], nn.Module]) -> nn.Module:
    """A module in evaluation mode with running statistics and weights drawn at random."""
    module = make().double().eval()
    for m in module.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            assert m.running_mean is not None
            assert m.running_var is not None
            m.running_mean.normal_()
            m.running_var.uniform_(0.25, 2)
            if m.affine:
                nn.init.normal_(m.weight)
                nn.init.normal_(m.bias)
    return module
