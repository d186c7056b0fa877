"""A tiny project, prepared once a test run and copied for every test that needs one."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import pytest
from once import entered, made_once
from tiny import TINY_PARAMS, run_cli, write_params


def pytest_collection_finish() -> None:
    """Leave all that is imported out of garbage collections, each of which would otherwise walk millions of objects."""
    gc.collect()
    gc.freeze()


def run_stages(directory: Path, *commands: list[str]) -> None:
    """Run these commands of `ddpm` in the project `directory`."""
    for command in commands:
        done = run_cli(directory, *command)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def prepared_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits fetched, prepared, and an extractor fitted."""

    def make(directory: Path) -> None:
        write_params(directory, TINY_PARAMS)
        run_stages(directory, ["fetch"], ["prepare"], ["fit-extractor"])

    return made_once(tmp_path_factory, "prepared", make)


@pytest.fixture
def template(prepared_template: Path) -> Path:
    """What `project` is a copy of. A test file whose tests share more than that has a `template` of its own."""
    return prepared_template


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the test file's `template`, by default the prepared tiny project, and the current directory."""
    return entered(template, tmp_path / "project", monkeypatch)


@pytest.fixture
def here(template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The `template` itself as the current directory, of tests that leave it fit for the others."""
    monkeypatch.chdir(template)
    return template


@pytest.fixture(scope="session")
def trained_template(prepared_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with its model trained, evaluated and exported."""

    def make(directory: Path) -> None:
        shutil.copytree(prepared_template, directory, dirs_exist_ok=True)
        run_stages(directory, ["train", "tiny"], ["evaluate", "tiny"], ["export", "tiny"])

    return made_once(tmp_path_factory, "trained", make)


@pytest.fixture
def trained(trained_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained tiny project, and the current directory."""
    return entered(trained_template, tmp_path / "trained", monkeypatch)


@pytest.fixture
def finished(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose stages have all run, with an MLflow store of its own, and the current directory."""
    from finished import empty_store, write_outputs

    from ddpm import tracking

    for variable in ("MLFLOW_TRACKING_URI", tracking.RUN_ID):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(empty_store(tmp_path_factory) / "mlflow", tmp_path / "mlflow")
    write_outputs(tmp_path)
    return tmp_path
