"""Training that is stopped, by every means there is, ends in the same bits as training that was not."""

import csv
import json
import math
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import run_cli

from ddpm.files import sha256_of
from ddpm.stages.train import DECISIVE_CODE

OUTPUTS = ("model.safetensors", "model.json", "loss.csv")


def hashes(project: Path) -> dict[str, str]:
    return {name: sha256_of(project / "models/tiny" / name) for name in OUTPUTS}


def start_training(project: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "ddpm", "train", "tiny"],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def checkpoints(project: Path) -> list[Path]:
    return sorted(project.glob(".ddpm/training/tiny/*/step-*"))


def wait_for_checkpoint(project: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not checkpoints(project):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def longer(project: Path, steps: int) -> None:
    """More steps, so that there is time to be killed in."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"]["tiny"]["training"] |= {"steps": steps, "checkpoint_every": 10}
    (project / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.fixture(scope="module")
def uninterrupted(prepared_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("uninterrupted") / "project"
    shutil.copytree(prepared_template, directory)
    longer(directory, 300)
    assert run_cli(directory, "train", "tiny").returncode == 0
    return directory


def test_kill_9_again_and_again_and_the_bytes_are_the_same(project: Path, uninterrupted: Path):
    longer(project, 300)
    chance = random.Random(5)
    kills = 0
    for _ in range(3):
        process = start_training(project)
        before = checkpoints(project)
        deadline = time.monotonic() + 120
        # Past at least one new checkpoint, so that each life gets somewhere; then at any moment, writing included.
        while checkpoints(project) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.15))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills == 3
    assert not (project / "models/tiny").exists()
    done = run_cli(project, "train", "tiny")
    assert done.returncode == 0, done.stderr
    assert "continuing tiny from step" in done.stdout
    assert hashes(project) == hashes(uninterrupted)
    assert [path.name for path in checkpoints(project)][-1] == "step-000000300", "DVC may yet be killed: it stays"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_continues(project: Path, uninterrupted: Path, number: signal.Signals):
    longer(project, 300)
    process = start_training(project)
    wait_for_checkpoint(project, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 130
    stopped = int(output.split("stopped at step ")[1].split()[0])
    assert checkpoints(project)[-1].name == f"step-{stopped:09d}", "it stops where it was, not at the last checkpoint"
    assert run_cli(project, "train", "tiny").returncode == 0
    assert hashes(project) == hashes(uninterrupted)


def test_a_damaged_checkpoint_is_said_and_the_one_before_it_used(project: Path, uninterrupted: Path):
    longer(project, 300)
    process = start_training(project)
    while len(checkpoints(project)) < 2:
        time.sleep(0.002)
    process.kill()
    process.wait()
    newest = checkpoints(project)[-1] / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    done = run_cli(project, "train", "tiny")
    assert done.returncode == 0, done.stderr
    assert f"{newest.parent.name} is damaged" in done.stdout
    assert hashes(project) == hashes(uninterrupted)


def test_half_a_checkpoint_is_no_checkpoint(project: Path, uninterrupted: Path):
    """What a kill in the middle of writing leaves: a temporary directory that nobody takes for a state."""
    longer(project, 300)
    process = start_training(project)
    wait_for_checkpoint(project, process)
    process.kill()
    process.wait()
    state = checkpoints(project)[-1]
    half = state.with_name(f".{state.name}.half.tmp")
    shutil.copytree(state, half)
    (half / "state.json").unlink()
    assert run_cli(project, "train", "tiny").returncode == 0
    assert hashes(project) == hashes(uninterrupted)


def test_a_second_run_is_told_who_trains(project: Path):
    longer(project, 2000)
    first = start_training(project)
    try:
        wait_for_checkpoint(project, first)
        second = run_cli(project, "train", "tiny")
        assert second.returncode == 2
        assert f"process {first.pid} is training tiny" in second.stderr
    finally:
        first.kill()
        first.wait()


def test_killed_after_the_last_step_nothing_is_trained_again(project: Path, uninterrupted: Path):
    """DVC removes the outputs of a stage that it does not know to have ended."""
    longer(project, 300)
    assert run_cli(project, "train", "tiny").returncode == 0
    shutil.rmtree(project / "models")
    done = run_cli(project, "train", "tiny")
    assert "continuing tiny from step 300 of 300" in done.stdout
    assert hashes(project) == hashes(uninterrupted)


def test_a_changed_configuration_starts_anew_and_leaves_one_state(project: Path):
    process = start_training(project)
    wait_for_checkpoint(project, process)
    process.kill()
    process.wait()
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"]["tiny"]["training"]["learning_rate"] = 2e-3
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    done = run_cli(project, "train", "tiny")
    assert done.returncode == 0
    assert "continuing" not in done.stdout
    assert len({path.parent for path in checkpoints(project)}) == 1


def test_the_code_that_decides_is_what_dvc_watches():
    stages = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]
    assert {f"ddpm/{name}" for name in DECISIVE_CODE} == set(stages["train"]["deps"]) - {"prepared"}


def test_a_loss_that_is_no_number_stops_with_the_step_and_keeps_the_good_state(project: Path):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"]["tiny"]["training"] |= {
        "learning_rate": 1e30,
        "grad_clip": 1e30,
        "warmup_steps": 0,
        "checkpoint_every": 1,
    }
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    done = run_cli(project, "train", "tiny")
    assert done.returncode == 2
    assert re.search(r"ddpm train: tiny: the (loss|gradient norm) is (nan|inf)", done.stderr)
    assert " at step " in done.stderr
    assert "Traceback" not in done.stderr
    bad_step = int(done.stderr.split(" at step ")[1].split(";")[0].split()[0])
    kept = [int(path.name.removeprefix("step-")) for path in checkpoints(project)]
    assert kept, "the last good state stays"
    assert max(kept) < bad_step
    assert not (project / "models/tiny").exists()


def test_loss_curve_and_card(trained: Path):
    with (trained / "models/tiny/loss.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows] == [7, 14, 21, 28, 35, 40]
    assert all(math.isfinite(float(row[key])) for row in rows for key in ("loss", "grad_norm", "learning_rate"))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    card = json.loads((trained / "models/tiny/model.json").read_text())
    assert card["data"]["shape"] == [8, 8, 1]
    assert card["training"]["images_seen"] == 40 * 8
    assert card["config"]["network"]["width"] == 8


def test_two_runs_give_the_same_bytes(project: Path, trained_template: Path):
    assert run_cli(project, "train", "tiny").returncode == 0
    assert hashes(project) == hashes(trained_template)


def test_random_states_are_not_needed(project: Path):
    """The batch of a step is a function of the seed and the step, across epochs and for data smaller than a batch."""
    from ddpm.data.loader import batch_indices

    row = np.concatenate([batch_indices(10, 4, step, seed=1) for step in range(25)])
    for epoch in range(10):
        assert sorted(row[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert batch_indices(3, 8, 5, seed=1).tolist() == batch_indices(3, 8, 5, seed=1).tolist()
    assert len(batch_indices(3, 8, 0, seed=1)) == 8
