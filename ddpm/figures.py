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


FIGURES = (
    Figure("fid", "FID", "lower"),
    Figure("sfid", "sFID", "lower"),
    Figure("kid", "KID", "lower"),
    Figure("inception_score", "Inception Score", "higher"),
    Figure("precision", "Precision", "higher"),
    Figure("recall", "Recall", "higher"),
    Figure("wasserstein", "Wasserstein distance", "lower"),
    Figure("mmd", "MMD", "lower"),
    Figure("nll", "NLL, bits/dim", "lower"),
    Figure("nll_validation", "NLL of validation images, bits/dim", "lower"),
    Figure("nll_train", "NLL of training images, bits/dim", "lower"),
    Figure("gflops_per_image", "GFLOP an image", "lower"),
)


@dataclass(frozen=True)
class Reading:
    """A figure's value with what metrics.json says around it, each None where it says nothing."""

    value: float
    low: float | None
    high: float | None
    """Of its interval: `…_low` and `…_high`, or one deviation, `…_std`, to each side."""
    real: float | None
    """What as many real data score: `…_floor`, or `…_real`."""

    @classmethod
    def of(cls, metrics: Mapping[str, float], key: str) -> Reading | None:
        """The figure of that key, if it was measured."""
        if key not in metrics:
            return None
        value = metrics[key]
        low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
        if (low is None or high is None) and f"{key}_std" in metrics:
            low, high = value - metrics[f"{key}_std"], value + metrics[f"{key}_std"]
        return cls(value, low, high, metrics.get(f"{key}_floor", metrics.get(f"{key}_real")))

    def __str__(self) -> str:
        """With its interval, as `57.3 [55.1, 59.8]`."""
        if self.low is None or self.high is None:
            return number(self.value)
        return f"{number(self.value)} [{number(self.low)}, {number(self.high)}]"

    def overlaps(self, other: Reading) -> bool:
        """Whether the intervals have a value in common; without one, the value alone is the interval."""
        low, high = self._interval()
        other_low, other_high = other._interval()
        return low <= other_high and other_low <= high

    def _interval(self) -> tuple[float, float]:
        return (
            self.value if self.low is None else self.low,
            self.value if self.high is None else self.high,
        )


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"
