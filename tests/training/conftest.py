"""Trainings of `LONG` steps: one undisturbed, and one that was killed."""

import shutil
import time
from pathlib import Path

import pytest
from once import entered, made_once
from tiny import run_cli
from trainings import checkpoints, longer, start_training


@pytest.fixture(scope="session")
def uninterrupted(prepared_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with its model trained for `LONG` steps, undisturbed."""

    def make(directory: Path) -> None:
        shutil.copytree(prepared_template, directory, dirs_exist_ok=True)
        longer(directory)
        assert run_cli(directory, "train", "tiny").returncode == 0

    return made_once(tmp_path_factory, "uninterrupted", make)


@pytest.fixture(scope="session")
def killed_template(prepared_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with a training of `LONG` steps that was killed after its second checkpoint."""

    def make(directory: Path) -> None:
        shutil.copytree(prepared_template, directory, dirs_exist_ok=True)
        longer(directory)
        process = start_training(directory)
        while len(checkpoints(directory)) < 2:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.002)
        process.kill()
        process.wait()

    return made_once(tmp_path_factory, "killed", make)


@pytest.fixture
def killed(killed_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project whose training was killed, and the current directory."""
    return entered(killed_template, tmp_path / "project", monkeypatch)
