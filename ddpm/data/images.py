"""Any image file → one uint8 array, by stated rules."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

RESIZE_RULE = "centre square of the shorter side, then Lanczos (antialiased) to image_size"


class BadImageError(Exception):
    """Bytes that are not a whole image, or samples of no known range. The message is the reason, in one line."""


_BITS_PER_SAMPLE, _SAMPLE_FORMAT = 258, 339  # tags of TIFF

# What `Image.open` may try. Pillow hands others, such as EPS, to programs outside of it.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")

NARROW = 0.25  # of the range that the files' format has: images that use less are nearly uniform

# Files that are often taken for images: how they begin, what they are, what to do.
_OTHERS = (
    (rb".{4}ftyp(hei|hev|mif1|msf1)", "a HEIC image", "convert it to PNG or JPEG, for example with heif-convert"),
    (rb".{4}ftyp", "a video", "extract its frames, for example with ffmpeg"),
    (
        rb"(\xef\xbb\xbf)?\s*(<\?xml.*|<!--.*|<!DOCTYPE svg.*)?<svg[\s>]",
        "an SVG drawing",
        "render it to PNG, for example with rsvg-convert",
    ),
    (rb"\x1f\x8b", "a gzip file", "unpack it"),
    (rb"PK\x03\x04", "a zip archive", "unpack it"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript", "render it to PNG"),
    (rb"%PDF", "a PDF document", "render it to PNG, for example with pdftoppm"),
    (rb"8BPS", "a Photoshop document", "export it as PNG"),
    (rb".{128}DICM", "a DICOM image", "convert it to PNG, for example with dcm2pnm"),
    (rb"\x93NUMPY", "a numpy array", "save its images as PNG files, or use `data.source: sequences`"),
    (rb"\s*(<!doctype html|<html)", "an HTML page", "download the image again"),
    (rb"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull`"),
)


@dataclass
class Range:
    """The lowest and the highest sample found in files whose samples can be `least` to `most`."""

    least: float
    most: float
    low: float = math.inf
    high: float = -math.inf

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


class Levels:
    """How stored samples become 8 bits, and the ranges of those that did.

    Args:
        given: `data.levels`: the stored samples that become 0 and 255, or the latter alone. None: those of the files'
            format, of which 16-bit samples keep their high byte.
    """

    def __init__(self, given: float | tuple[float, float] | None = None) -> None:
        self.given = (0.0, float(given)) if isinstance(given, int | float) else given
        self.ranges: dict[tuple[float, float], Range] = {}

    def apply(self, image: Image.Image, bits: int | None) -> Image.Image:
        """An image of samples → the same in 8 bits.

        Args:
            image: of mode L, RGB or RGBA, or of a mode with one channel of wider samples.
            bits: of an integer sample; None for floats and where the format does not say.

        Raises:
            BadImageError: the range is not known.
        """
        low, high = _extremes(image)
        if self.given is None and bits is None:
            raise BadImageError(
                f"{'float' if image.mode == 'F' else 'signed or 32-bit'} samples, {low:g} to {high:g} in this file, "
                "whose range is not known: set `data.levels` to the value that is white in all images, or to "
                "[black, white]"
            )
        least, most = self.given or (0, 2 ** (bits or 0) - 1)
        found = self.ranges.setdefault((least, most), Range(least, most))
        found.low, found.high = min(found.low, low), max(found.high, high)
        if image.mode in ("L", "RGB", "RGBA"):
            return image if self.given is None else image.point(_table(least, most, image.mode))
        samples = np.asarray(image)
        if self.given is None and bits is not None:
            return Image.fromarray((samples >> (bits - 8)).astype(np.uint8))
        return Image.fromarray(_scaled(samples, least, most))

    def warnings(self) -> list[str]:
        """What the ranges say against the images, in a sentence each."""
        return [text for found in self.ranges.values() if (text := self._warning(found))]

    def _warning(self, found: Range) -> str | None:
        if self.given and (found.low < found.least or found.high > found.most):
            return (
                f"the images hold values of {found}; those outside `data.levels`, {found.least:g} to {found.most:g}, "
                "became black or white"
            )
        if found.high - found.low < NARROW * (found.most - found.least):
            where = "`data.levels`" if self.given else "their format"
            return (
                f"the images hold values of {found}, a small part of the range of {where}, {found.least:g} to "
                f"{found.most:g}, so that they have little contrast: set `data.levels`, here perhaps to "
                f"{_suggested(found)}"
            )
        return None


def _extremes(image: Image.Image) -> tuple[float, float]:
    """The lowest and the highest sample of all channels but the transparency."""
    if image.mode in ("L", "RGB", "RGBA"):
        ranges: Any = image.getextrema()
        ranges = [ranges] if image.mode == "L" else ranges[:3]
        return min(low for low, _ in ranges), max(high for _, high in ranges)
    samples = np.asarray(image)
    if not np.isfinite(samples).all():
        raise BadImageError("samples that are NaN or infinite")
    return float(samples.min()), float(samples.max())


def _scaled(samples: np.ndarray, least: float, most: float) -> np.ndarray:
    """least..most → 0..255, rounded, values outside clipped."""
    return np.rint(np.clip((samples.astype(np.float64) - least) / (most - least), 0, 1) * 255).astype(np.uint8)


def _table(least: float, most: float, mode: str) -> list[int]:
    """`_scaled` of the 256 values of a channel, for each channel; transparency stays."""
    table = _scaled(np.arange(256), least, most).tolist()
    return table * 3 + list(range(256)) if mode == "RGBA" else table * len(mode)


def _suggested(found: Range) -> str:
    """A value of `data.levels` that spreads a range."""
    whole = float(found.high).is_integer() and found.high > 0
    if whole and found.low >= 0 and found.low < NARROW * found.high:
        return str(2 ** int(found.high).bit_length() - 1)
    return f"[{found.low:g}, {found.high:g}]"


@dataclass(frozen=True)
class Sample:
    """One image of a source.

    Attributes:
        name: of its file, or whatever names it.
        load: decodes it, or raises BadImageError.
        label: its class, if there are classes.
        held_out: whether the source publishes it for validation or test, not for training.
        captions: texts that describe it, if the source has any.
        group: images of one group are so alike that all must be in the same split; None: it is alone.
        combination: whether it combines what other images show one by one, as a gesture and a skin tone.
        hint: decodes the picture that says what to draw, if the source has hints.
    """

    name: str
    load: Callable[[Levels], Image.Image]
    label: int | None = None
    held_out: bool = False
    captions: tuple[str, ...] = ()
    group: str | None = None
    combination: bool = False
    hint: Callable[[Levels], Image.Image] | None = None


@dataclass(frozen=True)
class RawImages:
    """All images of a source, in an order that is the same every time. Each is decoded only when asked for.

    Attributes:
        captioned: whether each has captions.
        grouped: whether they have groups, by which they are to be split.
        attribution: the credit that the source's licence asks for.
        resize: the rule by which they get their size.
        hinted: whether each has a hint.
    """

    count: int
    classes: tuple[str, ...] | None
    samples: Iterator[Sample]
    captioned: bool = False
    grouped: bool = False
    attribution: str | None = None
    resize: str = RESIZE_RULE
    hinted: bool = False


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


def decode(file: Path | IO[bytes], levels: Levels | None = None, *, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Decode an image file to 8 bits a channel, upright and opaque.

    - a file of one of the formats, whatever its name; no other program is started;
    - the first frame of an animation or of a multi-page file;
    - turned as its EXIF orientation says; colour profiles are not applied;
    - samples become 8 bits as `levels` says;
    - transparency is laid over white;
    - grey (bilevel, L, LA, and one channel of more than 8 bits) becomes mode L; everything else (palette, CMYK, YCbCr,
      ...) becomes RGB.

    Args:
        levels: None: the range of the file's format.
        formats: some of FORMATS; the decoders of the others are not run.

    Returns:
        an image of mode L or RGB.

    Raises:
        BadImageError: the bytes do not decode, or to more pixels than `pixel_limit` allows, or the range of the samples
            is not known.
    """
    with file.open("rb") if isinstance(file, Path) else contextlib.nullcontext(file) as stream:
        head = stream.read(1024)
        stream.seek(0)
        try:
            with Image.open(stream, formats=formats) as image:
                bits, cut = _bits_of(image), _loses_bits(image)
                image.load()
                return _plain(ImageOps.exif_transpose(image), bits, cut, levels or Levels())
        except BadImageError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise BadImageError(f"decodes to more than data.max_pixels ({Image.MAX_IMAGE_PIXELS})") from None
        except Image.UnidentifiedImageError:
            raise BadImageError(what_it_is(head, formats)) from None
        except Exception as error:  # damaged bytes make Pillow's decoders raise nearly anything
            raise BadImageError(f"does not decode: {' '.join(str(error).split()) or type(error).__name__}") from None


