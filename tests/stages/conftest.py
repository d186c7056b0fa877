"""Models that the tests of several files start from."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest
from of_latents import params
from once import made_once

from ddpm.stages.encode import encode
from ddpm.stages.export import export_variant
from ddpm.stages.train import train_variant
from ddpm.stages.train_autoencoder import train_autoencoder


@pytest.fixture(scope="session")
def latents_template(prepared_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with an autoencoder and a model of its latents: both trained, and the second exported."""

    def make(directory: Path) -> None:
        shutil.copytree(prepared_template, directory, dirs_exist_ok=True)
        with contextlib.chdir(directory):
            train_autoencoder(params(), "squeeze")
            encode(params(), "squeeze")
            train_variant(params(), "small")
            export_variant(params(), "small")

    return made_once(tmp_path_factory, "latents", make)
