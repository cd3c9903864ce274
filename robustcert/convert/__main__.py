"""``python -m robustcert.convert SOURCE CHECKPOINT OUT``: a published checkpoint as a run."""

import argparse
import sys
from collections.abc import Sequence

from robustcert.convert import DATASETS, SOURCES
from robustcert.errors import typed
from robustcert.training.stage import loading


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert, say what was written; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=typed("convert"),
        description="Write the network of a published checkpoint as a run's folder, to be "
        "certified like a network that was trained here.",
    )
    parser.add_argument("source", choices=list(SOURCES), help="whose checkpoint it is")
    parser.add_argument("checkpoint", help="the file, as it was published")
    parser.add_argument("out", help="the run's folder to write")
    parser.add_argument(
        "--dataset",
        choices=list(DATASETS),
        help="what it was trained on, where the file does not say so (default: cifar10)",
    )
    options = parser.parse_args(arguments)
    with loading("loading torch"):
        from robustcert.convert import convert
    try:
        written = convert(options.source, options.checkpoint, options.out, dataset=options.dataset)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    sys.stdout.write(f"{written}\ncertify it by {typed('certify')} {options.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
