"""What takes seconds to set up, set up once for all workers of a test run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The temporary folder `name` of this test run. The first worker to need it makes it; the others wait and share it.

    Tests that change something copy it first.

    Args:
        make: fills the folder, which is there and empty. It is moved afterwards, so that what cannot be moved must not
            be written into it.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # whose own folder is in that of the run
        base = base.parent
    directory, half = base / name, base / f"{name}.half"
    with FileLock(base / f"{name}.lock"):
        if not directory.exists():
            shutil.rmtree(half, ignore_errors=True)  # of a worker that failed
            half.mkdir()
            make(half)
            half.rename(directory)
    return directory


def entered(template: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project `template` at `directory`, which becomes the current one."""
    shutil.copytree(template, directory)
    monkeypatch.chdir(directory)
    return directory
