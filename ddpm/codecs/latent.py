"""The latents of pictures: what a trained autoencoder makes of them. Needs numpy alone: the autoencoder is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ddpm.codecs.scale import KindName, PixelCodec, refuse_not_finite

if TYPE_CHECKING:
    from torch import Tensor


class Halves(Protocol):
    """The two halves of a trained autoencoder, of pictures in [−1, 1]."""

    def encode(self, x: Tensor) -> Tensor:
        """Pictures [N, C, H, W] → the means of their latents, [N, Z, h, w]."""
        ...

    def decode(self, z: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latents [N, Z, h, w] → pictures [N, C, H, W]."""
        ...


@dataclass(frozen=True)
class Latent:
    """Pictures, uint8 [H, W, C]; the network sees their latents z · scale, [Z, h, w] (Rombach et al. 2022, §3.2).

    Attributes:
        pixels: the codec of the pictures.
        network_shape: (Z, h, w).
        scale: 1/std of the training split's latents, so that x has unit variance, as the noise has.
        halves: the autoencoder; None where only shapes are asked for.
    """

    pixels: PixelCodec
    network_shape: tuple[int, ...]
    scale: float
    halves: Halves | None = None
    name: ClassVar[KindName] = "images"
    unit: ClassVar[str] = PixelCodec.unit
    dtype: ClassVar[np.dtype[Any]] = PixelCodec.dtype
    can_mirror: ClassVar[bool] = False  # the latents of a mirrored picture are not the mirrored latents
    pictures: ClassVar[bool] = True
    levels: ClassVar[None] = None
    bounded: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pixels.shape

    def opened(self, halves: Halves) -> Latent:
        """With the autoencoder that `encode` and `decode` need."""
        return replace(self, halves=halves)

    def encode(self, stored: Tensor) -> Tensor:
        """The means of the latents, scaled."""
        return self._halves.encode(self.pixels.encode(stored)) * self.scale

    def decode(self, x: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The autoencoder's pictures of x / scale, rounded, values outside clipped."""
        refuse_not_finite(x)
        return self.pixels.decode(self.to_pictures(x))

    def to_pictures(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """x [N, Z, h, w] → pictures [N, C, H, W] in about [−1, 1]."""
        return self._halves.decode(x / np.float32(self.scale))

    @property
    def _halves(self) -> Halves:
        if self.halves is None:
            raise ValueError("the autoencoder was not opened")
        return self.halves


@dataclass(frozen=True)
class StoredLatent(Latent):
    """Pictures whose latents `ddpm encode` has stored, for training: of each mean and log σ² of q(z | x), one after the
    other, float32 [2Z, h, w]."""

    def encode(self, stored: Tensor) -> Tensor:
        """As they are, [N, 2Z, h, w]: `sample` makes x of them."""
        return stored

    def sample(self, moments: Tensor, noise_like: Callable[[Tensor], Tensor]) -> Tensor:
        """z of q(z | x), scaled: [N, Z, h, w]. Every step of a training draws another one.

        Args:
            noise_like: standard normal noise like what it is given.
        """
        mean, log_variance = moments.chunk(2, dim=1)
        return posterior_sample(mean, log_variance, noise_like(mean)) * self.scale


def posterior_sample(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """z of N(mean, σ²) by the reparametrisation of Kingma & Welling 2014 (§2.4); all have z's shape."""
    return mean + (0.5 * log_variance).exp() * noise
