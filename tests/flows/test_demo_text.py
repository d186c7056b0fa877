"""`make demo-text`: its project, its picture, and what its models are held to."""

from __future__ import annotations

import colorsys
import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import ddpm
from ddpm.conditioning.columns import PromptColumn
from ddpm.conditioning.tokenizers import Words
from ddpm.config.params import load_params
from ddpm.evaluation.pictures import CAPTION_HEIGHT
from ddpm.files import read_json
from ddpm.stages.compose import compose
from ddpm.stages.evaluate import evaluate_variant
from ddpm.stages.extractor import fit_extractor
from ddpm.stages.fetch import fetch
from ddpm.stages.prepare import prepare
from ddpm.stages.train import train_variant
from flows import demo_text

ROOT = Path(__file__).parents[2]


def test_the_project_has_the_repositorys_code_and_its_own_data(repository: Callable[..., Path]):
    root = repository()
    project = demo_text.make_project(root)
    (project / "kept").touch()
    assert demo_text.make_project(root) == project
    assert (project / "kept").exists()
    assert all((project / name).resolve() == root / name for name in ("ddpm", "flows", "dvc.yaml"))
    params = load_params(project / "params.yaml")
    assert params.data.dataset_name == "emoji"
    assert list(params.cascades) == [demo_text.CASCADE]
    assert (project / ".dvc").is_dir()
    assert (root / "params.yaml").read_text() == (ROOT / "params.yaml").read_text()


def test_the_picture_has_a_row_a_prompt_and_the_columns_of_each_scale():
    """A drawer whose pictures have a level for the prompt's place in the request and the guidance scale."""
    prompts, levels = ["red heart", "blue heart", "a purple heart"], {}

    def sample(count: int, *, seed: int, prompt: list[str], guidance_scale: float) -> np.ndarray:
        places = [prompts.index(text) for text in prompt]
        levels[guidance_scale] = [50 * place + 10 * int(guidance_scale) for place in places]
        return np.tile(np.array(levels[guidance_scale], np.uint8)[:, None, None, None], (1, 32, 32, 3))

    column = PromptColumn(Words.fit(prompts, {"length": 4}), tuple(prompts[:2]))
    drawer = SimpleNamespace(
        sample=sample, columns=(column,), attribution="by them", codec=SimpleNamespace(shape=(32, 32, 3))
    )
    picture = demo_text.prompts_picture(drawer, prompts, (1.0, 4.0), columns=2)
    pixels = np.array(picture)
    room = picture.width - (2 + 4 * 34)
    assert room > len("a purple heart *") * 4, "the words, whole"
    for row in range(3):
        for number, scale in enumerate((1, 1, 4, 4)):
            top, left = CAPTION_HEIGHT + 2 + row * 34, room + 2 + number * 34
            cell = pixels[top : top + 32, left : left + 32]
            assert (cell == 50 * row + 10 * scale).all()
        assert (pixels[CAPTION_HEIGHT + 2 + row * 34 :, :room] < 128).any(), "its words"
    notes, rest = divmod(picture.height - (CAPTION_HEIGHT + 2 + 3 * 34), CAPTION_HEIGHT)
    assert rest == 0
    assert notes >= 2, "the note and the credit, in as many lines as they need"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's models and the unconditional one of equal cost, trained and measured without DVC: many minutes."""
    root = tmp_path_factory.mktemp("demo")
    for name in ("params.yaml", "dvc.yaml"):
        (root / name).write_text((ROOT / name).read_text())
    project = demo_text.make_project(root, demo_text.DEMO)
    params = load_params(project / "params.yaml")
    with contextlib.chdir(project):
        fetch(params)
        prepare(params)
        fit_extractor(params)
        for name in (*params.trained, "emoji"):
            train_variant(params, name)
        compose(params, demo_text.CASCADE)
        for name in (*params.built, "emoji"):
            evaluate_variant(params, name)
    return project


@pytest.mark.slow
def test_captions_are_drawn_and_combine(trained: Path):
    told, untold = (read_json(trained / "reports" / name / "metrics.json") for name in (demo_text.CASCADE, "emoji"))
    assert told["retrieval_5_pixels"] >= 0.5
    assert told["held_out_retrieval_5_pixels_low"] >= 5 * told["held_out_retrieval_5_chance"]
    assert told["fid_high"] < untold["fid_low"]


# OpenMoji's green heart has the hue 71°, its yellow one 55°: green begins between the two.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompt", "low", "high"), [("red heart", -30, 30), ("green heart", 63, 165), ("blue heart", 180, 260)]
)
def test_hearts_have_the_hue_that_is_asked_for(trained: Path, prompt: str, low: float, high: float):
    images = ddpm.load(trained / "models" / demo_text.CASCADE).sample(16, seed=1, prompt=prompt)
    drawn = images.min(-1) < 200  # what is not white, or nearly
    hue, _, _ = colorsys.rgb_to_hsv(*(images[drawn].mean(0) / 255))
    assert low <= (360 * hue - low) % 360 + low <= high
