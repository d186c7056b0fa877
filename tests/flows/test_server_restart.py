"""A Prefect server that is killed in the middle of a flow run, and started again."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow_server import wait_until_healthy

from ddpm import tracking

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "flows/prefect_server.py"

TRAINING = """
pathlib.Path("training").touch()
while not pathlib.Path("go").exists():
    time.sleep(0.1)
"""


def start_server(root: Path, port: int) -> subprocess.Popen[bytes]:
    """On the database and with the settings of the project in `root`."""
    server = subprocess.Popen(
        [sys.executable, SERVER, "--port", str(port), "--allowed-hosts", f"127.0.0.1:{port}"],
        cwd=root,
        env={key: value for key, value in os.environ.items() if not key.startswith("PREFECT")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until_healthy(server, f"http://127.0.0.1:{port}/api/health")
    return server


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)


@pytest.mark.slow
def test_a_flow_outlives_its_server(graph, store, before, calls):
    """While it is away a stage goes on; what the flow has to tell it waits until it is back."""
    before("train@one", TRAINING)
    shutil.copy(ROOT / "prefect.toml", graph)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = start_server(graph, port)
    flow = subprocess.Popen(
        [sys.executable, "-m", "flows.retrain"],
        cwd=graph,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 180
        while not (graph / "training").exists():
            assert flow.poll() is None, flow.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        kill(server)
        time.sleep(15)
        server = start_server(graph, port)
        (graph / "go").touch()
        output, _ = flow.communicate(timeout=300)
    finally:
        if flow.poll() is None:
            kill(flow)
        kill(server)
    assert flow.returncode == 0, output
    assert calls().count("train@one") == 1, "it was not disturbed"
    assert tracking.find("one").aliases == ("challenger", "champion")
