"""A CLIP in two processes: each compares its own rows with those of both."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from captioned import CLIP, write_pictures
from test_parallel_links import curve, forget_checkpoints
from tiny import TINY_PARAMS, run_cli, write_params
from trainings import set_training

from ddpm.config.params import load_params
from ddpm.stages.fetch import fetch
from ddpm.stages.prepare import prepare
from ddpm.stages.train import train_variant

pytestmark = pytest.mark.slow


def test_two_processes_take_the_steps_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a batch of nine one has four rows and the other five. Without the other's rows, or without the gradients that
    come back from the other, the first digits differ, from the first step on. Later steps carry the rounding of the
    earlier ones, at a gradient norm of a hundred: with a small learning rate they stay alike."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures")
    data = {"source": "folder", "path": "pictures", "validation_fraction": 0.4}
    tiny = {**TINY_PARAMS["models"]["tiny"], **copy.deepcopy(CLIP)}
    models = {"other": TINY_PARAMS["models"]["tiny"], "tiny": tiny}
    write_params(tmp_path, {**TINY_PARAMS, "variants": ["other"], "encoders": ["tiny"], "data": data, "models": models})
    set_training(tmp_path, steps=6, batch_size=9, log_every=1, learning_rate=1e-4)
    fetch(load_params())
    prepare(load_params())
    train_variant(load_params(), "tiny")
    alone = curve(tmp_path)
    forget_checkpoints(tmp_path)
    set_training(tmp_path, devices=2)
    done = run_cli(tmp_path, "train", "tiny")
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
    assert curve(tmp_path) == pytest.approx(alone, rel=1e-4)
