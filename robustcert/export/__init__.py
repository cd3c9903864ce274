"""A certified network as an ONNX graph that computes what is certified of its inputs as well."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustcert.export.model import to_onnx
    from robustcert.export.runtime import check_runtime

__all__ = ["check_runtime", "to_onnx"]


def __getattr__(name: str) -> object:
    # On first use: the command answers --help before torch is loaded.
    if name not in __all__:
        raise AttributeError(f"module 'robustcert.export' has no attribute {name!r}")
    from robustcert.export.model import to_onnx
    from robustcert.export.runtime import check_runtime

    return {"check_runtime": check_runtime, "to_onnx": to_onnx}[name]
