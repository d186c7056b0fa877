"""A real server process on the loopback, and what asks it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

PATIENCE = 120.0
ROOT = Path(__file__).parents[2]


class Server:
    """`ddpm serve`, as a user starts it."""

    def __init__(self, cwd: Path, model: Path | str, *options: str, **environment: str) -> None:
        self._log = cwd / f"log-{time.monotonic_ns()}.jsonl"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ddpm", "serve", str(model), "--port", "0", *options],
                cwd=cwd,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[0]
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE)
        wait_until(lambda: self.client.get("/ready").status_code == 200)

    def draw(self, **asked: Any) -> httpx.Response:
        """POST /v1/images."""
        return self.client.post("/v1/images", json=asked)

    def metric(self, name: str, **labels: str) -> float:
        """A sample of /metrics; 0 where there is none."""
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def log(self) -> list[dict[str, Any]]:
        """Its lines, each of them JSON."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def line(self, **fields: Any) -> dict[str, Any]:
        """The one line of the log with these fields; it comes after the answer."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.log() if fields.items() <= line.items()]

        wait_until(lambda: bool(found()))
        (line,) = found()
        return line

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
