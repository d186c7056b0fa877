"""`make demo-control`: its project and its picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ddpm.codecs.scale import PixelCodec
from ddpm.conditioning.hints import SilhouetteColumn
from ddpm.config.data import DataConfig
from ddpm.config.params import load_params
from ddpm.data.loader import InMemoryImages
from ddpm.data.store import PreparedData
from ddpm.evaluation.agreement import Agreement, hint_column
from ddpm.evaluation.image_to_image import like_validation
from ddpm.evaluation.pictures import CAPTION_HEIGHT
from flows import demo_control
from flows.demo_text import make_project

ROOT = Path(__file__).parents[2]


def test_the_project_trains_the_base_and_its_control(repository: Callable[..., Path]):
    root = repository(demo_control.FOLDER)
    project = make_project(root, demo_control.DEMO, demo_control.FOLDER)
    assert project == root / ".demo-control"
    params = load_params(project / "params.yaml")
    assert params.built == ("emoji", "control-emoji")
    assert params.controls["control-emoji"].of == "emoji"
    assert params.data.dataset_name == "emoji"


def drawn(count: int, *, seed: int, control: np.ndarray, control_scale: float = 1.0) -> np.ndarray:
    """Where the hint is white: 200; elsewhere 50, without the control 0."""
    ground = 50 if control_scale else 0
    return np.repeat(np.where(control[..., None], 200, ground).astype(np.uint8), 3, axis=-1)


@pytest.fixture
def data() -> SimpleNamespace:
    """Black squares on white."""
    images = np.full((8, 16, 16, 3), 255, np.uint8)
    images[:, 4:8, 4:8] = 0
    return SimpleNamespace(codec=PixelCodec((16, 16, 3)), split=lambda name: InMemoryImages(images))


def test_the_picture_has_hints_what_is_drawn_of_them_and_what_the_base_draws(data):
    codec = PixelCodec((16, 16, 3))
    column = SilhouetteColumn((16, 16, 3))
    model = SimpleNamespace(columns=(column,), codec=codec, attribution="by them", sample=drawn)
    picture = np.asarray(demo_control.hints_picture(model, data, shown=4, samples=2))
    zoom = (picture.shape[1] - 2) // 8 // 16
    left = [2 + place * (16 * zoom + 2) for place in range(8)]
    top = [picture[CAPTION_HEIGHT + 2 + zoom * 5, at + zoom * 5] for at in left]
    corner = [picture[CAPTION_HEIGHT + 2, at] for at in left]
    assert [int(pixel[0]) for pixel in top] == [255, 200, 200, 200] * 2
    assert [int(pixel[0]) for pixel in corner] == [0, 50, 50, 0] * 2


def test_the_hint_is_a_file_that_the_model_takes(data, tmp_path):
    from ddpm.data.given import read_picture

    column = SilhouetteColumn((16, 16, 3))
    demo_control.save_hint(SimpleNamespace(columns=(column,)), data, tmp_path / "hint.png")
    hint = read_picture(column, tmp_path / "hint.png")
    assert hint.sum() == 16


@pytest.mark.slow
def test_after_a_short_training_edges_are_followed(tmp_path, monkeypatch):
    """The sudden convergence of the paper: within 150 steps. The base after 150 steps follows none."""
    pytest.importorskip("skimage")
    from ddpm.model import load
    from ddpm.stages.fetch import fetch
    from ddpm.stages.prepare import prepare
    from ddpm.stages.train import train_variant

    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    params = load_params().model_copy(update={"data": DataConfig(source="emoji")})
    short = {"steps": 150, "warmup_steps": 20, "checkpoint_every": 150}
    models = {
        name: model.model_copy(update={"training": model.training.model_copy(update=short)})
        for name in ("emoji", "control-emoji")
        for model in [params.models[name]]
    }
    params = params.model_copy(update={"models": {**params.models, **models}})
    fetch(params)
    prepare(params)
    for name in models:
        train_variant(params, name)
    model, data = load("models/control-emoji"), PreparedData.open(Path("prepared"))
    asked = like_validation(model.columns, data, np.arange(64))
    found = {}
    for scale in (0.0, 1.0):
        agreement = Agreement(hint_column(model.columns), data.codec, asked["control"])
        agreement.add(model.sample(64, steps=10, **asked, control_scale=scale))
        found[scale] = agreement.figures()
    assert found[1.0]["control_edges_low"] > found[0.0]["control_edges_high"] + 0.05
    assert abs(found[0.0]["control_edges"] - found[0.0]["control_edges_chance"]) < 0.05
