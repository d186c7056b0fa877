import shutil
from pathlib import Path

import pytest
from tiny import run_cli
from trainings import longer


@pytest.fixture(scope="session")
def uninterrupted(prepared_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with its model trained for 300 steps, undisturbed."""
    directory = tmp_path_factory.mktemp("uninterrupted") / "project"
    shutil.copytree(prepared_template, directory)
    longer(directory, 300)
    assert run_cli(directory, "train", "tiny").returncode == 0
    return directory
