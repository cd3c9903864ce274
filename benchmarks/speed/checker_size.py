"""Processor time and memory of ``robustcert-check`` on a folder of a LiResNet of random weights.

    python -m benchmarks.speed.checker_size --width 512 --depth 2 --samples 4

The stem halves 3x32x32 inputs to maps of 16x16, whose trunk has ``--depth`` 3x3 convolutions of
``--width`` channels; weights and inputs are random, and every input is labelled as predicted.
Options after ``--`` are the checker's.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.soundness.forgeries import LAYERS, write
from robustcert.activations import GroupSort
from robustcert.certificate.samples import CertifiedSplit
from robustcert.certifiers import LipschitzCertifier
from robustcert.check import supervised
from robustcert.data import to_unit
from robustcert.models import LiResNet
from robustcert.network.fold import fold_network

# Seconds between two looks at the memory of the check's processes.
PAUSE = 0.2


def build(folder: Path, width: int, depth: int, dense_width: int, samples: int) -> None:
    """Write the certificate folder of a network of random weights."""
    torch.manual_seed(0)
    model = LiResNet(
        (3, 32, 32),
        10,
        width=width,
        depth=depth,
        layer=LAYERS,
        activation=GroupSort,
        dense_width=dense_width,
    )
    network = fold_network(model, (3, 32, 32))
    inputs = torch.randint(0, 256, (samples, 3, 32, 32), dtype=torch.uint8)
    certifier = LipschitzCertifier()
    found = certifier.certify(network, to_unit(inputs))
    split = CertifiedSplit(inputs, found.prediction.clone(), torch.arange(len(inputs)), found)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, network, split, certifier)


def resident(session: int) -> int:
    """Bytes in memory of the processes of a session; what they share counts for each."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            total += int(fields[21]) * resource.getpagesize()
    return total


def measure(folder: Path, options: Sequence[str]) -> int:
    """Check a folder and print what it took; the exit status is the check's."""
    begun, peak = time.monotonic(), 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(supervised([str(folder), *options]), start_new_session=True) as process:
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(PAUSE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"status {process.returncode}: {seconds:.1f} s of processor time, "
        f"{time.monotonic() - begun:.1f} s of the clock, {peak / 1e6:.0f} MB in memory at most"
    )
    return process.returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a folder, unless it is there, and check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--dense-width", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where to keep it (default: nowhere)")
    given = sys.argv[1:] if arguments is None else list(arguments)
    end = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:end])
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "certificate.json").exists():
            sizes = options.width, options.depth, options.dense_width, options.samples
            build(folder, *sizes)
        return measure(folder, given[end + 1 :])


if __name__ == "__main__":
    sys.exit(main())
