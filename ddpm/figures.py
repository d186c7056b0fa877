"""The figures of metrics.json: what people call them, which way is better, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """A figure of metrics.json as people read it. What belongs to it has its key with an ending, see `Reading`."""

    key: str
    name: str
    better: Literal["lower", "higher"]
    real: str | None = None
    """The key of what held-out real data score, measured alike. FID and IS depend on how many there are, so that only
    those of the same count have one."""


FIGURES = {
    figure.key: figure
    for figure in (
        Figure("fid", "FID", "lower"),
        Figure("fid_same_count", "FID, same count", "lower", real="fid_floor"),
        Figure("sfid", "sFID", "lower"),
        Figure("kid", "KID", "lower", real="kid_floor"),
        Figure("inception_score", "Inception Score", "higher"),
        Figure("inception_score_same_count", "Inception Score, same count", "higher", real="inception_score_real"),
        Figure("precision", "Precision", "higher"),
        Figure("recall", "Recall", "higher"),
        Figure("wasserstein", "Wasserstein distance", "lower", real="wasserstein_floor"),
        Figure("mmd", "MMD", "lower", real="mmd_floor"),
        Figure("nll_validation", "NLL of validation images, bits/dim", "lower"),
        Figure("nll_train", "NLL of training images, bits/dim", "lower"),
        Figure("gflops_per_image", "GFLOP an image", "lower"),
    )
}


@dataclass(frozen=True)
class Reading:
    """A figure's value with what metrics.json says around it, each None where it says nothing."""

    value: float
    interval: tuple[float, float] | None
    """`…_low` and `…_high`."""
    deviation: float | None
    """`…_std`, over parts of the data."""
    real: float | None
    """What held-out real data score."""

    @classmethod
    def of(cls, metrics: Mapping[str, float], key: str) -> Reading | None:
        """The figure of that key of `FIGURES`, if it was measured."""
        figure = FIGURES[key]
        if key not in metrics:
            return None
        low, high = (metrics.get(f"{key}_{end}") for end in ("low", "high"))
        return cls(
            value=metrics[key],
            interval=None if low is None or high is None else (low, high),
            deviation=metrics.get(f"{key}_std"),
            real=None if figure.real is None else metrics.get(figure.real),
        )

    def __str__(self) -> str:
        """As `57.3 [55.1, 59.8]`, or `0.28 ± 0.03` where there is no interval."""
        if self.interval is not None:
            return f"{number(self.value)} [{', '.join(map(number, self.interval))}]"
        return number(self.value) + ("" if self.deviation is None else f" ± {number(self.deviation)}")

    def overlaps(self, other: Reading) -> bool:
        """Whether the two may well be the same: their intervals, or deviations to each side, have a value in common."""
        (low, high), (other_low, other_high) = self._span(), other._span()
        return low <= other_high and other_low <= high

    def _span(self) -> tuple[float, float]:
        deviation = self.deviation or 0.0
        return self.interval or (self.value - deviation, self.value + deviation)


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"
