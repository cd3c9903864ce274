"""``python -m robustcert.export FOLDER FILE.onnx``: a certificate folder as an ONNX model."""

import argparse
import sys
from collections.abc import Sequence

from robustcert.export import to_onnx
from robustcert.predictor import DTYPES, load


def main(arguments: Sequence[str] | None = None) -> int:
    """Export, say what was written; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m robustcert.export",
        description="Write the network of a certificate as an ONNX model whose outputs are logits, "
        "label and certified radius.",
    )
    parser.add_argument("folder", help="a certificate folder, or a run's folder")
    parser.add_argument("file", help="the .onnx file to write")
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default="float64",
        help="arithmetic of the model, and so what its radius speaks of (default: float64)",
    )
    options = parser.parse_args(arguments)
    try:
        metadata = to_onnx(load(options.folder, dtype=options.dtype), options.file)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    lines = [options.file, "input x; outputs logits, label, radius"]
    lines += [f"{key.removeprefix('robustcert.')}: {value}" for key, value in metadata.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
