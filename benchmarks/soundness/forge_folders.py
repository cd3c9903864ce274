"""Forge certificate folders of all kinds and count those that the checker verifies: none may be.

    python -m benchmarks.soundness.forge_folders --folders 5000 --seed 0
    python -m benchmarks.soundness.forge_folders --folders 1000 --verified
    python -m benchmarks.soundness.forge_folders --folders 500 --metric

Honest folders of a dozen networks are made first, then each forged folder: one of the corruptions
of ``forgeries.py`` at random, or two of them one after the other, or bytes changed at random in a
file of the folder. What a corruption cannot do to a network is counted as not applicable, and a
folder that a corruption leaves as it was is drawn again. ``--verified`` has the verified checker
judge instead, of the networks that it knows, and counts where the other checker judges otherwise.
``--metric`` forges folders of networks in a metric on inputs.
"""

import argparse
import collections
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.soundness.forgeries import (
    EVERYWHERE,
    FLOAT_FILES,
    KINDS,
    METRICS,
    OF_NORMS,
    SOMEWHERE,
    WIDE,
    Corruption,
    Folder,
    certify_kind,
    data_of,
    per_tensor,
)
from benchmarks.soundness.metric_forgeries import OF_METRICS
from robustcert.check import UnreadableError, check

# Of one kind of forgery each; the rest of the corruptions are of the kind "claim or file".
GROUPS = {
    "accuracy": ("prediction", "correct", "undecided"),
    "data": ("data of",),
    "digest": ("digest",),
    "bounds": ("lowered", "bound for", "times the bounds"),
    "unread keys": ("nothing reads",),
    "metric": ("in a metric",),
}
Case = tuple[str, str, Corruption]
CLAIM = "certificate.json"
# Time after which the verified program is ended.
MAX_SECONDS = 60.0


def group_of(name: str) -> str:
    """The kind of a forgery."""
    return next(
        (g for g, words in GROUPS.items() if any(w in name for w in words)), "claim or file"
    )


# Networks that the verified checker knows.
DENSE_KINDS = ("relu", "maxmin", "Abs", "Householder", "NActivation")


def cases(kinds: Sequence[str] = KINDS) -> list[Case]:
    """Every corruption with every network that it fits: kind of network, name, corruption."""
    found = [
        (kind, name, corruption)
        for name, corruption in EVERYWHERE.items()
        for kind in kinds
        if not ("quadric" in kind and any(word in name for word in OF_NORMS))
    ]
    known = SOMEWHERE if kinds[0] not in METRICS else OF_METRICS
    found += [
        (kind, name, c) for (kind, name), c in known.items() if kinds is KINDS or kind in kinds
    ]
    return found + [(kind, name, c) for kind in kinds for name, c in per_tensor(kind)]


def damage(generator: random.Random) -> Callable[[Path], None]:
    """A change of up to four bytes in one file, without any digest put right."""

    def change(path: Path) -> None:
        file = path / generator.choice(FLOAT_FILES)
        content = bytearray(file.read_bytes())
        for _ in range(generator.randint(1, 4)):
            content[generator.randrange(len(content))] ^= generator.randint(1, 255)
        file.write_bytes(content)

    return change


def content_of(path: Path) -> dict[str, bytes]:
    """Names and bytes of a folder's files, certificate.json without its spaces."""
    found = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    try:
        found[CLAIM] = json.dumps(json.loads(found[CLAIM])).encode()
    except (ValueError, KeyError, RecursionError):
        return found
    return found


def other_data(folder: Folder) -> bool:
    """Whether the folder is compared with data other than its samples."""
    if folder.data is None:
        return False
    pairs = zip(folder.data, data_of(folder), strict=True)
    return not all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def forge(
    honest: dict[str, Path], root: Path, by_group: dict[str, list[Case]], generator: random.Random
) -> tuple[Path, str] | None:
    """A forged folder and its kind; None where the corruption does not fit the network."""
    shutil.rmtree(root, ignore_errors=True)
    group = generator.choice([*by_group, "bytes"])
    if group == "bytes":
        path = Path(shutil.copytree(honest[generator.choice(list(honest))], root / "forged"))
        damage(generator)(path)
        return path, group
    kind, _, corruption = generator.choice(by_group[group])
    others = [c for k, _, c in by_group["claim or file"] if k == kind]
    chosen = [corruption]
    if others and generator.random() < 0.3:
        chosen.append(generator.choice(others))
    path = Path(shutil.copytree(honest[kind], root / "forged"))
    before, folder = content_of(path), Folder(path)
    try:
        for change in chosen:
            change(folder)
        folder.save()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, StopIteration):
        return None
    same = content_of(path) == before and not other_data(folder)
    return None if same else (path, group)


def verified(path: Path, seed: int, program: bool = False) -> bool:
    """Whether the checker verifies the folder, with ``data.npz`` beside it if there is one."""
    data = [file for file in [path.with_name("data.npz")] if file.exists()]
    until = time.monotonic() + MAX_SECONDS if program else None
    try:
        return check(path, exact=6, seed=seed, data=data, verified_until=until).verified
    except UnreadableError:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Forge, check and count; 1 if a forged folder was verified or an honest one refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folders", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where to keep forged folders that are verified")
    parser.add_argument("--verified", action="store_true", help="by the verified checker")
    parser.add_argument("--metric", action="store_true", help="of networks in a metric")
    options = parser.parse_args(arguments)
    program = options.verified
    generator, started = random.Random(options.seed), time.perf_counter()
    kinds: Sequence[str] = DENSE_KINDS if program else KINDS
    kinds = tuple(METRICS) if options.metric else kinds
    by_group: dict[str, list[Case]] = collections.defaultdict(list)
    for case in cases(kinds):
        by_group[group_of(case[1])].append(case)
    forged: collections.Counter[str] = collections.Counter()
    passed: collections.Counter[str] = collections.Counter()
    skipped = otherwise = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        honest = {
            kind: certify_kind(root, kind) for kind in ((*KINDS, WIDE) if kinds is KINDS else kinds)
        }
        refused = [k for k, path in honest.items() if not verified(path, options.seed, program)]
        while sum(forged.values()) < options.folders:
            made = forge(honest, root / "forgery", by_group, generator)
            if made is None:
                skipped += 1
                continue
            path, group = made
            forged[group] += 1
            judged = verified(path, options.seed, program)
            otherwise += program and verified(path, options.seed) != judged
            if judged:
                passed[group] += 1
                if options.keep:
                    shutil.copytree(path.parent, options.keep / str(sum(forged.values())))
    for group in sorted(forged):
        print(f"{group:<16}{forged[group]:>6} forged {passed[group]:>4} verified")
    total, wrong = sum(forged.values()), sum(passed.values())
    print(f"{'all':<16}{total:>6} forged {wrong:>4} verified; {skipped} draws not applicable")
    if program:
        print(f"{otherwise} judged otherwise by the other checker")
    print(f"honest folders refused: {', '.join(refused) or 'none'}")
    print(f"{time.perf_counter() - started:.0f} s, seed {options.seed}")
    return int(wrong > 0 or bool(refused))


if __name__ == "__main__":
    sys.exit(main())
