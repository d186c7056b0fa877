"""Training that is stopped, by every means there is, ends in the same bits as training that was not."""

import csv
import json
import math
import re
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import run_cli
from trainings import LONG, checkpoints, hashes, longer, set_training, start_training, wait_for_checkpoint


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_asked_to_stop_it_saves_and_continues(project: Path, uninterrupted: Path, number: signal.Signals):
    longer(project)
    process = start_training(project)
    wait_for_checkpoint(project, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 130
    stopped = int(output.split("stopped at step ")[1].split()[0])
    assert checkpoints(project)[-1].name == f"step-{stopped:09d}", "it stops where it was, not at the last checkpoint"
    assert run_cli(project, "train", "tiny").returncode == 0
    assert hashes(project) == hashes(uninterrupted)


def test_a_damaged_checkpoint_is_said_and_the_one_before_it_used(killed: Path, uninterrupted: Path):
    newest = checkpoints(killed)[-1] / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    done = run_cli(killed, "train", "tiny")
    assert done.returncode == 0, done.stderr
    assert f"{newest.parent.name} is damaged" in done.stdout
    assert hashes(killed) == hashes(uninterrupted)


def test_half_a_checkpoint_is_no_checkpoint(killed: Path, uninterrupted: Path):
    """What a kill in the middle of writing leaves: a temporary directory that nobody takes for a state."""
    state = checkpoints(killed)[-1]
    half = state.with_name(f".{state.name}.half.tmp")
    shutil.copytree(state, half)
    (half / "state.json").unlink()
    assert run_cli(killed, "train", "tiny").returncode == 0
    assert hashes(killed) == hashes(uninterrupted)


def test_a_second_run_is_told_who_trains(project: Path):
    longer(project, 2000)
    first = start_training(project)
    try:
        wait_for_checkpoint(project, first)
        second = run_cli(project, "train", "tiny")
        assert second.returncode == 2
        assert f"process {first.pid} on {socket.gethostname()} is training tiny" in second.stderr
    finally:
        first.kill()
        first.wait()


def test_killed_after_the_last_step_nothing_is_trained_again(project: Path, uninterrupted: Path):
    """DVC removes the outputs of a stage that it does not know to have ended."""
    longer(project)
    assert run_cli(project, "train", "tiny").returncode == 0
    shutil.rmtree(project / "models")
    done = run_cli(project, "train", "tiny")
    assert f"continuing tiny from step {LONG} of {LONG}" in done.stdout
    assert hashes(project) == hashes(uninterrupted)


def test_a_changed_configuration_begins_anew_says_why_and_keeps_the_state_until_the_new_model_is_there(project: Path):
    process = start_training(project)
    wait_for_checkpoint(project, process)
    process.kill()
    process.wait()
    [old] = {path.parent for path in checkpoints(project)}
    set_training(project, learning_rate=2e-3)
    process = start_training(project)
    begins = next(line for line in process.stdout if "begins at step 0" in line)
    assert (
        f"{old.relative_to(project)} is of another training: training.learning_rate is 0.002, and was 0.001" in begins
    )
    assert list(old.glob("step-*"))
    output, _ = process.communicate()
    assert process.returncode == 0
    assert "continuing" not in output
    assert len({path.parent for path in checkpoints(project)}) == 1
    assert not old.exists()


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
