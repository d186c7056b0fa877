"""Figures of models that are conditioned on images, which are those of the validation split: upsamplers, and models
that inpaint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ddpm.conditioning.columns import Column, LabelColumn, PromptColumn, derived, needed, stored
from ddpm.conditioning.pictures import LowColumn, MaskColumn, from_levels
from ddpm.data.shown import shown_of
from ddpm.data.store import PreparedData
from ddpm.drawer import Drawer
from ddpm.evaluation.image_metrics import ImageMeasure
from ddpm.evaluation.progress import Show
from ddpm.pixels import to_levels

PERFECT = 1 / 12  # mean squared error, in levels, that an image without any counts as: that of rounding


def low_column(columns: Sequence[Column]) -> LowColumn | None:
    """The low image of an upsampler; None: it is none."""
    return next((column for column in columns if isinstance(column, LowColumn)), None)


def like_validation(columns: Sequence[Column], data: PreparedData, rows: NDArray[np.int64]) -> dict[str, Any]:
    """What a model is asked for to draw images like these of the validation split: their low images or hints, classes
    and first captions, of the columns that it has.
    """
    split = data.split("validation")
    asked: dict[str, Any] = {**shown_of(columns, data.codec, split.rows(rows))}
    asked |= {column.name: column.of_data(split).at(rows) for column in stored(needed(columns))}
    for column in columns:
        if isinstance(column, LabelColumn) and split.labels is not None:
            asked[column.name] = split.labels[rows]
        if isinstance(column, PromptColumn) and (captions := split.captions) is not None:
            asked[column.name] = [captions[row][0] for row in rows]
    return asked


class Enlargement:
    """How near enlarged images are to the true ones: `psnr`, the mean over the images of the peak signal-to-noise ratio
    in dB, and `psnr_bilinear`, that of the low images enlarged without a model.

    Image i is to be of the validation image at i modulo their number.
    """

    def __init__(self, column: LowColumn, data: PreparedData) -> None:
        self._column, self._codec, self._split = column, data.codec, data.split("validation")
        self._own: list[NDArray[np.float64]] = []
        self._bilinear: list[NDArray[np.float64]] = []
        self._count = 0

    def add(self, drawn: NDArray[np.uint8]) -> None:
        """Take the next images into account, [n, H, W, C]."""
        rows = np.arange(self._count, self._count + len(drawn)) % len(self._split)
        true = self._split.rows(rows)
        low = from_levels(torch.from_numpy(shown_of([self._column], self._codec, true)[self._column.name]))
        plain = to_levels(F.interpolate(low, self._column.size, mode="bilinear", align_corners=False)).numpy()
        self._own.append(psnr(drawn, true))
        self._bilinear.append(psnr(plain, true))
        self._count += len(drawn)

    def figures(self) -> dict[str, float]:
        found = {"psnr": self._own, "psnr_bilinear": self._bilinear}
        return {name: float(np.concatenate(values).mean()) for name, values in found.items()}


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Of each image, in dB, [N]."""
    error = ((one.astype(np.float64) - other) ** 2).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, PERFECT))


def fills_in(columns: Sequence[Column]) -> bool:
    """Whether the model was trained to fill in a part of an image."""
    return any(isinstance(column, MaskColumn) for column in columns)


def masked_validation(data: PreparedData, count: int, *, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Validation images [count, H, W, C] from the first on, and which of their pixels are known [count, H, W], by masks
    as training has them, with something known in each.
    """
    image = data.split("validation").rows(np.arange(count))
    column = MaskColumn(image.shape[1:3])
    uniform = np.random.default_rng(seed).random((count, column.draws), np.float32)
    x0 = data.codec.encode(torch.from_numpy(image))
    return image, derived([column], x0, torch.from_numpy(uniform))[column.name].numpy()


def filling(
    drawer: Drawer, data: PreparedData, measure: ImageMeasure, count: int, *, seed: int, batch_size: int, show: Show
) -> dict[str, float]:
    """How validation images come back of which a part was drawn again, by masks as training has them.

    - `inpainting_known_error`: the largest error of a known pixel, in levels of 255; must be 0.
    - `inpainting_rmse`: the root of the mean squared error of the others, in levels.
    - `inpainting_fid`: of the whole images.

    Args:
        count: of images, from the first validation image on.
    """
    image, mask = masked_validation(data, count, seed=seed)
    asked = {**like_validation(drawer.columns, data, np.arange(count)), "image": image, "mask": mask}
    with show(count, data.codec.unit, "images with a part drawn again") as done:
        drawn = np.concatenate(
            [_counted(batch, done) for batch in drawer.batches(count, seed=seed, batch_size=batch_size, **asked)]
        )
    error = drawn.astype(np.float64) - image
    return {
        "inpainting_known_error": float(np.abs(error[mask]).max(initial=0.0)),
        "inpainting_rmse": float(np.sqrt((error[~mask] ** 2).mean())),
        "inpainting_fid": measure.fid_of(drawn),
    }


def _counted(batch: NDArray[Any], done: Any) -> NDArray[Any]:
    done(len(batch))
    return batch
