"""How a service starts where it cannot, and how it ends."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from denoisers import write_deploy
from service import PATIENCE, Server, wait_until
from tiny import run_cli

from ddpm.errors import UserError
from ddpm.serve.models import load_model


async def load(server: Server, count: int, *, signals: int = 1) -> list[httpx.Response]:
    """Send `count` requests at once, SIGTERM when two batches are drawn, then half as many requests, and any further
    SIGTERM."""
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:

        def send(number: int) -> list[asyncio.Task[httpx.Response]]:
            return [asyncio.create_task(client.post("/v1/images", json={"n": 2, "seed": i})) for i in range(number)]

        accepted = send(count)
        await asyncio.to_thread(wait_until, lambda: server.metric("ddpm_batch_images_count") >= 2)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: server.client.get("/ready").status_code == 503)
        late = await asyncio.gather(*send(count // 2))
        for _ in range(signals - 1):
            server.process.send_signal(signal.SIGTERM)
        return [*await asyncio.gather(*accepted), *late]


def test_a_service_told_to_stop_finishes_what_it_has_accepted_and_refuses_the_rest(start, tmp_path):
    server = start(write_deploy(tmp_path / "slow", work=8), "--threads", "1", "--batch-size", "4")
    answers = asyncio.run(load(server, 24))
    assert [answer.status_code for answer in answers[:24]] == [200] * 24
    for answer in answers[24:]:
        assert answer.status_code == 503
        assert answer.json()["detail"] == "the service is stopping"
        assert answer.headers["Connection"] == "close"
        assert "Retry-After" in answer.headers
    assert server.process.wait(PATIENCE) == 0
    lines = [line["status"] for line in server.log() if line.get("path") == "/v1/images"]
    assert (lines.count(200), lines.count(503)) == (24, 12)


@pytest.mark.slow
@pytest.mark.parametrize(("grace", "signals"), [("4", 1), ("3600", 2)], ids=["grace over", "second signal"])
def test_what_cannot_be_waited_for_is_refused_aloud(start, tmp_path, grace, signals):
    slow = write_deploy(tmp_path / "slow", work=40)
    server = start(slow, "--threads", "1", "--batch-size", "2", "--grace", grace)
    *accepted, _ = asyncio.run(load(server, 40, signals=signals))
    assert {answer.status_code for answer in accepted} == {200, 503}
    assert any("could not wait" in answer.text for answer in accepted)
    assert server.process.wait(PATIENCE) == 1


def test_a_batch_that_nobody_waits_for_does_not_delay_the_end(start, tmp_path):
    """Its twenty steps take twenty times as long as one; the end comes sooner, however busy the machine."""
    server = start(write_deploy(tmp_path / "slow", work=300), "--threads", "1", "--batch-size", "1", "--window", "0")
    started = time.monotonic()
    assert server.draw(steps=1).status_code == 200
    one_step = time.monotonic() - started

    async def leave() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
            asked = [asyncio.create_task(client.post("/v1/images", json={"steps": 20})) for _ in range(3)]
            await asyncio.to_thread(wait_until, lambda: server.metric("ddpm_queue_requests") == 2)
            for each in asked:
                each.cancel()

    asyncio.run(leave())
    wait_until(lambda: server.metric("ddpm_requests_total", status="499") == 3)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10 * one_step) == 0
    assert [line["message"] for line in server.log()].count("stopping") == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no model", "it has no sampler.json"),
        ("half a model", "denoiser.onnx does not load"),
        ("another shape", "loads, but does not draw"),
        ("no numbers", "loads, but draws no numbers"),
    ],
)
def test_a_model_that_cannot_be_served_is_named(deploy: Path, tmp_path: Path, fault: str, words: str):
    model = tmp_path / "model"
    shutil.copytree(deploy, model)
    denoiser, facts = model / "denoiser.onnx", model / "sampler.json"
    if fault == "no model":
        facts.unlink()
    elif fault == "half a model":
        denoiser.write_bytes(denoiser.read_bytes()[:-20])
    elif fault == "another shape":
        facts.write_text(facts.read_text().replace('"shape": [4,', '"shape": [5,'))
    elif fault == "no numbers":
        shutil.rmtree(model)
        write_deploy(model, answer=float("nan"))
    with pytest.raises(UserError, match=words):
        load_model(str(model))


def test_a_service_without_a_model_ends_in_a_line(tmp_path: Path):
    done = run_cli(tmp_path, "serve", "nowhere", "--port", "0")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("ddpm serve: nowhere: expected a deploy directory (sampler.json) or a URI")
    assert "`ddpm export nowhere` makes deploy/nowhere" in done.stderr


def test_an_address_that_is_taken_or_none_is_named(deploy: Path, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_cli(tmp_path, "serve", str(deploy), "--port", port)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"--port {port} cannot be listened on: Address already in use" in done.stderr


def test_it_needs_neither_torch_nor_mlflow(deploy: Path, tmp_path: Path):
    """What the serve extra leaves out is refused here; then the model is loaded and the service stops."""
    code = f"""
import os, signal, sys, threading, time, urllib.request
sys.modules.update(dict.fromkeys(["torch", "mlflow", "yaml", "onnx", "scipy", "pandas", "matplotlib", "prefect"]))
from ddpm.serve.models import ModelKeeper
loaded = ModelKeeper._load
def load_and_stop(self, name):
    loaded(self, name)
    os.kill(os.getpid(), signal.SIGTERM)
ModelKeeper._load = load_and_stop
from ddpm.cli import main
sys.exit(main(["serve", {str(deploy)!r}, "--port", "0"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert '"the model is loaded"' in done.stderr
