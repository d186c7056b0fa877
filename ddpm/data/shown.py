"""What models are shown of pictures: hints and low images, derived from them as training does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.codecs.scale import Codec
from ddpm.conditioning.columns import Column, Derived, derived, needed
from ddpm.data.store import Split


def shown_of(columns: Sequence[Column], codec: Codec, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """What a model needs to be shown of each image, its low image or a hint, by the columns' names; empty for a model
    that needs none.

    Args:
        codec: of the images in pixels.
    """
    import torch

    own = _derived_and_needed(columns)
    if not own:
        return {}
    x0 = codec.encode(torch.from_numpy(images))
    return {name: values.numpy() for name, values in derived(own, x0, torch.empty(len(images), 0)).items()}


@dataclass(frozen=True)
class ValuesOfPictures:
    """A column of latents whose values are derived from the pictures that the latents are of, when they are asked for.

    Attributes:
        codec: of the pictures in pixels.
    """

    column: Column
    codec: Codec
    pictures: Split

    def at(self, indices: NDArray[np.int64], step: int = 0) -> NDArray[Any]:
        """As of `conditioning.values.Values`."""
        return shown_of([self.column], self.codec, self.pictures.rows(indices))[self.column.name]


def values_of_pictures(columns: Sequence[Column], codec: Codec, latents: Split) -> dict[str, ValuesOfPictures]:
    """The hints that accompany stored latents, by the columns' names; nothing of data that are pictures themselves.

    Args:
        codec: of the latents.
    """
    if latents.pictures is None:
        return {}
    return {
        column.name: ValuesOfPictures(column, codec.pixels, latents.pictures) for column in _derived_and_needed(columns)
    }


def _derived_and_needed(columns: Sequence[Column]) -> list[Column]:
    return [column for column in needed(columns) if isinstance(column, Derived)]
