"""``python -m robustcert.export FOLDER FILE.onnx``: a certificate folder as an ONNX model."""

import argparse
import sys
from collections.abc import Sequence

from robustcert.errors import typed
from robustcert.runs.permission import admit_working_folder, as_flags, packages


def main(arguments: Sequence[str] | None = None) -> int:
    """Export, say what was written; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=typed("export"),
        description="Write the network of a certificate as an ONNX model whose outputs are logits, "
        "label and certified radius; of a regression, the output and the ends of its interval.",
    )
    parser.add_argument("folder", help="a certificate folder, a run's folder or a checkpoint")
    parser.add_argument("file", help="the .onnx file to write")
    parser.add_argument(
        "--dtype",
        choices=("float64", "float32"),
        default="float64",
        help="arithmetic of the model, and so what its radius or interval speaks of (default: "
        "float64)",
    )
    parser.add_argument(
        "--test-runtime",
        type=int,
        metavar="N",
        help="test the installed onnxruntime with products of known results, at the shapes of the "
        "model for N samples at once",
    )
    parser.add_argument(
        "--allow-targets",
        type=packages,
        default=[],
        metavar="[PACKAGE,...]",
        help="packages of yours whose classes the network may have",
    )
    return _export(parser.parse_args(as_flags(sys.argv[1:] if arguments is None else arguments)))


def _export(options: argparse.Namespace) -> int:
    # Not before the arguments are read: --help answers without torch.
    from robustcert.arithmetic.settings import UnsoundArithmeticError
    from robustcert.certificate.predictor import Predictor
    from robustcert.export import check_runtime, to_onnx
    from robustcert.runs.loading import load_any

    admit_working_folder(options.allow_targets)
    tested = 0
    try:
        allowed = options.allow_targets
        certified = load_any(options.folder, dtype=options.dtype, allow_targets=allowed)
        metadata = to_onnx(certified, options.file)
        if options.test_runtime is not None:
            tested = check_runtime(options.file, batch_size=options.test_runtime)
    except (ValueError, OSError, UnsoundArithmeticError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    classes = "input x; outputs logits, label, radius"
    interval = "inputs x, radius; outputs prediction, lower, upper"
    lines = [options.file, classes if isinstance(certified, Predictor) else interval]
    if options.test_runtime is not None:
        lines += [
            f"onnxruntime on this machine's CPU: {tested} shapes of products tested for "
            f"{options.test_runtime} samples, evaluated as IEEE 754 asks for"
        ]
    lines += [f"{key.removeprefix('robustcert.')}: {value}" for key, value in metadata.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
