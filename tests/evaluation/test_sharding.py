"""Samples that several processes draw are those that one would draw."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import TINY_PARAMS, run_cli, run_with_params_of_before, workers, write_params

from ddpm.codecs.scale import PixelCodec
from ddpm.compute.parallel import Ranks
from ddpm.conditioning.columns import LabelColumn
from ddpm.drawer import Drawer
from ddpm.errors import Interrupted
from ddpm.evaluation.sharding import sharded_batches
from ddpm.files import read_json


class Numbers(Drawer):
    """A model whose image i is i everywhere."""

    shape = (2, 2, 1)
    codec = PixelCodec(shape)
    columns = ()
    choices = ({}, {})
    guidable = False

    def plan(self, **overrides):
        return None

    def sampled_by(self, sampling):
        return self

    def draw_parts(self, plan, parts):
        return [self.images(np.arange(part.first, part.first + part.count)) for part in parts]

    def images(self, numbers):
        return np.broadcast_to(numbers.astype(np.uint8)[:, None, None, None], (len(numbers), 2, 2, 1))


class Told(Numbers):
    """A conditional model whose images show the class that they were asked for."""

    columns = (LabelColumn(tuple("abcdefg"), counts=(5, 1, 1, 1, 1, 1, 20)),)

    def draw_parts(self, plan, parts):
        return [self.images(part.given["label"]) for part in parts]


class Collected(Ranks):
    """A process that notes what it has to give."""

    def gather(self, tensor):
        object.__setattr__(self, "given", [*getattr(self, "given", []), tensor])
        return []


@given(count=st.integers(1, 200), batch_size=st.integers(1, 70), processes=st.integers(1, 5))
@mock.patch.dict(os.environ, LOCAL_WORLD_SIZE="1")
def test_each_image_is_drawn_by_one_process_and_they_come_in_order(count, batch_size, processes):
    batches = drawn_by(processes, Numbers(), count, seed=0, batch_size=batch_size)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert np.concatenate(batches)[:, 0, 0, 0].tolist() == list(range(count))


@given(count=st.integers(1, 100), batch_size=st.integers(1, 40), processes=st.integers(1, 5), seed=st.integers(0, 9))
@mock.patch.dict(os.environ, LOCAL_WORLD_SIZE="1")
def test_they_are_asked_for_the_labels_that_one_process_is(count, batch_size, processes, seed):
    expected = Told().given(count, seed=seed)["label"]
    batches = drawn_by(processes, Told(), count, seed=seed, batch_size=batch_size)
    assert np.concatenate(batches)[:, 0, 0, 0].tolist() == expected.tolist()


@mock.patch.dict(os.environ, LOCAL_WORLD_SIZE="1")
def test_balanced_labels_take_turns_across_processes():
    batches = drawn_by(3, Told(), 40, seed=0, batch_size=4, label=range(7))
    assert np.concatenate(batches)[:, 0, 0, 0].tolist() == [index % 7 for index in range(40)]


def drawn_by(processes: int, model: Drawer, count: int, **options: Any) -> list[np.ndarray]:
    """The batches that the first of several processes gets."""
    ranks = [Collected(rank, processes) for rank in range(processes)]
    for each in ranks:
        assert not list(sharded_batches(model, each, count, **options))
    meetings = list(zip(*(each.given for each in ranks), strict=True))

    class First(Ranks):
        def gather(self, tensor):
            tensors = list(meetings.pop(0))
            assert len({each.shape for each in tensors}) == 1, "a collective takes tensors of one shape"
            return tensors

    batches = list(sharded_batches(model, First(0, processes), count, **options))
    assert not meetings
    return batches


def with_devices(project: Path, devices: int, **evaluation: Any) -> None:
    options = {**TINY_PARAMS["evaluation"], "batch_size": 20, "devices": devices, **evaluation}
    write_params(project, {**TINY_PARAMS, "evaluation": options})


def test_two_processes_measure_what_one_does(trained: Path):
    with_devices(trained, 1)
    assert run_cli(trained, "evaluate", "tiny").returncode == 0
    alone, picture = read_json(Path("reports/tiny/metrics.json")), Path("reports/tiny/samples.png").read_bytes()
    with_devices(trained, 2)
    done = run_with_params_of_before(trained, "evaluate")
    assert done.returncode == 0, done.stderr
    together = read_json(Path("reports/tiny/metrics.json"))
    assert together.pop("protocol") == alone.pop("protocol")
    assert together.pop("model") == alone.pop("model")
    # All but the samples is computed by one process with all threads, which may round another way.
    assert together == pytest.approx(alone, rel=1e-5)
    assert Path("reports/tiny/samples.png").read_bytes() == picture


@pytest.mark.parametrize(
    ("variant", "sampling", "words"),
    [
        ("none", None, "none"),
        ("tiny", {"steps": 51}, "models/tiny cannot be sampled by evaluation.sampling: steps must be in 1..50"),
    ],
)
def test_what_goes_wrong_in_all_is_said_once(trained: Path, variant: str, sampling: dict | None, words: str):
    with_devices(trained, 2, sampling=sampling)
    done = run_cli(trained, "evaluate", variant)
    assert done.returncode == 2
    assert done.stderr.count(words) == len(done.stderr.splitlines()) == 1, done.stderr


def test_without_their_launcher_they_stop():
    class Orphan(Ranks):
        def orphaned(self):
            return True

    with pytest.raises(Interrupted, match="gone"):
        list(sharded_batches(Numbers(), Orphan(0, 2), 10, seed=0, batch_size=2))


@pytest.mark.slow
def test_where_one_is_killed_all_begin_again(trained: Path):
    with_devices(trained, 2, samples=1500)
    process = subprocess.Popen(
        [sys.executable, "-m", "ddpm", "evaluate", "tiny"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while len(pids := workers(process)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(pids[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "one of 2 processes ended by SIGKILL; restart 1 of 3" in output
    assert read_json(Path("reports/tiny/metrics.json"))["samples"] == 1500
