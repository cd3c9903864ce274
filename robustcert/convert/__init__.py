"""Published checkpoints of other projects, as networks of this one: docs/convert.md."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustcert.convert.published import ConversionError
    from robustcert.convert.run import convert

__all__ = ["DATASETS", "SOURCES", "ConversionError", "convert"]

# Whose checkpoints are read, and the repository of the code that wrote them.
SOURCES = {
    "liresnet": "hukkai/liresnet",
    "bronet": "ntuaislab/BRONet",
    "lipconvnet": "ntuaislab/BRONet",
    "aol_mlp": "berndprach/scaling_up_Lipschitz_networks",
    "compared": "berndprach/1LipschitzLayersCompared",
}
# What they were trained on.
DATASETS: dict[str, dict[str, Any]] = {
    "cifar10": {"_target_": "robustcert.data.CIFAR10", "download": True},
    "cifar100": {"_target_": "robustcert.data.CIFAR100", "download": True},
    "tiny_imagenet": {"_target_": "robustcert.data.TinyImageNet", "download": True},
    "imagenet": {"_target_": "robustcert.data.ImageNet"},
}


def __getattr__(name: str) -> object:
    # On first use: the command answers --help before torch is loaded.
    if name not in __all__:
        raise AttributeError(f"module 'robustcert.convert' has no attribute {name!r}")
    from robustcert.convert.published import ConversionError
    from robustcert.convert.run import convert

    return {"ConversionError": ConversionError, "convert": convert}[name]
