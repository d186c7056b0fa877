"""PREFECT_API_URL names a server that is no Prefect server, or none at all: one line, before anything runs."""

import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(cwd: Path, url: str, *flow: str) -> tuple[int, str]:
    """Exit code and output of a flow."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT")}
    done = subprocess.run(
        [sys.executable, "-m", *flow],
        cwd=cwd,
        env={**clean, "PYTHONPATH": str(ROOT), "PREFECT_API_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
    )
    return done.returncode, done.stdout


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nothing listens, and nothing will."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}/api"


@pytest.fixture
def stranger() -> Iterator[str]:
    """The address of a server that knows no page."""

    class Unknown(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Unknown) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


def test_a_server_that_is_down_is_one_line(tmp_path, nobody):
    code, said = run(tmp_path, nobody, "flows.retrain")
    assert code == 75
    assert said.startswith(f"retrain: PREFECT_API_URL names {nobody}, where Prefect does not answer (")
    assert said.endswith("): start it, or unset the variable\n")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_prefects_is_one_line(tmp_path, stranger):
    code, said = run(tmp_path, stranger, "flows.compare", "a", "b")
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith(
        f"compare: PREFECT_API_URL names {stranger}: expected Prefect's API, such as http://HOST:4200/api"
    )
