"""The kinds of data: how a datum is stored, and what the network sees of it. Needs numpy alone.

Everything that depends on the kind asks one of these objects: training and features `encode`, samplers `decode`,
networks are built for `network_shape`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ddpm.errors import NotFiniteError
from ddpm.pixels import shrunk, smaller_side

if TYPE_CHECKING:
    from torch import Tensor

KindName = Literal["images", "points", "sequences"]

# Of one datum; a model that claims more is damaged.
MOST_NUMBERS = 2**26


class Codec(Protocol):
    """A kind of data with its shape and its scale."""

    @property
    def name(self) -> KindName:
        """Also the key of an .npz file of samples."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a stored datum."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a stored datum."""
        ...

    @property
    def network_shape(self) -> tuple[int, ...]:
        """Of a datum as the network sees it: channels, then the axes."""
        ...

    @property
    def unit(self) -> str:
        """What a progress bar counts them in."""
        ...

    @property
    def can_mirror(self) -> bool:
        """Whether a mirrored datum is as good as the datum."""
        ...

    @property
    def pictures(self) -> bool:
        """Whether a stored datum is a picture, uint8 [H, W, C]: it is shown, sent and measured as one."""
        ...

    @property
    def pixels(self) -> Codec:
        """What pictures are encoded by before hints, low images and masks are derived from them: of latents the codec
        of their pixels, of all else itself."""
        ...

    @property
    def levels(self) -> int | None:
        """How many values a number of x can take, which is then one of a stored datum; None: it is continuous."""
        ...

    @property
    def bounded(self) -> bool:
        """Whether x lies in [−1, 1], so that a predicted x_0 can be clipped to that."""
        ...

    def encode(self, stored: Tensor) -> Tensor:
        """Stored data [N, *shape] → float32 [N, *network_shape], where they are: in about [−1, 1], or latents of about
        unit variance."""
        ...

    def decode(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """The network's [N, *network_shape] → data as they are stored, [N, *shape].

        Raises:
            NotFiniteError: it holds NaN or infinite values.
        """
        ...


def refuse_not_finite(x: NDArray[np.float32]) -> None:
    """
    Args:
        x: what a model drew, [N, ...].

    Raises:
        NotFiniteError: it holds NaN or infinite values.
    """
    finite = np.isfinite(x)
    if not finite.all():
        bad = int((~finite.reshape(len(x), -1).all(1)).sum())
        raise NotFiniteError(f"the network's output is NaN or infinite in {bad} of {len(x)} samples")


def encode_pixels(stored: Tensor) -> Tensor:
    """Pixels [N, H, W, C] uint8 → [N, C, H, W] float32 in [−1, 1], channels last in memory, where they are."""
    return stored.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


@dataclass(frozen=True)
class PixelCodec:
    """Pixels, uint8 [H, W, C]; the network sees [C, H, W], 0..255 as −1..1."""

    shape: tuple[int, ...]
    name: ClassVar[KindName] = "images"
    unit: ClassVar[str] = "img"
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.uint8)
    can_mirror: ClassVar[bool] = True
    pictures: ClassVar[bool] = True
    levels: ClassVar[int] = 256
    bounded: ClassVar[bool] = True

    @property
    def pixels(self) -> PixelCodec:
        return self

    @property
    def network_shape(self) -> tuple[int, ...]:
        height, width, channels = self.shape
        return channels, height, width

    def encode(self, stored: Tensor) -> Tensor:
        """Channels last in memory."""
        return encode_pixels(stored)

    def decode(self, x: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Rounded, values outside clipped."""
        refuse_not_finite(x)
        # A copy, also of one channel: torch's convolutions round by the strides, and stored images have these.
        return np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1).copy()


@dataclass(frozen=True)
class SmallerPixelCodec(PixelCodec):
    """Pixels that are stored in more of them: `shape` is what is drawn."""

    def encode(self, stored: Tensor) -> Tensor:
        """As of `PixelCodec`; `stored` is [N, H, W, C], a multiple of the shape's sides."""
        return encode_pixels(shrunk(encode_pixels(stored), self.shape[:2]).contiguous())


def smaller(stored: Codec, side: int) -> SmallerPixelCodec:
    """The codec of a model that draws stored images in fewer pixels.

    Raises:
        ValueError: they are no images, or `side` is no proper divisor of their sides.
    """
    if not stored.pictures:
        raise ValueError(f"codec.side is for images; the prepared data are {stored.name}")
    height, width, channels = stored.shape
    side = smaller_side("codec.side", side, height, width)
    return SmallerPixelCodec((side, side, channels))


@dataclass(frozen=True)
class ValueCodec:
    """Real numbers, float32: points [C], sequences [C, L]; each channel's range low..high is −1..1 to the network."""

    name: KindName
    shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float32)
    can_mirror: ClassVar[bool] = False
    pictures: ClassVar[bool] = False
    levels: ClassVar[None] = None
    bounded: ClassVar[bool] = True

    @property
    def pixels(self) -> ValueCodec:
        return self

    @property
    def unit(self) -> str:
        return self.name

    @property
    def network_shape(self) -> tuple[int, ...]:
        return self.shape

    def encode(self, stored: Tensor) -> Tensor:
        wide = stored.double()
        centre, half = (wide.new_tensor(each) for each in self.scale())
        return ((wide - centre) / half).float()

    def decode(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        refuse_not_finite(x)
        centre, half = self.scale()
        return (x * half + centre).astype(np.float32)

    def scale(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Centre and half range of each channel, shaped to broadcast over a datum; a constant channel becomes 0."""
        low, high = (
            np.reshape(np.array(end, np.float64), (-1, *[1] * (len(self.shape) - 1))) for end in (self.low, self.high)
        )
        return (low + high) / 2, np.where(high > low, (high - low) / 2, 1.0)


def codec_for(
    name: KindName, shape: Sequence[int], low: Sequence[float] | None = None, high: Sequence[float] | None = None
) -> Codec:
    """The kind that a manifest or a model describes.

    Raises:
        ValueError: the numbers do not describe one.
    """
    axes = {"images": 3, "points": 1, "sequences": 2}[name]
    if len(shape) != axes or math.prod(shape) < 1:
        raise ValueError(f"{name} have {axes} axes, found the shape {list(shape)}")
    if math.prod(shape) > MOST_NUMBERS:
        raise ValueError(f"one of the {name} can have at most {MOST_NUMBERS} numbers, found the shape {list(shape)}")
    if name == "images":
        return PixelCodec(tuple(shape))
    if low is None or high is None or not len(low) == len(high) == shape[0]:
        raise ValueError(f"{name} need `low` and `high` of each of their {shape[0]} channels")
    if not all(math.isfinite(end) for end in (*low, *high)):
        raise ValueError(f"`low` and `high` must be finite, found {list(low)} and {list(high)}")
    return ValueCodec(name, tuple(shape), tuple(low), tuple(high))
