"""Pictures that come over a network: only PNG is read, and only in the size that the model needs."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageFile

from ddpm.conditioning.pictures import ImageColumn
from ddpm.data.given import from_base64
from ddpm.data.images import FORMATS

COLUMN = ImageColumn((4, 5, 3))
PICTURE = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
DATA_URL = "data:image/png;base64,"


def sent(array: np.ndarray = PICTURE, kind: str = "PNG") -> str:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return base64.b64encode(stream.getvalue()).decode()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The formats whose readers were shown the bytes, in Pillow's own register of them."""
    Image.init()
    seen: list[str] = []

    def watched(name: str, reader):
        def read(*arguments):
            seen.append(name)
            return reader(*arguments)

        return read

    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        monkeypatch.setitem(Image.OPEN, name, (watched(name, factory), accept and watched(name, accept)))
    return seen


@pytest.mark.parametrize("head", ["", DATA_URL])
def test_a_png_is_read_and_no_other_format_sees_its_bytes(opened, head):
    np.testing.assert_array_equal(from_base64(COLUMN, head + sent()), PICTURE[None])
    assert set(opened) == {"PNG"}


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM"])
def test_bytes_of_another_format_reach_no_reader_of_it(opened, kind):
    text = sent(kind=kind)
    opened.clear()
    with pytest.raises(ValueError, match=r"^image: not a PNG image$"):
        from_base64(COLUMN, text)
    assert set(opened) <= {"PNG"}


def test_a_picture_with_more_pixels_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"^image: 6 pixels wide and 4 high, expected 5 wide and 4 high$"):
        from_base64(COLUMN, sent(np.zeros((4, 6, 3), np.uint8)))


@pytest.mark.parametrize("place", [4, 40])
def test_the_head_of_a_data_url_is_taken_off_the_beginning_alone(place):
    text = sent()
    with pytest.raises(ValueError, match="image: expected a PNG image in base64"):
        from_base64(COLUMN, text[:place] + DATA_URL + text[place:])
    with pytest.raises(ValueError, match="image: expected a PNG image in base64"):
        from_base64(COLUMN, DATA_URL * 2 + text)
