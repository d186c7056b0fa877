"""Any image file → one uint8 array, by stated rules."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

RESIZE_RULE = "centre square of the shorter side, then Lanczos (antialiased) to image_size"


class BadImageError(Exception):
    """Bytes that are no whole image, or none that has 8-bit levels; the message is the reason, in one line."""


@dataclass(frozen=True)
class Sample:
    """One image of a source: its name, how to decode it (BadImageError), its class if there are classes, and whether
    the source publishes it for validation or test, not for training."""

    name: str
    load: Callable[[], Image.Image]
    label: int | None
    held_out: bool = False


@dataclass(frozen=True)
class RawImages:
    """All images of a source, in an order that is the same every time. Each is decoded only when asked for."""

    count: int
    classes: tuple[str, ...] | None
    samples: Iterator[Sample]


@contextlib.contextmanager
def pixel_limit(max_pixels: int) -> Iterator[None]:
    """Within the block, Pillow refuses an image of more than `max_pixels` by its header, before decoding it."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata, which we do not use
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def decode(file: Path | IO[bytes]) -> Image.Image:
    """Decode an image file to 8 bits a channel, upright and opaque.

    - the first frame of an animation or of a multi-page file;
    - turned as its EXIF orientation says; colour profiles are not applied;
    - 16-bit samples keep their high byte; float and wider integer samples are refused: their range is not known;
    - transparency is laid over white;
    - grey (bilevel, L, LA, 16-bit) becomes mode L; everything else (palette, CMYK, YCbCr, ...) becomes RGB.

    Returns:
        an image of mode L or RGB.

    Raises:
        BadImageError: the bytes do not decode, or to more pixels than `pixel_limit` allows.
    """
    try:
        with Image.open(file) as image:
            image.load()
            return _plain(ImageOps.exif_transpose(image))
    except BadImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError(f"decodes to more than data.max_pixels ({Image.MAX_IMAGE_PIXELS})") from None
    except Image.UnidentifiedImageError:
        raise BadImageError("not an image") from None
    except Exception as error:  # damaged bytes make Pillow's decoders raise nearly anything
        raise BadImageError(f"does not decode: {' '.join(str(error).split()) or type(error).__name__}") from None


def _plain(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode == "F":
        raise BadImageError("float samples, whose range is not known")
    if image.mode.startswith("I"):
        image = _high_byte(image)
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if grey else "RGB")


def _high_byte(image: Image.Image) -> Image.Image:
    """16-bit grey to 8-bit. Some 16-bit files open in Pillow's 32-bit mode."""
    samples = np.asarray(image)
    if samples.min() < 0 or samples.max() > 0xFFFF:
        raise BadImageError("samples of more than 16 bits, whose range is not known")
    return Image.fromarray((samples >> 8).astype(np.uint8))


def to_array(image: Image.Image, channels: int | None, image_size: int | None) -> np.ndarray:
    """Apply `data.channels` and `data.image_size` to an image of mode L or RGB.

    - channels 1: ITU-R 601 luma, (299 R + 587 G + 114 B) / 1000; 3: RGB, grey repeated; None: as it is;
    - image_size: the centre square of the shorter side's length (cut on whole pixels, the odd one off at the right
      or the bottom), resampled by Pillow's Lanczos filter, whose support grows when shrinking, so that it does
      not alias; None: as it is.

    Returns:
        uint8 [H, W, C], 0..255.
    """
    if channels is not None:
        image = image.convert("L" if channels == 1 else "RGB")
    if image_size is not None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((image_size, image_size), Image.Resampling.LANCZOS)
    return np.asarray(image, np.uint8).reshape(image.height, image.width, -1)
