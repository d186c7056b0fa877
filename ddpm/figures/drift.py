"""Whether figures measured again are still those on record: a pure comparison, under one protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ddpm.figures.figure import FIGURES, Reading, headline, number

# Beside the headline. KID and MMD are too close to zero for a share of them to mean anything.
_WATCHED = ("inception_score", "precision", "recall", "class_accuracy", "retrieval_5_pixels", "clip_score")


def drifts(
    recorded: Mapping[str, float], measured: Mapping[str, float], tolerance: float, protocol: Mapping[str, Any]
) -> Iterator[str]:
    """Each figure, in words, that has left its recorded interval by more than the tolerance, up or down.

    Args:
        recorded: figures on record, with `…_low` and `…_high` where they have intervals.
        measured: the same figures, measured again.
        tolerance: what is allowed beyond the interval, as a share of the figure on record.
        protocol: that both were measured under.
    """
    for key in (headline(recorded).key, *_WATCHED):
        before = Reading.of(recorded, key)
        if before is None or key not in measured:
            continue
        slack = tolerance * abs(before.value)
        low, high = min(before.low, before.value) - slack, max(before.high, before.value) + slack
        if not low <= measured[key] <= high:  # nor if it is not a number
            yield f"{FIGURES[key].named(protocol, short=True)} {number(measured[key])}, recorded {before}"
