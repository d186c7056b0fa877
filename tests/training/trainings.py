"""Trainings of the tiny project that are started, watched and ended."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import yaml

from ddpm.files import sha256_of

LONG = 200
"""Steps in which there is time for three lives that are ended, each some tens of steps after it began."""
OUTPUTS = ("model.safetensors", "model.json", "loss.csv")


def hashes(project: Path) -> dict[str, str]:
    return {name: sha256_of(project / "models/tiny" / name) for name in OUTPUTS}


def start_training(project: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ddpm", "train", "tiny"],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def checkpoints(project: Path) -> list[Path]:
    return sorted(project.glob(".ddpm/training/tiny/*/step-*"))


def leftovers(project: Path) -> list[Path]:
    """Half checkpoints: those being written, and those whose writer was killed."""
    return sorted(project.glob(".ddpm/training/tiny/*/.step-*"))


def wait_for_checkpoint(project: Path, process: subprocess.Popen[str]) -> None:
    """Wait for one that was not there yet."""
    before, deadline = checkpoints(project), time.monotonic() + 120
    while checkpoints(project) == before:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def set_training(project: Path, **options: object) -> None:
    """Change keys of the variant's section `training`."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"]["tiny"]["training"] |= options
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def longer(project: Path, steps: int = LONG) -> None:
    """More steps, so that there is time to be killed in."""
    set_training(project, steps=steps, checkpoint_every=10)
