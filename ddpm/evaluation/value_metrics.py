"""How points and sequences are measured: Wasserstein distance and MMD, in their own coordinates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.distance import cdist

from ddpm.config.params import Params
from ddpm.data.store import SPLITS, PreparedData, SplitName
from ddpm.evaluation.bootstrap import interval, wasserstein_deviation
from ddpm.evaluation.distances import MAX_COUNT, chosen, mmd, wasserstein
from ddpm.evaluation.extractor import coordinates
from ddpm.evaluation.plots import SHOWN, side_by_side
from ddpm.evaluation.progress import Show, unseen


class ValueMeasure:
    """The figures of generated points or sequences, which are added a batch at a time."""

    def __init__(self, params: Params, data: PreparedData, bandwidth: float, show: Show = unseen) -> None:
        """
        Args:
            bandwidth: of MMD's kernel.
            show: the progress of long computations.
        """
        self._bandwidth, self._show = bandwidth, show
        self._data, self._resamples, self._seed = data, params.evaluation.resamples, params.seed
        self._batches: list[NDArray[np.float32]] = []

    def add(self, generated: NDArray[np.float32]) -> None:
        """Take generated data into account, [n, ...] as they are stored."""
        self._batches.append(generated)

    def figures(self) -> dict[str, float | int]:
        """Each with its floor: what the validation data score against the same training data."""
        generated = np.concatenate(self._batches)
        count = min(len(generated), MAX_COUNT, *(len(self._data.split(name)) for name in SPLITS))
        reference, validation = (coordinates(self._data.codec, self._real(name, count)) for name in SPLITS)
        samples = coordinates(self._data.codec, generated[:count])
        distance = wasserstein(samples, reference)
        with self._show(self._resamples, "resamples", "interval of the Wasserstein distance") as done:
            deviation = wasserstein_deviation(
                samples, reference, resamples=self._resamples, seed=self._seed, on_resample=done
            )
        low, high = interval(distance, deviation)
        return {
            "wasserstein": distance,
            "wasserstein_low": low,
            "wasserstein_high": high,
            "wasserstein_floor": wasserstein(validation, reference),
            "mmd": mmd(samples, reference, self._bandwidth),
            "mmd_floor": mmd(validation, reference, self._bandwidth),
            "samples": len(generated),
            "same_count": count,
        }

    def pictures(self) -> dict[str, Image.Image]:
        """File names and pictures: generated data beside real ones, and beside each one's nearest training datum."""
        generated = np.concatenate(self._batches)[:SHOWN]
        train = self._real("train", SHOWN)
        distances = cdist(*(coordinates(self._data.codec, values) for values in (generated, train)))
        return {
            "samples.png": side_by_side([("real", self._real("validation", SHOWN)), ("generated", generated)]),
            "neighbours.png": side_by_side(
                [("generated", generated), ("the nearest in training", train[distances.argmin(1)])]
            ),
        }

    def _real(self, name: SplitName, limit: int) -> NDArray[np.float32]:
        """At most `limit` of a split, at random."""
        split = self._data.split(name)
        return split.rows(chosen(len(split), limit, self._seed))
