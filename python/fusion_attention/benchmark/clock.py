"""A fair clock: pieces of work take turns in one process, so a slow moment hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

ROUNDS_AT_LEAST = 3


def take_turns(
    runs: Sequence[Callable[[], object]],
    seconds: float,
    shortest: float = 0.0,
) -> list[list[float]]:
    """Runs each piece of work in turn for so many seconds, and at least three times.

    Args:
        runs: The pieces of work. Each is run once before the clock starts.
        seconds: How long all of them together may take.
        shortest: A piece of fewer seconds is run so often in a slice, and the slice is their mean.

    Returns:
        The seconds of each slice, for each piece of work.

    Example:
        >>> ours, theirs = take_turns([lambda: 1, lambda: 2], seconds=0)
        >>> len(ours), len(theirs)
        (3, 3)
    """
    times: list[list[float]] = [[] for _ in runs]
    repeats = []
    for run in runs:
        run()
        repeats.append(max(1, round(shortest / _seconds(run, 1))) if shortest else 1)
    end = time.perf_counter() + seconds
    while len(times[0]) < ROUNDS_AT_LEAST or time.perf_counter() < end:
        for run, repeat, slices in zip(runs, repeats, times, strict=True):
            slices.append(_seconds(run, repeat))
    return times


def _seconds(run: Callable[[], object], repeat: int) -> float:
    """The time of one run, as the mean of so many."""
    begin = time.perf_counter()
    for _ in range(repeat):
        run()
    return (time.perf_counter() - begin) / repeat
