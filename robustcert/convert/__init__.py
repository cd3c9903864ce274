"""Published checkpoints of other projects, as networks of this one: docs/convert.md."""

from robustcert.convert.published import ConversionError
from robustcert.convert.run import DATASETS, SOURCES, convert

__all__ = ["DATASETS", "SOURCES", "ConversionError", "convert"]
