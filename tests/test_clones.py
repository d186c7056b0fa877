"""Fresh clones: the same bytes from two of them, DVC's own commands on what came of it, and a user's own pictures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import TINY_PARAMS, write_params

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def run(cwd: Path, *command: str) -> str:
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(cwd)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def clone(source: Path, directory: Path, **params: Any) -> Path:
    """A git clone of the working tree as it stands, with parameters that take seconds, and some replaced."""
    run(source.parent, "git", "clone", "--quiet", str(source), str(directory))
    write_params(directory, {**TINY_PARAMS, **params})
    run(directory, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-am", "tiny")
    return directory


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files git knows or would take, committed: what a clone of this work would hold."""
    directory = tmp_path_factory.mktemp("source") / "repository"
    names = run(ROOT, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name)
    run(directory, "git", "init", "--quiet")
    run(directory, "git", "add", "--all")
    run(directory, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "as it stands")
    return directory


@pytest.fixture(scope="module")
def first(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = clone(source, tmp_path_factory.mktemp("first") / "here")
    run(directory, "dvc", "repro", "--quiet")
    return directory


def test_two_clones_end_with_the_same_lock_file(source: Path, first: Path, tmp_path: Path):
    second = clone(source, tmp_path / "another place, with a longer path")
    run(second, "dvc", "repro", "--quiet")
    assert (first / "dvc.lock").read_bytes() == (second / "dvc.lock").read_bytes()
    assert "train@tiny" in (first / "dvc.lock").read_text()


def test_a_second_repro_has_nothing_to_do(first: Path):
    before = (first / "dvc.lock").read_bytes()
    said = run(first, "dvc", "repro")
    assert "Stage 'train@tiny' didn't change, skipping" in said
    assert (first / "dvc.lock").read_bytes() == before


def test_an_experiment_is_compared_and_drawn(first: Path):
    """README's `dvc exp run -S`, `metrics diff`, `exp show`, `plots show`; only what depends on the change runs."""
    run(first, "git", "add", "--all")
    run(first, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "first")
    figures = first / "reports/tiny/metrics.json"
    before = json.loads(figures.read_text())
    said = run(first, "dvc", "exp", "run", "--name", "fewer", "-S", "models.tiny.sampling.steps=3")
    assert "Stage 'train@tiny' didn't change, skipping" in said
    after = json.loads(figures.read_text())
    assert before["fid"] != after["fid"]
    assert before["protocol"] != after["protocol"]
    [change] = json.loads(run(first, "dvc", "metrics", "diff", "--all", "--json")).values()
    assert {key: (each["old"], each["new"]) for key, each in change.items()} == {
        key: (before[key], after[key]) for key in before
    }
    shown = json.loads(run(first, "dvc", "exp", "show", "--json"))
    assert [entry["data"]["metrics"]["reports/tiny/metrics.json"]["data"] for entry in shown] == [after, before]
    assert [experiment["name"] for experiment in shown[1]["experiments"]] == ["fewer"]
    run(first, "dvc", "plots", "show")
    page = (first / "dvc_plots/index.html").read_text()
    assert "Training loss" in page
    assert "samples.png" in page


def draw_pictures(folder: Path, count: int) -> None:
    """Discs and squares of random colours, at sizes that differ."""
    chance = np.random.default_rng(0)
    for index in range(count):
        kind = ("discs", "squares")[index % 2]
        height, width = chance.integers(20, 40, 2)
        y, x = np.mgrid[:height, :width] / min(height, width) * 2 - 1
        inside = (x**2 + y**2 < 0.5) if kind == "discs" else (np.maximum(abs(x), abs(y)) < 0.5)
        picture = np.where(inside[..., None], chance.integers(128, 256, 3), chance.integers(0, 128, 3)).astype(np.uint8)
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / kind / f"{index:03d}.png")


@pytest.mark.slow
def test_500_pictures_in_folders_become_a_registered_model(source: Path, tmp_path: Path, monkeypatch):
    """By editing params.yaml alone."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    draw_pictures(tmp_path / "my pictures", 500)
    data = {"source": "folder", "path": "../my pictures", "image_size": 8, "channels": 3}
    project = clone(source, tmp_path / "project", data=data)
    run(project, "dvc", "repro", "--quiet")
    run(project, "ddpm", "register", "tiny")
    run(project, "ddpm", "sample", "models:/ddpm-my-pictures@challenger", "--n", "5", "--out", "s.npz")
    assert np.load(project / "s.npz")["images"].shape == (5, 8, 8, 3)
    manifest = json.loads((project / "prepared/manifest.json").read_text())
    assert manifest["classes"] == ["discs", "squares"]
    assert manifest["counts"]["train"] == 400
