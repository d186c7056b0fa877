"""Real servers of MLflow's on the loopback, as its command line starts them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

from ddpm import tracking

_START_SECONDS = 180


@contextlib.contextmanager
def mlflow_running(*command: str, health: str) -> Iterator[str]:
    """`mlflow COMMAND` on a free port, from when it answers at the path `health`; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command, "--host", "127.0.0.1", "--port", port, "--workers", "1"],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        start_new_session=True,
    )
    try:
        _wait_until_healthy(process, address + health)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def tracking_server() -> contextlib.AbstractContextManager[str]:
    """A tracking server of the store that is the project's now."""
    return mlflow_running("server", "--backend-store-uri", tracking.store_uri(), health="/health")


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            return urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.3)
