"""The links of a cascade of text to image train in two processes, a few images at a time, and survive them."""

from __future__ import annotations

import csv
import os
import signal
from copy import deepcopy
from pathlib import Path

import pytest
from captioned import write_pictures
from tiny import TINY_PARAMS, run_cli, workers, write_params
from trainings import checkpoints, hashes, leftovers, set_training, start_training, wait_for_checkpoint

from ddpm.config.params import load_params
from ddpm.stages.fetch import fetch
from ddpm.stages.prepare import prepare
from ddpm.stages.train import train_variant

pytestmark = pytest.mark.slow

PROMPT = {"length": 4, "width": 16, "layers": 1, "heads": 2}
LINKS = {
    "base": {"condition": {"prompt": {**PROMPT, "drop": 0.2}}, "codec": {"side": 4}},
    "upsampler": {"condition": {"prompt": {**PROMPT, "drop": 0}, "low": {"side": 4, "noise": 0.2}}},
}


@pytest.fixture(params=sorted(LINKS))
def link(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which `tiny` is a link; of a batch of nine, one process has four images and one five."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures")
    data = {"source": "folder", "path": "pictures", "validation_fraction": 0.4}
    params = deepcopy({**TINY_PARAMS, "variants": ["other"], "data": data})
    tiny = params["models"]["tiny"]
    params["models"]["other"] = deepcopy(tiny)
    tiny |= LINKS[request.param]
    # Without dropout, of which each process draws its own.
    tiny["network"] |= {"dropout": 0.0}
    tiny["training"] |= {"steps": 20, "batch_size": 9, "micro_batch_size": 2}
    write_params(tmp_path, params)
    fetch(load_params())
    prepare(load_params())
    return tmp_path


def curve(project: Path) -> list[float]:
    """Every loss and gradient norm of the loss curve."""
    with (project / "models/tiny/loss.csv").open() as stream:
        return [float(row[key]) for row in csv.DictReader(stream) for key in ("loss", "grad_norm")]


def forget_checkpoints(project: Path) -> None:
    for path in checkpoints(project):
        (path / "state.json").unlink()


def test_two_processes_take_the_steps_of_one(link: Path):
    """Sums are made in another order, as in test_parallel; wrong captions, low images or noise would show at once."""
    set_training(link, micro_batch_size=None)
    train_variant(load_params(), "tiny")
    alone = curve(link)
    forget_checkpoints(link)
    set_training(link, micro_batch_size=2, devices=2)
    done = run_cli(link, "train", "tiny")
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
    assert curve(link) == pytest.approx(alone, rel=1e-4)
    assert curve(link) != alone, "two have done it"


def test_all_are_killed_and_the_same_command_ends_in_the_same_bits(link: Path):
    set_training(link, devices=2, steps=60, checkpoint_every=10)
    process = start_training(link)
    wait_for_checkpoint(link, process)
    for pid in (process.pid, *workers(process)):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=120)
    assert not (link / "models/tiny").exists()
    resumed = run_cli(link, "train", "tiny")
    assert resumed.returncode == 0, resumed.stderr
    assert "continuing tiny from step" in resumed.stdout
    assert not leftovers(link)
    survived = hashes(link)
    forget_checkpoints(link)
    assert run_cli(link, "train", "tiny").returncode == 0
    assert hashes(link) == survived, "as if nobody had been killed"
