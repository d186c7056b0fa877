"""The embeddings of pictures, as the prior of DALL-E 2 draws them (numpy only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ddpm.codecs.scale import KindName, refuse_not_finite
from ddpm.directions import unit

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Embedding:
    """Embeddings e of pictures by CLIP, float32 [D]; the network sees (e − mean) / std.

    Attributes:
        mean, std: of each of the D numbers.
        unit_norm: whether embeddings have length 1: those that are decoded are given it.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    unit_norm: bool = True
    name: ClassVar[KindName] = "points"
    unit: ClassVar[str] = "embeddings"
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float32)
    can_mirror: ClassVar[bool] = False
    pictures: ClassVar[bool] = False
    levels: ClassVar[None] = None
    bounded: ClassVar[bool] = False

    @classmethod
    def of_unit_norm(cls, numbers: int) -> Self:
        """Embeddings of length 1, which the network sees times √D, so that its x has about unit variance, as the noise
        has (Ramesh et al. 2022, their code).

        Args:
            numbers: D.
        """
        return cls((0.0,) * numbers, (numbers**-0.5,) * numbers)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.mean),)

    @property
    def pixels(self) -> Embedding:
        return self

    @property
    def network_shape(self) -> tuple[int, ...]:
        return self.shape

    def encode(self, stored: Tensor) -> Tensor:
        return (stored - stored.new_tensor(self.mean)) / stored.new_tensor(self.std)

    def decode(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embeddings [N, D], of length 1 if they have `unit_norm`."""
        refuse_not_finite(x)
        found = (x * np.asarray(self.std) + np.asarray(self.mean)).astype(np.float32)
        return unit(found) if self.unit_norm else found
