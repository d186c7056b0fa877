"""What a killed `register` leaves behind is cleared up by the next one."""

import os
import signal
import subprocess
import sys

from finished import VARIANT

from ddpm import tracking
from ddpm.tracking import runs

# Registers, and stays where MLflow has copied the model and not logged it yet.
HANG = f"""
import time
from mlflow.models import Model
from ddpm import tracking
Model.save = lambda *arguments, **options: (print("here", flush=True), time.sleep(600))
tracking.register({VARIANT!r})
"""


def test_a_killed_register_leaves_neither_an_open_run_nor_temporary_files(finished, tmp_path_factory, monkeypatch):
    temporary = tmp_path_factory.mktemp("tmp")
    child = subprocess.Popen(
        [sys.executable, "-c", HANG],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    lines = iter(child.stdout.readline, "")
    assert next(line for line in lines if line == "here\n")
    (open_run,) = states("RUNNING")
    left = list(temporary.iterdir())
    # Another process that registers at the same time leaves both alone.
    tracking.start_run(VARIANT)
    assert len(states("RUNNING")) == 2
    child.kill()
    child.wait()
    assert left == list(temporary.iterdir()) != []
    done = subprocess.run(
        [sys.executable, "-c", f"from ddpm import tracking; print(tracking.register({VARIANT!r}))"],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "registered" in done.stdout
    assert states("KILLED") == [open_run]
    assert list(temporary.glob(".ddpm-*")) == []


def states(status: str) -> list[str]:
    client = tracking.load_mlflow().MlflowClient()
    experiment = client.get_experiment_by_name("ddpm-dots").experiment_id
    found = client.search_runs([experiment], filter_string=f"attributes.status = '{status}'")
    return [run.info.run_id for run in found]


def test_only_a_process_of_this_machine_that_has_ended_counts_as_ended():
    own = runs._this_process()
    child = subprocess.Popen(["sleep", "60"])
    running = f"{runs._machine()} {child.pid} {runs._start_of(child.pid)}"
    assert not runs._has_ended(own)
    assert not runs._has_ended(running)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert runs._has_ended(running)
    assert runs._has_ended(f"{own.rpartition(' ')[0]} 1")  # the number was given to another process since
    assert not runs._has_ended(f"another/machine/x {child.pid} 1")
    assert not runs._has_ended("")
