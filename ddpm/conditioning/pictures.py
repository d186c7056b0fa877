"""Columns that are pictures: the low image of an upsampler, the known part of an image (numpy only).

Nothing of the prepared data holds them: in training they are derived from the image itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ddpm.diffusion.known import Known
from ddpm.diffusion.noise import stream
from ddpm.errors import brief, listed
from ddpm.pixels import shrunk, smaller_side, to_levels

if TYPE_CHECKING:
    from torch import Tensor


BOXES, PARTS = 3, 5  # of a training mask: boxes at most, and parts of its stroke


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
    needed: ClassVar[bool] = True

    def read(self, asked: Any, count: int, *, first: int = 0) -> NDArray[np.uint8]:
        """As of `Column`; `asked` is a picture [h, w, C] or several [n, h, w, C], of whole numbers 0..255."""
        return repeated(levels_of(self.name, asked, self.shape), count, first)

    def draw(self, count: int, *, seed: int, first: int = 0) -> NDArray[np.uint8]:
        """
        Raises:
            ValueError: always: there is no upsampling of nothing.
        """
        raise ValueError(f"{self.name}: the model needs a picture of {size_of(self.shape)}, found none")

    def derive(self, x0: Tensor, uniform: Tensor) -> Tensor:
        """As of `Derived`."""
        return shrunk(x0, self.shape[:2])


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
            raise ValueError(f"{self.name}: expected real numbers of {size_of(self.shape)}, found {brief(asked)}")
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
    height, width, channels = image_shape("low", data)
    side = smaller_side("condition.low.side", options.get("side"), height, width)
    noise = _share("low.noise", options.get("noise", 0))
    shape = (side, side, channels)
    low = LowColumn(shape, (height, width))
    return (low, LowNoiseColumn(noise), LowGaussColumn(shape)) if noise else (low,)


@dataclass(frozen=True)
class ImageColumn:
    """An image of which a part is known, uint8 [H, W, C]; what it holds elsewhere does not matter."""

    shape: tuple[int, ...]
    name: ClassVar[str] = "image"
    key: ClassVar[str] = "mask"
    goes_with: ClassVar[str] = "mask"
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.uint8)
    null: ClassVar[None] = None
    draws: ClassVar[int] = 0

    def read(self, asked: Any, count: int, *, first: int = 0) -> NDArray[np.uint8]:
        """As of `Column`; `asked` is a picture [H, W, C] or several [n, H, W, C], of whole numbers 0..255."""
        return repeated(levels_of(self.name, asked, self.shape), count, first)

    def draw(self, count: int, *, seed: int, first: int = 0) -> NDArray[np.uint8]:
        """Black: nothing of it is known."""
        return np.zeros((count, *self.shape), np.uint8)

    def derive(self, x0: Tensor, uniform: Tensor) -> Tensor:
        """As of `Derived`: the whole image."""
        return to_levels(x0)


@dataclass(frozen=True)
class MaskColumn:
    """Which pixels of an image are known, bool [H, W].

    In training the others are boxes, or a stroke of random width and direction (Yu et al. 2019, "Free-form image
    inpainting with gated convolution", algorithm 1; Suvorov et al. 2022, "LaMa", §3.3), half of each; or all pixels.

    Attributes:
        unknown: the share of the training images of which nothing is known.
    """

    shape: tuple[int, int]
    unknown: float = 0.0
    name: ClassVar[str] = "mask"
    key: ClassVar[str] = "mask"
    goes_with: ClassVar[str] = "image"
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.bool_)
    null: ClassVar[None] = None
    # Which kind, how many boxes; of each box its centre and sides; where the stroke begins; of each of its parts the
    # direction, the length and the width.
    draws: ClassVar[int] = 2 + 4 * BOXES + 2 + 3 * PARTS

    def read(self, asked: Any, count: int, *, first: int = 0) -> NDArray[np.bool_]:
        """As of `Column`; `asked` is [H, W] or [n, H, W], of truth values, 0 and 1, or 0 and 255."""
        return repeated(levels_of(self.name, asked, self.shape, (0, 1, 255)).astype(np.bool_), count, first)

    def draw(self, count: int, *, seed: int, first: int = 0) -> NDArray[np.bool_]:
        """Nothing is known."""
        return np.zeros((count, *self.shape), np.bool_)

    def derive(self, x0: Tensor, uniform: Tensor) -> Tensor:
        """As of `Derived`."""
        kind, number, places, stroke = uniform.tensor_split([1, 2, 2 + 4 * BOXES], dim=1)
        pixel = 1 / min(self.shape)
        boxes = _boxes(self._grid(x0), places.unflatten(1, (BOXES, 4)), 1 + (number * BOXES).long(), 0.51 * pixel)
        lines = _stroke(self._grid(x0), stroke, 0.71 * pixel)
        share = ((kind - self.unknown) / (1 - self.unknown)).view(-1, 1, 1)
        return (share >= 0) & ~(boxes & (share < 0.5) | lines & (share >= 0.5))

    def _grid(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """y [1, H, 1] and x [1, 1, W] of the pixels' centres, in 0..1."""
        y, x = (like.new_tensor((np.arange(side) + 0.5) / side) for side in self.shape)
        return y.view(1, -1, 1), x.view(1, 1, -1)


def _boxes(grid: tuple[Tensor, Tensor], places: Tensor, number: Tensor, least: float) -> Tensor:
    """Pixels inside the first of the boxes, [N, H, W] bool.

    Args:
        places: [N, boxes, 4] in 0..1: centre, and how high and wide, from a tenth of the image to all of it.
        number: [N, 1], how many there are.
        least: half a side at least, so that the box holds a pixel.
    """
    inside = None
    for box in range(places.shape[1]):
        there = (number > box).view(-1, 1, 1)
        centres, sides = (numbers.view(-1, 2, 1, 1).unbind(1) for numbers in places[:, box].split(2, dim=1))
        for along, centre, side in zip(grid, centres, sides, strict=True):
            there = there & ((along - centre).abs() <= (0.05 + 0.45 * side).clamp(min=least))
        inside = there if inside is None else inside | there
    assert inside is not None
    return inside


def _stroke(grid: tuple[Tensor, Tensor], uniform: Tensor, least: float) -> Tensor:
    """Pixels under a line of several parts, [N, H, W] bool.

    Args:
        uniform: [N, 2 + 3 parts] in 0..1: where it begins; of each part the direction, the length and the width.
        least: half a width at least, so that the line holds a pixel.
    """
    y, x, *parts = (numbers.view(-1, 1, 1) for numbers in uniform.unbind(1))
    under = None
    for angle, length, width in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        long = 0.1 + 0.4 * length
        dy, dx = long * (2 * np.pi * angle).sin(), long * (2 * np.pi * angle).cos()
        # The nearest point of the part to each pixel.
        along = (((grid[0] - y) * dy + (grid[1] - x) * dx) / long**2).clamp(0, 1)
        away = (grid[0] - y - along * dy) ** 2 + (grid[1] - x - along * dx) ** 2
        near = away <= (least + 0.1 * width) ** 2
        under = near if under is None else under | near
        # The next part begins where this one ends, within the image.
        y, x = (y + dy).clamp(0, 1), (x + dx).clamp(0, 1)
    assert under is not None
    return under


def mask_columns(options: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[ImageColumn | MaskColumn, ...]:
    """As the entries of `conditioning.columns.COLUMNS`: the image and what is known of it.

    Args:
        options: `unknown`, see `MaskColumn`.
    """
    height, width, channels = image_shape("mask", data)
    unknown = _share("mask.unknown", options.get("unknown", 0.0))
    return ImageColumn((height, width, channels)), MaskColumn((height, width), unknown)


KNOWN = (ImageColumn.name, MaskColumn.name)


def known_part(given: Mapping[str, NDArray[Any]]) -> Known[NDArray[Any]] | None:
    """What is known of images, as executors take it; None: nothing.

    Args:
        given: values of columns, [N, ...]; those of `ImageColumn` and `MaskColumn` may be among them.
    """
    mask = given.get(MaskColumn.name)
    if mask is None or not mask.any():
        return None
    x0 = np.moveaxis(given[ImageColumn.name], 3, 1).astype(np.float32) / np.float32(127.5) - np.float32(1)
    return Known(x0, mask[:, None])


def with_known(drawn: NDArray[Any], given: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Drawn data with what is known in its place, to the last bit.

    Args:
        given: as of `known_part`.
    """
    mask = given.get(MaskColumn.name)
    return drawn if mask is None else np.where(mask[..., None], given[ImageColumn.name], drawn)


def known_in_fewer_pixels(given: Mapping[str, NDArray[Any]], side: int) -> dict[str, NDArray[Any]]:
    """What is known of images in `side` × `side` pixels, each of which is known where all that it stands for is; empty
    if nothing is known.

    Args:
        given: as of `known_part`.
    """
    if MaskColumn.name not in given:
        return {}
    mask, image = given[MaskColumn.name], given[ImageColumn.name]
    squares = (len(mask), side, mask.shape[1] // side, side, mask.shape[2] // side)
    levels = np.rint(image.reshape(*squares, -1).mean((2, 4))).astype(np.uint8)
    return {ImageColumn.name: levels, MaskColumn.name: mask.reshape(squares).all((2, 4))}


def repeated(values: NDArray[Any], count: int, first: int) -> NDArray[Any]:
    """For the data `first` .. `first + count − 1`: datum i gets the value at i modulo their number."""
    return values[np.arange(first, first + count) % len(values)]


def from_levels(stored: Tensor) -> Tensor:
    """uint8 [N, H, W, C] → float32 [N, C, H, W] in [−1, 1]."""
    return stored.permute(0, 3, 1, 2).float() / 127.5 - 1


def levels_of(name: str, asked: Any, shape: tuple[int, ...], only: tuple[int, ...] = ()) -> NDArray[np.uint8]:
    """Pictures as an array [n, *shape].

    Args:
        only: the values that there may be, of a mask; all of 0..255 if it is empty.

    Raises:
        ValueError: they are not, or not of whole numbers 0..255.
    """
    try:
        values = np.asarray(asked)
    except ValueError:  # nested lists of different lengths
        values = np.array(None)
    if only and values.dtype == np.bool_:
        values = values.astype(np.uint8)
    if values.ndim not in (len(shape), len(shape) + 1) or values.shape[-len(shape) :] != shape or not len(values):
        found = size_of(values.shape) if values.ndim else brief(asked)
        raise ValueError(f"{name}: expected a picture of {size_of(shape)}, or several, found {found}")
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
        raise ValueError(
            f"{name}: expected whole numbers 0..255, found {values.dtype} of {values.min()}..{values.max()}"
        )
    if only and (others := sorted({*np.unique(values).tolist()} - {*only})):
        raise ValueError(f"{name}: expected {listed([*map(str, only)])}, found {listed([*map(str, others)], 3)}")
    return values.astype(np.uint8).reshape(-1, *shape)


def image_shape(key: str, data: Mapping[str, Any]) -> tuple[int, int, int]:
    """Height, width and channels.

    Args:
        key: of `condition`, for errors.
        data: as of `columns.columns_of`.

    Raises:
        ValueError: the data are not images.
    """
    kind, shape = data.get("kind", "images"), data.get("shape")
    if kind != "images" or not isinstance(shape, Sequence) or len(shape) != 3:
        raise ValueError(f"condition.{key} is for images; the data are {kind}")
    height, width, channels = shape
    return height, width, channels


def _share(key: str, value: Any) -> float:
    """
    Raises:
        ValueError: it is not in 0..1.
    """
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ValueError(f"condition.{key} is {brief(value)}, expected a number in 0..1")
    return value


def size_of(shape: tuple[int, ...]) -> str:
    """As errors say it."""
    return "×".join(map(str, shape))