def what_it_is(head: bytes, formats: tuple[str, ...] = FORMATS) -> str:
    """Why a file that begins so is not an image of one of the formats."""
    for pattern, what, remedy in _OTHERS:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            return f"{what}, not pixels that can be read: {remedy}"
    if not head:
        return "empty"
    return "not an image" if formats == FORMATS else f"not a {' or '.join(formats)} image"


def _bits_of(image: Image.Image) -> int | None:
    """Bits of an integer sample, as far as the format says. Pillow's mode I holds 16 or 32 of them."""
    if image.mode == "F":
        return None
    if not image.mode.startswith("I"):
        return 8
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]  # type: ignore[attr-defined]
        signed = image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] != 1  # type: ignore[attr-defined]
        return None if signed or bits > 16 else bits
    return 16


def _loses_bits(image: Image.Image) -> bool:
    """Whether Pillow will keep the high bytes alone, as of 16-bit colour."""
    tiles = getattr(image, "tile", [])
    raw = [str(part) for tile in tiles for part in (tile.args if isinstance(tile.args, tuple) else (tile.args,))]
    return image.mode in ("LA", "RGB", "RGBA", "CMYK") and any(";16" in part for part in raw)


def _plain(image: Image.Image, bits: int | None, cut: bool, levels: Levels) -> Image.Image:
    """The image in mode L or RGB."""
    if cut and levels.given:
        raise BadImageError("16 bits a channel and more than one channel: `data.levels` needs 8 bits, or grey")
    grey = image.mode in ("1", "L", "LA") or image.mode.startswith(("I", "F"))
    if image.mode.startswith(("I", "F")):
        return levels.apply(image, bits)
    if not image.has_transparency_data:
        return levels.apply(image.convert("L" if grey else "RGB"), 8)
    image = image.convert("RGBA")
    if levels.given:
        return _on_white(levels.apply(image, 8)).convert("L" if grey else "RGB")
    # The range is that of what is seen: of many drawings the colour lies in the transparency alone.
    return levels.apply(_on_white(image).convert("L" if grey else "RGB"), 8)


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


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
