"""The rows that are checked in integers although float64 proves them, and how many time allows.

Half of them, or one more, are drawn at random; the others have the least slack. They are checked in
turns, so that at least half of those done are random wherever time ends.
"""

import random
from collections.abc import Callable, Iterator
from itertools import chain, zip_longest

import numpy as np
from numpy.typing import NDArray

from robustcert.check.effort import Effort, Pace
from robustcert.check.fixed_point import Floats
from robustcert.check.forward.batches import EXACT_BYTES, batches
from robustcert.check.processes import answers
from robustcert.check.report import Report

# Number of these rows where none is asked for: as many as time allows, and the least number without
# which a folder is not verified.
MAX_EXACT, MIN_EXACT = 200, 8
# Maximum number of mismatches after which no further rows are checked.
MAX_EXACT_MISMATCHES = 40
# Seconds of a row from which on processes share the rows.
MIN_SHARED_SECONDS = 2.0

# Inputs of a selection of rows, as float64; and some rows with theirs.
Values = Callable[[slice | NDArray[np.int64]], Floats]
Batch = tuple[NDArray[np.int64], Floats]


def drawn_seed(seed: int | None) -> int:
    """A seed that nobody can foresee, from the operating system, unless there is one."""
    return random.SystemRandom().getrandbits(32) if seed is None else seed


def in_turns(slack: Floats, rows: list[int], count: int, seed: int) -> list[int]:
    """Some of the rows: in turns one at random and the one that is left with the least slack.

    Args:
        slack: Slack of every row.
        rows: Those to choose from.
        count: How many, at most.
        seed: Seed of what is random.
    """
    count = min(count, len(rows))
    places = random.Random(seed).sample(range(len(rows)), (count + 1) // 2)
    at_random = [rows[place] for place in places]
    rest = np.setdiff1d(np.array(rows, np.int64), np.array(at_random, np.int64))
    tightest = rest[np.argsort(slack[rest], kind="stable")][: count - len(at_random)].tolist()
    pairs = zip_longest(at_random, tightest)
    return [row for row in chain.from_iterable(pairs) if row is not None]


def are_shared(seconds_each: float) -> bool:
    """Whether processes share rows of which each takes so long."""
    return seconds_each >= MIN_SHARED_SECONDS


def check_in_turn(
    order: list[int],
    values: Values,
    bytes_each: int,
    seconds_each: float,
    effort: Effort,
    check: Callable[[Batch], Report],
    report: Report,
) -> int:
    """Check rows batch by batch, as long as there is time and they hold; returns how many were.

    Args:
        order: The rows, in the order in which they are checked.
        values: Inputs of a selection of rows.
        bytes_each: Memory of the check of a row.
        seconds_each: Its time, until it is measured.
        effort: When no further batch is begun, and how many processes share large rows.
        check: What is found of a batch; it can be pickled.
        report: Where mismatches are added; no batch is begun after MAX_EXACT_MISMATCHES of them.
    """
    processes = effort.processes if are_shared(seconds_each) else 1
    every = [
        np.array(order[part], np.int64) for part in batches(len(order), bytes_each, EXACT_BYTES)
    ]
    pace, done = Pace(seconds_each, effort, processes), 0

    def begun() -> Iterator[Batch]:
        for batch in every:
            if len(report.mismatches) > MAX_EXACT_MISMATCHES or not pace.begins(len(batch)):
                return
            yield batch, values(batch)

    for batch, found in zip(every, answers(check, begun(), processes), strict=False):
        for message in found.mismatches:
            report.expect(False, message)
        report.more += found.more
        pace.end(len(batch))
        done += len(batch)
    return done


def asked_share(exact: int | None, rows: int) -> tuple[int, int]:
    """How many of so many rows are to be checked, and the least number that verifies a folder.

    Args:
        exact: The number asked for; None for as many as time allows.
        rows: Number of rows to choose from.
    """
    most, least = (MAX_EXACT, MIN_EXACT) if exact is None else (exact, exact)
    return min(most, rows), min(least, rows)


def note_share(
    done: list[int],
    chosen: list[int],
    least: int,
    doubtful: list[int],
    seed: int,
    table: str,
    report: Report,
) -> None:
    """Note which rows of a table were evaluated in integers, and for which there was no time.

    Args:
        done: Rows that were, those that float64 leaves open first.
        chosen: The rows of the share.
        least: Least number of them that verifies a folder.
        doubtful: All rows that float64 leaves open.
        seed: Seed of the share.
        table: Name of the table.
        report: Where to note it.
    """
    left = doubtful[len(done) :]
    share = len({*chosen} & {*done})
    report.note(
        "exact",
        f"{len(done)} samples in exact arithmetic: {share} of {len(chosen)} asked for (seed "
        f"{seed}), {len(doubtful) - len(left)} of {len(doubtful)} that float64 leaves open",
    )
    if report.mismatches:
        return
    if left:
        report.untried.append(
            f"{len(left)} rows that float64 leaves open, from {table} line {left[0] + 2} on"
        )
    if share < least:
        report.untried.append(f"{least - share} more samples in exact arithmetic")
