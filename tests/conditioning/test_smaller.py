"""A model of images in fewer pixels than the prepared ones: the section `codec`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from projects import trained_with

import ddpm
from ddpm.cli.main import main
from ddpm.data.store import PreparedData
from ddpm.errors import UserError
from ddpm.files import read_json, write_json


@pytest.fixture(scope="module")
def template(prepared_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with a model of digits in 4×4, conditioned on their classes."""
    folder = tmp_path_factory.mktemp("smaller")
    return trained_with({"label": {"drop": 0.2}}, prepared_template, folder, {"side": 4})


def test_it_draws_small_images_that_are_like_the_real_ones(here: Path):
    model, data = ddpm.load("models/tiny"), PreparedData.open(Path("prepared"))
    assert (data.codec.shape, model.shape) == ((8, 8, 1), (4, 4, 1))
    assert (model.card.config.codec.side, model.card.data.shape) == (4, (4, 4, 1))
    drawn = model.sample(64, seed=0, sampler="ddim", steps=10).astype(float)
    assert drawn.shape == (64, 4, 4, 1)
    real = data.split("train").rows(np.arange(200)).reshape(200, 4, 2, 4, 2, 1).mean((2, 4))
    assert np.abs(drawn.mean(0) - real.mean(0)).mean() < np.abs(real.mean(0).mean() - real.mean(0)).mean()


def test_it_is_exported_like_others(here: Path):
    assert main(["export", "tiny"]) == 0
    model, sampler = ddpm.load("models/tiny"), ddpm.load("deploy/tiny")
    assert sampler.shape == (4, 4, 1)
    told = {"seed": 3, "label": [1, 2]}
    assert np.abs(model.sample(4, **told).astype(int) - sampler.sample(4, **told)).max() <= 1


def test_a_dry_run_counts_the_small_images(here: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "tiny", "--dry-run"]) == 0
    small = capsys.readouterr().out
    _with_codec({})
    assert main(["train", "tiny", "--dry-run"]) == 0
    _with_codec({"side": 4})
    operations = [float(re.search(r"operations +(\S+) GFLOP", text)[1]) for text in (small, capsys.readouterr().out)]
    assert operations[0] < 0.5 * operations[1]


def test_it_is_not_measured_against_larger_images(here: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", "tiny"]) == 2
    said = capsys.readouterr().err
    assert "models/tiny makes images of 4×4×1, but the prepared data are of 8×8×1" in said
    assert "a model of smaller images is measured as a part of a cascade" in said


def test_a_side_that_does_not_fit_is_named(here: Path, capsys: pytest.CaptureFixture[str]):
    _with_codec({"side": 3})
    assert main(["train", "tiny"]) == 2
    error = capsys.readouterr().err
    assert "models.tiny.codec.side is 3, expected a proper divisor of the images' 8×8" in error
    assert error.count("\n") == 1
    _with_codec({"side": 4})


def test_a_card_of_before_has_no_such_section(here: Path, tmp_path: Path):
    shutil.copytree("models/tiny", tmp_path / "old")
    card = read_json(tmp_path / "old" / "model.json")
    assert card["config"].pop("codec") == {"side": 4, "latent": None, "embedding": None}
    write_json(tmp_path / "old" / "model.json", card)
    old, new = ddpm.load(tmp_path / "old"), ddpm.load("models/tiny")
    assert old.card.config.codec.side is None
    np.testing.assert_array_equal(old.sample(2, seed=0, steps=5), new.sample(2, seed=0))
    card["config"]["codec"] = {"size": 4}
    write_json(tmp_path / "old" / "model.json", card)
    with pytest.raises(UserError, match=r"config\.codec\.size"):
        ddpm.load(tmp_path / "old")


def _with_codec(section: dict) -> None:
    path = Path("params.yaml")
    params = yaml.safe_load(path.read_text())
    params["models"]["tiny"]["codec"] = section
    path.write_text(yaml.safe_dump(params))
