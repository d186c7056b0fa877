"""A tiny project, prepared once a session and copied for every test that needs one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

# Tests compare bytes: one thread makes a run independent of how many cores the machine has.
os.environ["OMP_NUM_THREADS"] = "1"

TINY_PARAMS = {
    "seed": 3,
    "data": {"source": "digits"},
    "extractor": {"steps": 40},
    "evaluation": {"samples": 64, "batch_size": 32, "splits": 2},
    "export": {"parity_samples": 2, "parity_steps": 5},
    "variants": ["tiny"],
    "models": {
        "tiny": {
            "network": {
                "width": 8,
                "multipliers": [1, 2],
                "blocks": 1,
                "attention_resolutions": [4],
                "groups": 4,
                "dropout": 0.1,
            },
            "process": {"timesteps": 50, "variance": "fixed_small"},
            "objective": {"loss": "simple"},
            "training": {
                "steps": 40,
                "batch_size": 8,
                "warmup_steps": 2,
                "learning_rate": 1e-3,
                "ema_decay": 0.9,
                "log_every": 7,
                "checkpoint_every": 5,
            },
            "sampling": {"steps": 5},
        }
    },
}

Cli = Callable[..., subprocess.CompletedProcess[str]]


def run_cli(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `ddpm` as a user does, in its own process."""
    return subprocess.run(
        [sys.executable, "-m", "ddpm", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def write_params(directory: Path, params: dict) -> None:
    (directory / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


@pytest.fixture(scope="session")
def prepared_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits fetched, prepared, and an extractor fitted."""
    directory = tmp_path_factory.mktemp("template")
    write_params(directory, TINY_PARAMS)
    for stage in ("fetch", "prepare", "fit-extractor"):
        done = run_cli(directory, stage)
        assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def project(prepared_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the prepared tiny project, and the current directory."""
    directory = tmp_path / "project"
    shutil.copytree(prepared_template, directory)
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture(scope="session")
def trained_template(prepared_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with its model trained, evaluated and exported."""
    directory = tmp_path_factory.mktemp("trained") / "project"
    shutil.copytree(prepared_template, directory)
    for stage in ("train", "evaluate", "export"):
        done = run_cli(directory, stage, "tiny")
        assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def trained(trained_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained tiny project, and the current directory."""
    directory = tmp_path / "trained"
    shutil.copytree(trained_template, directory)
    monkeypatch.chdir(directory)
    return directory
