"""Pictures that users give a model, as the values of its columns: from files, or from base64."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddpm.conditioning.columns import Column
from ddpm.conditioning.hints import BlackAndWhite
from ddpm.data.images import FORMATS, BadImageError, decode, pixel_limit, to_array, what_it_is
from ddpm.errors import brief

MOST_PIXELS = 50_000_000  # of a picture that may have any size
_DATA_URL = "data:image/png;base64,"


def read_picture(
    column: Column,
    file: Path | IO[bytes],
    *,
    formats: tuple[str, ...] = FORMATS,
    on_grey: Callable[[int], object] = lambda count: None,
) -> NDArray[Any]:
    """The value that a picture gives a column, [*shape] of its type.

    As in preparation a picture is turned upright, transparency is laid over white, and grey becomes colour or colour
    grey. It is not resized. In a mask white is True, black is False, and a grey is the nearer of the two; a picture of
    0 and 1 alone has 1 for white. A hint says itself which pictures it can be.

    Args:
        formats: that it may have; the decoders of others are not run.
        on_grey: called with the number of pixels of a mask that are neither black nor white, if there are some.

    Raises:
        BadImageError: it does not decode, has another size, or is no picture of that kind.
    """
    height, width, *channels = column.shape
    with file.open("rb") if isinstance(file, Path) else file as stream:
        _check_before_decoding(stream, (width, height), formats)
        stream.seek(0)
        image = decode(stream, formats=formats)
    if image.size != (width, height):
        raise _wrong_size(image.size, (width, height))
    if channels:
        return to_array(image, channels[0], None)
    levels = to_array(image, 1, None)[..., 0]
    if isinstance(column, BlackAndWhite):
        try:
            return column.of_levels(levels)
        except ValueError as error:
            raise BadImageError(str(error)) from None
    white = 1 if levels.max() <= 1 else 255
    if greys := int(((levels > 0) & (levels < white)).sum()):
        on_grey(greys)
    return 2 * levels.astype(np.int64) > white


def read_any_picture(
    file: Path | IO[bytes], shape: tuple[int, ...], *, formats: tuple[str, ...] = FORMATS
) -> NDArray[np.uint8]:
    """A picture of any size as preparation makes it, [H, W, C] uint8: its centre square, resized.

    Args:
        shape: [H, W, C], H = W.
        formats: as of `read_picture`.

    Raises:
        BadImageError: it does not decode, or has too many pixels.
    """
    try:
        with pixel_limit(MOST_PIXELS):
            return to_array(decode(file, formats=formats), shape[2], shape[0])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError(f"more than {MOST_PIXELS:,} pixels") from None


def _check_before_decoding(stream: IO[bytes], size: tuple[int, int], formats: tuple[str, ...]) -> None:
    """By the picture's header: what is too large takes no memory.

    Raises:
        BadImageError: it has more pixels, or no header of one of the formats.
    """
    try:
        with Image.open(stream, formats=formats) as image:
            found = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError(f"far larger than {size[0]} by {size[1]} pixels") from None
    except Exception:  # damaged bytes make Pillow raise nearly anything
        stream.seek(0)
        raise BadImageError(what_it_is(stream.read(1024), formats)) from None
    if found[0] * found[1] > size[0] * size[1]:
        raise _wrong_size(found, size)


def _wrong_size(found: tuple[int, int], expected: tuple[int, int]) -> BadImageError:
    (width, height), (wide, high) = found, expected
    return BadImageError(f"{width} pixels wide and {height} high, expected {wide} wide and {high} high")


def pictures_in(path: Path) -> list[Path]:
    """A file, or the files directly in a directory, by their names; hidden ones are left out."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))


def from_base64(column: Column, asked: Any) -> NDArray[Any]:
    """Pictures that came over a network as the values of a column, [n, *shape]; arrays are left as they are.

    Args:
        asked: a PNG image in base64, also as a data URL, or a list of them.

    Raises:
        ValueError: one of them is not, or has another size; names the column.
    """
    if isinstance(asked, np.ndarray) and asked.dtype != object:
        return asked
    texts = [asked] if isinstance(asked, str) else list(asked) if isinstance(asked, Sequence | np.ndarray) else [asked]
    if not texts:
        raise ValueError(f"{column.name}: expected at least one picture, found none")
    try:
        return np.stack([read_picture(column, io.BytesIO(_png(text)), formats=("PNG",)) for text in texts])
    except BadImageError as error:
        raise ValueError(f"{column.name}: {error}") from None


def _png(text: Any) -> bytes:
    """
    Raises:
        BadImageError: it is not base64.
    """
    try:
        if isinstance(text, str):
            return base64.b64decode(text.removeprefix(_DATA_URL), validate=True)
    except ValueError:
        pass
    raise BadImageError(f"expected a PNG image in base64, found {brief(text)}")
