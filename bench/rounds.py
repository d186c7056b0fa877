"""Contestants timed side by side: what else the machine does hits all alike, and ratios can be believed."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def paired_times(
    contestants: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """The seconds each contestant took in each round, after one run that is not timed; a round's order is random."""
    for run in contestants.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name in random.sample(list(contestants), len(contestants)):
            start = clock()
            contestants[name]()
            times[name].append(clock() - start)
    return times


def ratios(times: Sequence[float], measure: Sequence[float]) -> list[float]:
    """Of paired times, round by round, sorted."""
    return sorted(mine / other for mine, other in zip(times, measure, strict=True))


def median_ratio(times: Sequence[float], measure: Sequence[float]) -> float:
    """The median over the rounds of one contestant's time over another's."""
    return statistics.median(ratios(times, measure))
