"""A tracking server that dies, hangs and comes back, and a training that does not mind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from finished import VARIANT
from mlflow_server import wait_until_healthy
from PIL import Image
from trainings import checkpoints, longer, start_training, wait_for_checkpoint

from ddpm import tracking


class Server:
    """MLflow's, over the store of the project in the current directory."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self.store = tracking.store_uri()
        self.start()

    def start(self) -> None:
        options = ["--host", "127.0.0.1", "--port", self.address.rpartition(":")[2], "--workers", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options, "--backend-store-uri", self.store],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until_healthy(self.process, f"{self.address}/health")

    def signal(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait(60)


@pytest.fixture
def server(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    running = Server()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running.address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.setenv(tracking.RUN_ID, tracking.start_run(VARIANT))
    yield running
    running.kill()


def pictures() -> list[int]:
    """The step of every picture that the run has, as often as it has one."""
    files = tracking.load_mlflow().MlflowClient().list_artifacts(os.environ[tracking.RUN_ID], "images")
    return sorted(int(re.search(r"step\W(\d+)", file.path)[1]) for file in files if file.path.endswith(".png"))


def steps() -> list[int]:
    """Of every loss that the run has, as often as it has it."""
    history = tracking.load_mlflow().MlflowClient().get_metric_history(os.environ[tracking.RUN_ID], "train/loss")
    return sorted(metric.step for metric in history)


def wait_for(expected: list[int]) -> None:
    deadline = time.monotonic() + 120
    while steps() != expected and time.monotonic() < deadline:
        time.sleep(0.5)
    assert steps() == expected


@pytest.mark.slow
def test_a_server_that_dies_has_every_point_once_when_it_is_back(server: Server):
    with tracking.live_curve() as log:
        log(1, {"loss": 1.0})
        wait_for([1])
        server.kill()
        for step in (2, 3, 4):
            log(step, {"loss": 1.0 / step})
            time.sleep(2)
        server.start()
        wait_for([1, 2, 3, 4])
        log(5, {"loss": 0.2})
    wait_for([1, 2, 3, 4, 5])


@pytest.mark.slow
def test_a_server_that_hangs_has_every_point_once_when_it_goes_on(server: Server):
    """It may answer, in the end, requests that were given up and sent again."""
    with tracking.live_curve() as log:
        log(1, {"loss": 1.0})
        wait_for([1])
        server.signal(signal.SIGSTOP)
        for step in (2, 3, 4):
            log(step, {"loss": 1.0 / step})
            time.sleep(4)
        server.signal(signal.SIGCONT)
        wait_for([1, 2, 3, 4])
    time.sleep(3)
    assert steps() == [1, 2, 3, 4]


@pytest.mark.slow
def test_told_to_stop_it_has_saved_and_gone_in_ten_seconds_though_the_server_hangs(
    prepared_template: Path, project: Path, server: Server
):
    """What a cluster or a container gives a process between SIGTERM and SIGKILL."""
    longer(project, 5000)
    process = start_training(project)
    try:
        wait_for_checkpoint(project, process)
        server.signal(signal.SIGSTOP)
        time.sleep(5)  # the curve is stuck by now
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=10)
    finally:
        server.signal(signal.SIGCONT)
        process.kill()
    assert process.returncode == 130, output
    stopped = int(output.split("stopped at step ")[1].split()[0])
    assert checkpoints(project)[-1].name == f"step-{stopped:09d}"


def test_a_training_that_goes_on_sends_no_step_twice(finished: Path, monkeypatch: pytest.MonkeyPatch):
    """From its checkpoint it repeats steps that its killed predecessor has sent, or it itself before it went back."""
    monkeypatch.setenv(tracking.RUN_ID, tracking.start_run(VARIANT))
    for life in ([1, 2, 3], [2, 3, 4, 3, 4, 5]):
        with tracking.live_curve() as log:
            for step in life:
                log(step, {"loss": 1.0 / step})
                log(step, {}, Image.new("L", (8, 8)))
    assert steps() == [1, 2, 3, 4, 5]
    assert pictures() == [1, 2, 3, 4, 5]
