"""Columns that are pictures: the low image of an upsampler (numpy only).

Nothing of the prepared data holds them: in training they are derived from the image itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ddpm.diffusion.noise import stream
from ddpm.errors import brief

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LowColumn:
    """The image of an upsampler in fewer pixels, uint8 [h, w, C].

    In training it is the image itself, averaged over squares and rounded to 256 levels (Nichol & Dhariwal 2021,
    appendix C).

    Attributes:
        shape: [h, w, C].
        size: H and W of the image.
    """

    shape: tuple[int, ...]
    size: tuple[int, int]
    name: ClassVar[str] = "low"
    key: ClassVar[str] = "low"
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.uint8)
    null: ClassVar[None] = None
    draws: ClassVar[int] = 0

    def read(self, asked: Any, count: int, *, first: int = 0) -> NDArray[np.uint8]:
        """As of `Column`; `asked` is a picture [h, w, C] or several [n, h, w, C], of whole numbers 0..255."""
        return repeated(_levels(self.name, asked, self.shape), count, first)

    def draw(self, count: int, *, seed: int, first: int = 0) -> NDArray[np.uint8]:
        """
        Raises:
            ValueError: always: there is no upsampling of nothing.
        """
        raise ValueError(f"{self.name}: the model needs a picture of {_size(self.shape)}, found none")

    def derive(self, x0: Tensor, uniform: Tensor) -> Tensor:
        """As of `Derived`."""
        squares = [(side, full // side) for side, full in zip(self.shape[:2], self.size, strict=True)]
        return to_levels(x0.unflatten(3, squares[1]).unflatten(2, squares[0]).mean((3, 5)))


@dataclass(frozen=True)
class LowNoiseColumn:
    """How much noise is added to the low image, float32 in 0..most: its standard deviation s; the image's share is
    √(1−s²).

    In training it is uniform (Ho et al. 2022, "Cascaded diffusion models", §4.2; Saharia et al. 2022). 0 if not asked
    for.
    """

    most: float
    name: ClassVar[str] = "low_noise"
    key: ClassVar[str] = "low"
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float32)
    shape: ClassVar[tuple[int, ...]] = ()
    null: ClassVar[None] = None
    draws: ClassVar[int] = 1

    def read(self, asked: Any, count: int, *, first: int = 0) -> NDArray[np.float32]:
        """As of `Column`; `asked` is a number or several."""
        values = np.atleast_1d(np.asarray(asked))
        if values.ndim > 1 or not values.size or values.dtype.kind not in "iuf":
            raise ValueError(f"{self.name}: expected a number, found {brief(asked)}")
        if not ((values >= 0) & (values <= self.most)).all():
            raise ValueError(f"{self.name} must be in 0..{self.most:g}, found {brief(asked)}")
        return repeated(values.astype(np.float32), count, first)

    def draw(self, count: int, *, seed: int, first: int = 0) -> NDArray[np.float32]:
        return np.zeros(count, np.float32)

    def derive(self, x0: Tensor, uniform: Tensor) -> Tensor:
        """As of `Derived`."""
        return uniform[:, 0] * self.most


@dataclass(frozen=True)
class LowGaussColumn:
    """The standard normal numbers of the noise that is added to the low image, float32 [h, w, C]. Where they are not
    given, they follow from the datum's own seed."""

    shape: tuple[int, ...]
    name: ClassVar[str] = "low_gauss"
    key: ClassVar[str] = "low"
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float32)
    null: ClassVar[None] = None

    @property
    def draws(self) -> int:
        return int(np.prod(self.shape))

    def read(self, asked: Any, count: int, *, first: int = 0) -> NDArray[np.float32]:
        """As of `Column`; `asked` is an array [h, w, C] or [n, h, w, C]."""
        values = np.asarray(asked)
        if values.shape[-len(self.shape) :] != self.shape or values.dtype.kind != "f":
            raise ValueError(f"{self.name}: expected real numbers of {_size(self.shape)}, found {brief(asked)}")
        return repeated(values.astype(np.float32).reshape(-1, *self.shape), count, first)

    def draw(self, count: int, *, seed: int, first: int = 0) -> NDArray[np.float32]:
        streams = [stream(seed, first + index, purpose=3) for index in range(count)]
        return np.stack([each.standard_normal(self.shape, dtype=np.float32) for each in streams])

    def derive(self, x0: Tensor, uniform: Tensor) -> Tensor:
        """As of `Derived`."""
        # The inverse of the normal distribution function; at 0 it would be −∞.
        middle = (2 * uniform - 1).clamp(min=-1 + 2**-24)
        return (2**0.5 * middle.erfinv()).view(-1, *self.shape)


def low_columns(
    options: Mapping[str, Any], data: Mapping[str, Any]
) -> tuple[LowColumn | LowNoiseColumn | LowGaussColumn, ...]:
    """As the entries of `conditioning.columns.COLUMNS`: the low image, and its noise if there is to be some.

    Args:
        options: `side` in pixels; `noise`, the largest standard deviation in training.
    """
    height, width, channels = _image_shape("low", data)
    side, noise = options.get("side"), options.get("noise", 0)
    if not isinstance(side, int) or side < 1 or height % side or width % side or side >= min(height, width):
        raise ValueError(
            f"condition.low.side is {side}, expected a proper divisor of the images' {_size((height, width))}"
        )
    shape = (side, side, channels)
    low = LowColumn(shape, (height, width))
    return (low, LowNoiseColumn(noise), LowGaussColumn(shape)) if noise else (low,)


def repeated(values: NDArray[Any], count: int, first: int) -> NDArray[Any]:
    """For the data `first` .. `first + count − 1`: datum i gets the value at i modulo their number."""
    return values[np.arange(first, first + count) % len(values)]


def to_levels(x: Tensor) -> Tensor:
    """[N, C, H, W] in about [−1, 1] → uint8 [N, H, W, C], as `PixelCodec` stores pixels."""
    return ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def from_levels(stored: Tensor) -> Tensor:
    """uint8 [N, H, W, C] → float32 [N, C, H, W] in [−1, 1]."""
    return stored.permute(0, 3, 1, 2).float() / 127.5 - 1


def _levels(name: str, asked: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Pictures as an array [n, *shape].

    Raises:
        ValueError: they are not, or not of whole numbers 0..255.
    """
    try:
        values = np.asarray(asked)
    except ValueError:  # nested lists of different lengths
        raise ValueError(f"{name}: expected pictures of {_size(shape)}, found {brief(asked)}") from None
    if values.ndim not in (len(shape), len(shape) + 1) or values.shape[-len(shape) :] != shape or not len(values):
        found = _size(values.shape) if values.ndim else brief(asked)
        raise ValueError(f"{name}: expected a picture of {_size(shape)}, or several, found {found}")
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
        raise ValueError(
            f"{name}: expected whole numbers 0..255, found {values.dtype} of {values.min()}..{values.max()}"
        )
    return values.astype(np.uint8).reshape(-1, *shape)


def _image_shape(key: str, data: Mapping[str, Any]) -> tuple[int, int, int]:
    """
    Raises:
        ValueError: the data are not images.
    """
    kind, shape = data.get("kind", "images"), data.get("shape")
    if kind != "images" or not isinstance(shape, Sequence) or len(shape) != 3:
        raise ValueError(f"condition.{key} is for images; the data are {kind}")
    height, width, channels = shape
    return height, width, channels


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
