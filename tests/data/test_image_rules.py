"""Any image file becomes 8-bit grey or RGB by the stated rules."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddpm.data.images import BadImageError, Levels, decode, pixel_limit, to_array


def saved(image: Image.Image, kind: str, **options) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    stream.seek(0)
    return stream


def pixel(image: Image.Image) -> object:
    return image.getpixel((0, 0))


@pytest.mark.parametrize(
    ("image", "kind", "mode", "value"),
    [
        (Image.new("L", (3, 3), 7), "PNG", "L", 7),
        (Image.new("1", (3, 3), 1), "PNG", "L", 255),
        (Image.new("RGB", (3, 3), (1, 2, 3)), "PNG", "RGB", (1, 2, 3)),
        (Image.new("P", (3, 3), 0), "PNG", "RGB", (0, 0, 0)),
        (Image.new("CMYK", (3, 3), (0, 255, 255, 0)), "TIFF", "RGB", (255, 0, 0)),
        (Image.new("RGBA", (3, 3), (255, 0, 0, 0)), "PNG", "RGB", (255, 255, 255)),
        (Image.new("RGBA", (3, 3), (255, 0, 0, 51)), "PNG", "RGB", (255, 204, 204)),
        (Image.new("LA", (3, 3), (0, 51)), "PNG", "L", 204),
        (Image.fromarray(np.full((3, 3), 0x1234, np.uint16)), "PNG", "L", 0x12),
        (Image.fromarray(np.full((3, 3), 0xFFFF, np.uint16)), "TIFF", "L", 255),
        (Image.fromarray(np.full((3, 3), 0x80FF, np.uint16)), "PPM", "L", 0x80),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_modes(image: Image.Image, kind: str, mode: str, value: object) -> None:
    plain = decode(saved(image, kind))
    assert plain.mode == mode
    assert pixel(plain) == value


def test_transparent_palette_colour_is_white() -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 0, 0, 255])
    assert pixel(decode(saved(image, "PNG"))) == (0, 0, 255)
    assert pixel(decode(saved(image, "PNG", transparency=1))) == (255, 255, 255)


@pytest.mark.parametrize("dtype", [np.float32, np.int32], ids=["float", "32 bits"])
def test_samples_of_unknown_range_are_refused(dtype: type) -> None:
    with pytest.raises(BadImageError, match=r"range is not known.*`data\.levels`"):
        decode(saved(Image.fromarray(np.full((3, 3), 200, dtype)), "TIFF"))


def test_samples_without_a_value_are_refused() -> None:
    image = Image.fromarray(np.array([[0, np.nan]], np.float32))
    with pytest.raises(BadImageError, match="NaN or infinite"):
        decode(saved(image, "TIFF"), Levels(1))


@pytest.mark.parametrize(
    ("samples", "kind", "levels", "expected"),
    [
        (np.array([0, 2048, 4095, 5000], np.uint16), "PNG", 4095, [0, 128, 255, 255]),
        (np.array([0, 2048, 4095], np.uint16), "PPM", 4095, [0, 128, 255]),
        (np.array([-1, 0, 1], np.float32), "TIFF", (-1.0, 1.0), [0, 128, 255]),
        (np.array([0, 100, 255], np.int32), "TIFF", 255, [0, 100, 255]),
        (np.array([0, 8, 16], np.uint8), "PNG", 16, [0, 128, 255]),
        (np.array([90, 100, 110], np.uint8), "PNG", (100, 110), [0, 0, 255]),
    ],
    ids=["12 bits", "PGM", "float", "32 bits", "8 bits", "window"],
)
def test_levels(samples: np.ndarray, kind: str, levels: float | tuple, expected: list[int]) -> None:
    image = decode(saved(Image.fromarray(samples[None]), kind), Levels(levels))
    assert image.mode == "L"
    assert np.asarray(image)[0].tolist() == expected


def test_levels_of_colour_leave_transparency_alone() -> None:
    image = Image.new("RGBA", (2, 1), (0, 10, 20, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    plain = decode(saved(image, "PNG"), Levels(20))
    assert [plain.getpixel((0, 0)), plain.getpixel((1, 0))] == [(0, 128, 255), (255, 255, 255)]


def tiff_of_12_bits(value: int) -> io.BytesIO:
    """Two samples, packed into three bytes."""
    entries = [(256, 3, 2), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (279, 4, 3)]
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, content) for tag, kind, content in entries)
    packed = (value << 12 | value).to_bytes(3, "big")
    return io.BytesIO(b"II*\0" + struct.pack("<I", 12) + packed + b"\0" + struct.pack("<H", 8) + directory + bytes(4))


def test_a_format_of_12_bits_is_known_to_have_them() -> None:
    levels = Levels()
    assert np.asarray(decode(tiff_of_12_bits(0xFFF), levels)).tolist() == [[255, 255]]
    assert list(levels.ranges) == [(0, 4095)]


def png_of_16_bit_colour(value: int) -> io.BytesIO:
    row = b"\0" + struct.pack(">6H", *[value] * 6)
    return png(2, 1, 16, zlib.compress(row))


def test_16_bit_colour_keeps_its_high_bytes_and_takes_no_levels() -> None:
    assert pixel(decode(png_of_16_bit_colour(0x1234))) == (0x12, 0x12, 0x12)
    with pytest.raises(BadImageError, match=r"16 bits a channel and more than one channel: `data\.levels` needs"):
        decode(png_of_16_bit_colour(0x0FFF), Levels(4095))


def test_the_range_of_a_drawing_is_that_of_what_is_seen() -> None:
    """Its colour may be black everywhere, and its shape lie in the transparency."""
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    levels = Levels()
    decode(saved(image, "PNG"), levels)
    assert levels.warnings() == []


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"\0\0\0\x18ftypheic", "a HEIC image, .*convert it to PNG or JPEG"),
        (b"\0\0\0\x1cftypmif1", "a HEIC image"),
        (b"\0\0\0\x20ftypisom", "a video"),
        (b'<svg xmlns="http://www.w3.org/2000/svg">', "an SVG drawing, .*render it to PNG"),
        (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg width="8">', "an SVG drawing"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "PostScript"),
        (b"%PDF-1.7", "a PDF document"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, .*`git lfs pull`"),
        (b"", "empty"),
        (b"hello", "not an image"),
    ],
)
def test_what_is_not_an_image_is_called_what_it_is(head: bytes, what: str) -> None:
    with pytest.raises(BadImageError, match=f"^{what}"):
        decode(io.BytesIO(head))


def test_no_file_starts_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has Ghostscript run what an EPS file says, whatever the file's name is."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\nexit 1\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    drawing = tmp_path / "renamed.png"
    Image.new("L", (4, 4)).save(drawing, "EPS")
    with pytest.raises(BadImageError, match="PostScript"):
        decode(drawing)
    assert not (tmp_path / "was-run").exists()


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° clockwise to see it upright
    upright = decode(saved(image, "PNG", exif=exif))
    assert upright.size == (2, 4)
    assert upright.getpixel((1, 0)) == (255, 0, 0)


def test_grey_is_itu_r_601_luma() -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]], np.uint8)
    grey = to_array(Image.fromarray(colours), 1, None)
    assert np.abs(grey[0, :, 0] - colours[0] @ [0.299, 0.587, 0.114]).max() <= 0.5 + 1e-3


def test_crop_is_the_centre_square_on_whole_pixels() -> None:
    columns = np.tile(np.arange(9, dtype=np.uint8), (4, 1))
    assert (to_array(Image.fromarray(columns), None, 4)[..., 0] == [2, 3, 4, 5]).all()
    assert (to_array(Image.fromarray(columns.T.copy()), None, 4)[0, :, 0] == 2).all()


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255  # finer than 8 pixels can show: must come out grey, not black or white
    small = to_array(Image.fromarray(stripes), None, 8)[..., 0].astype(int)
    assert np.abs(small[:, 1:-1] - 127.5).max() < 8


@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    level=st.integers(0, 255),
    channels=st.sampled_from([1, 3]),
    size=st.integers(1, 24),
)
def test_any_size_becomes_the_one_asked_for(width: int, height: int, level: int, channels: int, size: int) -> None:
    array = to_array(Image.new("L", (width, height), level), channels, size)
    assert array.shape == (size, size, channels)
    assert array.dtype == np.uint8
    assert (array == level).all()


@given(st.data())
def test_without_a_rule_the_pixels_are_the_files(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(3, 5, 1), (5, 5, 3)]))
    pixels = np.frombuffer(data.draw(st.binary(min_size=75, max_size=75))[: np.prod(shape)], np.uint8).reshape(shape)
    image = decode(saved(Image.fromarray(pixels.squeeze()), "PNG"))
    assert (to_array(image, None, None) == pixels).all()


def png_claiming(width: int, height: int) -> io.BytesIO:
    """A PNG of a few bytes that says it is that large."""
    return png(width, height, 8, zlib.compress(b""))


def png(width: int, height: int, bits: int, pixels: bytes) -> io.BytesIO:
    """A PNG in colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


