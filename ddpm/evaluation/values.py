"""How points and sequences are measured: Wasserstein distance and MMD, in their own coordinates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddpm.config import Params
from ddpm.data.store import PreparedData
from ddpm.evaluation.distances import MAX_COUNT, chosen, mmd, wasserstein
from ddpm.evaluation.extractor import coordinates, load_coordinates
from ddpm.evaluation.plots import SHOWN, side_by_side


class ValueMeasure:
    """The figures of generated points or sequences, which are added a batch at a time."""

    def __init__(self, params: Params, data: PreparedData, extractor: Path) -> None:
        """
        Raises:
            UserError: the extractor is missing or was made for images.
        """
        self.identity: dict[str, Any] = load_coordinates(extractor)
        self._seed, self._data = params.seed, data
        self._batches: list[NDArray[np.float32]] = []

    def add(self, generated: NDArray[np.float32]) -> None:
        """Take generated data into account, [n, ...] as they are stored."""
        self._batches.append(generated)

    def figures(self) -> dict[str, float | int]:
        """Each with its floor: what the validation data score against the same training data."""
        generated = np.concatenate(self._batches)
        splits = [self._data.split("train"), self._data.split("validation")]
        count = min(len(generated), MAX_COUNT, *map(len, splits))
        reference, validation = (
            coordinates(self._data.kind, split.rows(chosen(len(split), count, self._seed))) for split in splits
        )
        samples = coordinates(self._data.kind, generated[:count])
        bandwidth = self.identity["bandwidth"]
        return {
            "wasserstein": wasserstein(samples, reference),
            "wasserstein_floor": wasserstein(validation, reference),
            "mmd": mmd(samples, reference, bandwidth),
            "mmd_floor": mmd(validation, reference, bandwidth),
            "samples": len(generated),
            "same_count": count,
        }

    def pictures(self) -> dict[str, Image.Image]:
        """File names and pictures of what was added."""
        split = self._data.split("validation")
        real = split.rows(chosen(len(split), SHOWN, self._seed))
        return {"samples.png": side_by_side([("real", real), ("generated", np.concatenate(self._batches)[:SHOWN])])}
