"""How images are measured: FID and IS in an extractor's features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ddpm.config import Params
from ddpm.data.store import PreparedData
from ddpm.errors import UserError
from ddpm.evaluation.extractor import load_extractor
from ddpm.evaluation.metrics import Features, extract, frechet_distance, inception_score
from ddpm.evaluation.pictures import grid

GRID_COLUMNS, GRID_IMAGES = 8, 64


class ImageMeasure:
    """The figures of generated images, which are added a batch at a time; only their features are kept."""

    def __init__(self, params: Params, data: PreparedData, extractor: Path, device: torch.device) -> None:
        """
        Raises:
            UserError: the extractor is missing or damaged, or there are too few images for the figures.
        """
        _check_enough(params, len(data.split("validation")))
        self._extractor = load_extractor(extractor, weights=params.extractor.weights, device=device)
        self.identity: dict[str, Any] = self._extractor.identity
        self._params, self._data = params, data
        self._features: list[Features] = []
        self._shown = np.empty((0, *data.kind.shape), np.uint8)

    def add(self, generated: NDArray[np.uint8]) -> None:
        """Take generated images [n, H, W, C] into account."""
        self._features.append(extract(self._extractor, [generated]))
        self._shown = np.concatenate([self._shown, generated[: GRID_IMAGES - len(self._shown)]])

    def figures(self) -> dict[str, float | int]:
        """FID, IS, and what real images score under the same measures.

        `fid_floor` is the FID of the real validation images, `inception_score_real` their IS. Both measures depend on
        the number of images, so `…_same_count` are those of as many generated ones, and only these compare with the
        real ones.
        """
        size, splits = self._params.evaluation.batch_size, self._params.evaluation.splits
        reference, validation = (
            extract(self._extractor, self._data.split(name).batches(size)) for name in ("train", "validation")
        )
        generated = Features.concatenated(self._features)
        same_count = min(len(validation), len(generated))
        score, deviation = inception_score(generated, splits)
        as_many = generated.spread(same_count)
        real = validation.spread(same_count)
        return {
            "fid": frechet_distance(generated, reference),
            "fid_same_count": frechet_distance(as_many, reference),
            "fid_floor": frechet_distance(real, reference),
            "inception_score": score,
            "inception_score_std": deviation,
            "inception_score_same_count": inception_score(as_many, splits)[0],
            "inception_score_real": inception_score(real, splits)[0],
            "samples": len(generated),
            "same_count": same_count,
        }

    def pictures(self) -> dict[str, Image.Image]:
        """File names and pictures of what was added."""
        return {"samples.png": grid(self._shown, GRID_COLUMNS)}


def _check_enough(params: Params, validation: int) -> None:
    """Refuse before the work what no figure could be computed of."""
    splits = params.evaluation.splits
    for count, what in (
        (params.evaluation.samples, "evaluation.samples"),
        (validation, "the number of validation images"),
    ):
        if count < 2 * splits:
            raise UserError(
                f"{what} is {count}, but an Inception Score of evaluation.splits = {splits} parts needs at least "
                f"{2 * splits}: use more images or fewer splits"
            )