@pytest.mark.parametrize("side", [11, 15, 60_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    with pixel_limit(100), pytest.raises(BadImageError, match=r"more than data.max_pixels \(100\)"):
        decode(png_claiming(side, side))


def test_the_limit_itself_is_allowed_and_ends_with_the_block() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with pixel_limit(100):
        assert decode(saved(Image.new("L", (10, 10)), "PNG")).size == (10, 10)
    assert before == Image.MAX_IMAGE_PIXELS


@given(st.data())
def test_damaged_bytes_are_an_image_or_named_bad(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
    whole = saved(Image.linear_gradient("L").resize((9, 9)), kind).getvalue()
    start = data.draw(st.integers(0, len(whole) - 1))
    damage = data.draw(st.binary(max_size=8))
    damaged = whole[:start] + damage + whole[start + len(damage) + data.draw(st.integers(0, 4)) :]
    with pixel_limit(10_000), contextlib.suppress(BadImageError):  # and no other error
        assert decode(io.BytesIO(damaged)).mode in ("L", "RGB")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF"])
def test_truncated(kind: str) -> None:
    whole = saved(Image.effect_noise((32, 32), 50), kind).getvalue()
    with pytest.raises(BadImageError):
        decode(io.BytesIO(whole[: len(whole) // 2]))
