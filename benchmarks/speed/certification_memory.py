"""Peak memory of certifying few and many streamed images.

    python -m benchmarks.speed.certification_memory --folder scratch --samples 2000 50000

Writes a folder of random JPEG images of 64 x 64 pixels (once), trains a tiny network on some for an
epoch, and certifies the test split's first so many images, each time in a process of its own.
Prints peak resident memory and time of every process. The network is of no use; what counts is that
the peak does not depend on the number of images.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
CLASSES = 10
SIDE = 64


def write(folder: Path, count: int) -> None:
    """``count`` images in all, as evenly as possible over the classes."""
    random = np.random.RandomState(0)
    for k in range(count):
        path = folder / f"class{k % CLASSES}" / f"{k:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            small = random.randint(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize((SIDE, SIDE)).save(path)


def peak(command: list[str]) -> tuple[float, float]:
    """Peak resident memory in MiB and seconds of a process that must succeed."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return usage.ru_maxrss / 1024, time.monotonic() - started


def main() -> None:
    """Write, train, certify, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--samples", type=int, nargs="+", default=[2000, 50000])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    images, run = options.folder / "images", options.folder / "run"
    write(images / "train", 600)
    write(images / "test", max(options.samples))
    checkpoint = run / "checkpoints" / "best.ckpt"
    if not checkpoint.exists():
        typed = ["dataset=image_folder", f"dataset.root={images}", "capacity=tiny", "certify=false"]
        typed += ["trainer.max_epochs=1", f"hydra.run.dir={run}"]
        typed += [f"loader.num_workers={options.workers}"]
        peak([sys.executable, str(ROOT / "train.py"), *typed])
    for count in options.samples:
        typed = [f"checkpoint={checkpoint}", f"samples={count}", "attack.samples=16"]
        typed += [f"batch_size={options.batch_size}", f"output={run / f'certificate-{count}'}"]
        memory, seconds = peak([sys.executable, str(ROOT / "certify.py"), *typed])
        print(f"{count:7d} images: peak {memory:7.1f} MiB, {seconds:7.1f} s")


if __name__ == "__main__":
    main()
