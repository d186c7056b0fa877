"""The seeds of samples that are measured: no figure is of samples that something was chosen by."""

from __future__ import annotations

from typing import NamedTuple

_COUNT = 2**32  # of the seeds that params.yaml may have


class Seeds(NamedTuple):
    """Four different seeds."""

    evaluation: int
    """Of `ddpm evaluate`: params.yaml's own."""
    search: int
    """Of the settings that `ddpm tune-guidance` searches."""
    tuned: int
    """Of the figures that it reports."""
    comparison: int
    """Of `ddpm compare`, by whose curves people choose settings."""


def seeds_of(seed: int) -> Seeds:
    """
    Args:
        seed: of params.yaml, 0..2³² − 1.
    """
    return Seeds(*((seed + place) % _COUNT for place in range(len(Seeds._fields))))
