"""Checkpoints that cannot be written or read."""

import json
import re
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import run_cli
from trainings import checkpoints, hashes, leftovers, longer, start_training, wait_for_checkpoint

from ddpm.files import atomic_directory, atomic_file, remove_leftovers
from ddpm.training.checkpoint import Checkpoints


def truncate(state: Path) -> None:
    weights = state / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def empty(state: Path) -> None:
    (state / "state.safetensors").write_bytes(b"")


def flip_a_bit(state: Path) -> None:
    weights = state / "state.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def cut_the_description(state: Path) -> None:
    path = state / "state.json"
    path.write_text(path.read_text()[:-10])


def forget_the_hash(state: Path) -> None:
    path = state / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": None}))


def describe_by_a_list(state: Path) -> None:
    (state / "state.json").write_text("[1]")


def describe_nothing(state: Path) -> None:
    path = state / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "facts": None}))


def lose_the_weights(state: Path) -> None:
    (state / "state.safetensors").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        empty,
        flip_a_bit,
        cut_the_description,
        describe_by_a_list,
        describe_nothing,
        forget_the_hash,
        lose_the_weights,
    ],
)
def test_a_damaged_state_is_said_in_a_line_and_the_one_before_it_used(tmp_path: Path, damage: Callable[[Path], None]):
    said: list[str] = []
    states = Checkpoints(tmp_path / "states", say=said.append)
    for step in (10, 20):
        states.save(step, {"x": torch.full((100,), float(step))}, {"note": step})
    damage(tmp_path / "states" / "step-000000020")
    tensors, facts = states.latest()
    assert tensors["x"].tolist() == [10.0] * 100
    assert facts == {"note": 10, "step": 10}
    assert len(said) == 1
    assert "step-000000020 is damaged" in said[0]
    assert "\n" not in said[0]


@pytest.mark.slow
def test_a_disk_that_is_full_is_said_and_the_state_before_it_is_whole(project: Path, uninterrupted: Path):
    longer(project)
    process = start_training(project)
    wait_for_checkpoint(project, process)
    # From now on the kernel lets it write no file of more than a kilobyte.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    last = output.splitlines()[-1]
    assert re.search(r"the checkpoint \S*step-\d+ cannot be written \(.*File too large.*\)", last), last
    assert f"continues from {checkpoints(project)[-1].name}" in last
    assert "Traceback" not in output
    assert not leftovers(project)
    assert run_cli(project, "train", "tiny").returncode == 0
    assert hashes(project) == hashes(uninterrupted)


def test_what_the_living_write_is_no_leftover(tmp_path: Path):
    (tmp_path / ".a.0000.tmp").mkdir()
    (tmp_path / ".b.0000.tmp.json").write_text("half")
    (tmp_path / ".c.0000.tmp").mkdir()
    with atomic_directory(tmp_path / "a") as directory, atomic_file(tmp_path / "b.json") as file:
        (directory / "x").write_text("1")
        file.write_text("2")
        remove_leftovers(tmp_path)
        assert directory.is_dir()
        assert file.is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b.json"]


def test_a_writer_clears_away_what_one_before_it_left_and_nothing_else(tmp_path: Path):
    (tmp_path / ".a.0000.tmp").mkdir()
    (tmp_path / ".a.0000.old.tmp").mkdir()
    (tmp_path / ".other.0000.tmp").mkdir()
    with atomic_directory(tmp_path / "a"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.0000.tmp", "a"]
