"""The column of a decoder: the embedding of a picture by CLIP (numpy only)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ddpm.conditioning.pictures import repeated
from ddpm.conditioning.values import Values
from ddpm.diffusion.noise import stream
from ddpm.directions import unit
from ddpm.errors import brief


@dataclass(frozen=True)
class EmbeddingColumn:
    """The embedding of a picture, float32 [D] of length 1. Zeros stand for none (Ramesh et al. 2022, §2.1).

    Attributes:
        shape: [D].
        droppable: whether training replaced some by zeros.
    """

    shape: tuple[int, ...]
    droppable: bool = False
    name: ClassVar[str] = "embedding"
    key: ClassVar[str] = "embedding"
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float32)

    @property
    def null(self) -> int | None:
        return 0 if self.droppable else None

    def read(self, asked: Any, count: int, *, first: int = 0) -> NDArray[np.float32]:
        """As of `Column`; `asked` is an embedding [D] or several [n, D], whose lengths do not matter."""
        try:
            values = np.asarray(asked, np.float64)
        except (TypeError, ValueError):  # nested lists of different lengths, or no numbers
            values = np.array(np.nan)
        if values.ndim not in (1, 2) or values.shape[-1:] != self.shape or not len(values):
            raise ValueError(f"{self.name}: expected {self.shape[0]} numbers, or several times, found {brief(asked)}")
        if not np.isfinite(values).all():
            raise ValueError(f"{self.name}: expected finite numbers, found NaN or infinity")
        return repeated(unit(values.reshape(-1, *self.shape)), count, first)

    def draw(self, count: int, *, seed: int, first: int = 0) -> NDArray[np.float32]:
        """
        Raises:
            ValueError: always: a prior draws embeddings, or they are of a picture.
        """
        raise ValueError(
            f"{self.name}: the model draws of the embedding of a picture, and found none: give a picture (like), or "
            "compose the model with a prior"
        )

    def example(self, count: int) -> NDArray[np.float32]:
        """Embeddings of random directions, always the same, [count, D]."""
        return unit(stream(0, 0, purpose=4).standard_normal((count, *self.shape)))

    def of_data(self, data: Any) -> Values:
        """As of `Stored`."""
        return Values(data.embeddings)


def embedding_columns(options: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[EmbeddingColumn, ...]:
    """As the entries of `conditioning.columns.COLUMNS`.

    Args:
        options: `drop`.
        data: `encoder`, what is known of the CLIP that made the embeddings: how many `numbers` they have.
    """
    encoder = data.get("encoder")
    numbers = encoder.get("numbers") if isinstance(encoder, Mapping) else None
    if type(numbers) is not int or numbers < 1:
        raise ValueError("condition.embedding needs the CLIP that made the embeddings, found none")
    return (EmbeddingColumn((numbers,), options.get("drop", 0) > 0),)
