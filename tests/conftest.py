"""A tiny project, prepared once a session and copied for every test that needs one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny import TINY_PARAMS, run_cli, write_params


def entered(template: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project `template` at `directory`, which becomes the current one."""
    shutil.copytree(template, directory)
    monkeypatch.chdir(directory)
    return directory


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
    return entered(prepared_template, tmp_path / "project", monkeypatch)


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
    return entered(trained_template, tmp_path / "trained", monkeypatch)


@pytest.fixture
def finished(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose stages have all run, with an MLflow store of its own, and the current directory."""
    from finished import empty_store, write_outputs

    from ddpm import tracking

    for variable in ("MLFLOW_TRACKING_URI", tracking.RUN_ID):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(empty_store(tmp_path_factory.getbasetemp()) / "mlflow", tmp_path / "mlflow")
    write_outputs(tmp_path)
    return tmp_path
