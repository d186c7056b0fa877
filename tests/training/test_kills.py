"""kill -9 at moments drawn at random, in the start, in the steps and in the writing of a checkpoint."""

import copy
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from captioned import write_pictures
from tiny import run_cli, write_params
from trainings import LONG, checkpoints, hashes, leftovers, longer, start_training, wait_for_checkpoint
from unclips import unclip_params

from ddpm.config.params import load_params
from ddpm.stages.embed import embed
from ddpm.stages.fetch import fetch
from ddpm.stages.prepare import prepare
from ddpm.stages.train import train_variant


def let_start(project: Path, process: subprocess.Popen[str], chance: random.Random) -> None:
    time.sleep(chance.uniform(0, 4))


def let_step(project: Path, process: subprocess.Popen[str], chance: random.Random) -> None:
    wait_for_checkpoint(project, process)  # so that each life gets somewhere
    time.sleep(chance.uniform(0, 0.15))


def let_write(project: Path, process: subprocess.Popen[str], chance: random.Random) -> None:
    wait_for_checkpoint(project, process)
    deadline = time.monotonic() + 120
    while not leftovers(project) and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
    time.sleep(chance.uniform(0, 0.003))


def killed(project: Path, moments: list, seed: int) -> int:
    """Kill a training at each of the moments; returns how many of them left a half checkpoint behind."""
    chance, halves = random.Random(seed), 0
    for wait in moments:
        process = start_training(project)
        wait(project, process, chance)
        before = set(leftovers(project))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it was still training"
        halves += bool(set(leftovers(project)) & before)
    return halves


def assert_finishes_alike(project: Path, uninterrupted: Path) -> None:
    assert not (project / "models/tiny").exists()
    done = run_cli(project, "train", "tiny")
    assert done.returncode == 0, done.stderr
    assert "continuing tiny from step" in done.stdout
    assert hashes(project) == hashes(uninterrupted)
    assert not leftovers(project), "what the dead left is cleared away"


def test_kill_9_three_times_and_the_bytes_are_the_same(project: Path, uninterrupted: Path):
    longer(project)
    killed(project, [let_step, let_write, let_step], seed=5)
    assert_finishes_alike(project, uninterrupted)
    assert checkpoints(project)[-1].name == f"step-{LONG:09d}", "DVC may yet be killed: it stays"


@pytest.fixture(params=["clip", "prior"])
def of_captions(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which `tiny` is a CLIP, or a prior of the embeddings of one."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    write_pictures(Path("pictures"))
    params = unclip_params()
    params["models"]["tiny"] = copy.deepcopy(params["models"][request.param])
    write_params(project, {**params, "variants": ["larger"], "unclips": {}})
    fetch(load_params())
    prepare(load_params())
    if request.param == "prior":
        train_variant(load_params(), "clip")
        embed(load_params(), "clip")
    return project


@pytest.mark.slow
def test_kill_9_of_a_clip_and_of_a_prior_and_the_bytes_are_the_same(of_captions: Path):
    longer(of_captions, 600)
    undisturbed = of_captions.with_name("undisturbed")
    shutil.copytree(of_captions, undisturbed)
    assert run_cli(undisturbed, "train", "tiny").returncode == 0
    killed(of_captions, [let_step, let_write, let_step], seed=7)
    assert_finishes_alike(of_captions, undisturbed)


@pytest.mark.slow
def test_kill_9_at_24_moments_and_the_bytes_are_the_same(project: Path, tmp_path: Path):
    longer(project, 1500)
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(project, undisturbed)
    assert run_cli(undisturbed, "train", "tiny").returncode == 0
    moments = [let_start] * 6 + [let_step] * 8 + [let_write] * 10
    random.Random(11).shuffle(moments)
    assert killed(project, moments, seed=12) >= 3, "some were in the middle of writing"
    assert_finishes_alike(project, undisturbed)
