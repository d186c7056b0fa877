"""`make demo-unclip`: its project and its picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ddpm.codecs.scale import PixelCodec
from ddpm.config.params import load_params
from ddpm.data.loader import InMemoryImages
from flows import demo_unclip
from flows.demo_text import make_project

SHAPE = (32, 32, 3)


def test_the_project_trains_the_clip_and_what_draws_by_it(repository: Callable[..., Path]):
    root = repository(demo_unclip.FOLDER)
    project = make_project(root, demo_unclip.DEMO, demo_unclip.FOLDER)
    assert project == root / ".demo-unclip"
    params = load_params(project / "params.yaml")
    assert params.built == (demo_unclip.UNCLIP,)
    assert params.encoders == (demo_unclip.ENCODER,)
    assert params.data.dataset_name == "emoji"


class Echo:
    """Draws the first given picture; of a mixture the second one at the end; of a change its negative at the end."""

    codec, attribution = PixelCodec(SHAPE), "by them"

    def alike(self, likeness, count: int, *, seed: int) -> np.ndarray:
        drawn = np.repeat(likeness.pictures[:1], count, axis=0)
        if likeness.mix is not None:
            drawn[-1] = likeness.pictures[-1] if likeness.change is None else 255 - drawn[-1]
        return drawn


@pytest.fixture
def data() -> SimpleNamespace:
    """Grey pictures, one of each of these captions."""
    captions = [("turtle",), ("parrot", "bird"), ("red square",)]
    levels = np.array([10, 20, 30], np.uint8)
    images = InMemoryImages(np.broadcast_to(levels[:, None, None, None], (3, *SHAPE)).copy())
    images.captions = captions
    nothing = InMemoryImages(np.zeros((0, *SHAPE), np.uint8))
    nothing.captions = []
    return SimpleNamespace(split=lambda name: images if name == "validation" else nothing)


def test_the_picture_has_a_row_of_each_likeness_whose_pictures_there_are(data):
    picture = np.asarray(demo_unclip.likeness_picture(Echo(), data, shown=2))[..., 0]
    cells = [34 * place + 2 + 16 for place in range(4)]
    left = picture.shape[1] - 4 * 34 - 2  # the names
    rows = [[int(picture[top, left + at]) for at in cells] for top in cells[:4]]
    assert rows == [[10, 10, 10, 255], [20, 20, 20, 255], [10, 10, 20, 20], [30, 30, 225, 255]]


def test_the_given_picture_is_a_file_of_its_pixels(data, tmp_path: Path):
    demo_unclip.save_given(data, "bird", tmp_path / "given.png")
    assert (np.asarray(Image.open(tmp_path / "given.png")) == 20).all()
