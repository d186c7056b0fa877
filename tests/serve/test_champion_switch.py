"""A registered model that is served: the alias moves under load, to a good version and to a broken one."""

from __future__ import annotations

import asyncio
import io
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from denoisers import network
from finished import VARIANT, empty_store, write_outputs
from mlflow_server import tracking_server
from service import PATIENCE, Server, wait_until

from ddpm import tracking
from ddpm.deploy.runtime import Sampler
from ddpm.errors import UserError

URI = "models:/ddpm-dots@champion"


@pytest.fixture
def versions(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A store with versions 1 and 2, which draw different images, and 3, which is half a file; champion is 1."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv(tracking.RUN_ID, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(empty_store(tmp_path_factory) / "mlflow", tmp_path / "mlflow")
    for version, answer in enumerate((0.0, 0.9, 0.0), 1):
        write_outputs(tmp_path, lock=str(version))
        onnx.save(network((1, 4, 4), answer=answer), tmp_path / f"deploy/{VARIANT}/denoiser.onnx")
        assert tracking.register(VARIANT).version == version
    # In the store: a registration would refuse it.
    registered = tracking.resolve("models:/ddpm-dots/3") / "denoiser.onnx"
    registered.write_bytes(registered.read_bytes()[:-20])
    client = tracking.load_mlflow(tmp_path).MlflowClient()

    def crown(version: int) -> None:
        client.set_registered_model_alias("ddpm-dots", "champion", str(version))

    crown(1)
    return crown


async def draw_all_the_while(server: Server, crown: Any) -> list[httpx.Response]:
    """Eight clients that never rest, while the alias moves to 2, to 3, and back to 1."""
    answers: list[httpx.Response] = []
    done = asyncio.Event()

    async def ask_on(client: httpx.AsyncClient, seed: int) -> None:
        while not done.is_set():
            answers.append(await client.post("/v1/images", json={"n": 3, "seed": seed, "format": "npy"}))

    async def until_it_draws(version: int) -> None:
        name = f"models:/ddpm-dots/{version}"
        await asyncio.to_thread(wait_until, lambda: answers[-1].headers["X-Model"] == name)

    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
        asking = [asyncio.create_task(ask_on(client, seed)) for seed in range(8)]
        await asyncio.sleep(0.5)
        await asyncio.to_thread(crown, 2)
        await until_it_draws(2)
        await asyncio.to_thread(crown, 3)
        await asyncio.to_thread(wait_until, lambda: server.metric("ddpm_model_reloads_total", outcome="failed") > 0)
        assert answers[-1].headers["X-Model"] == "models:/ddpm-dots/2"
        await asyncio.to_thread(crown, 1)
        await until_it_draws(1)
        done.set()
        await asyncio.gather(*asking)
    return answers


@pytest.mark.slow
def test_a_new_champion_takes_over_without_a_failed_request_and_a_broken_one_does_not(start, versions):
    server = start(URI, "--poll", "0.2")
    assert server.metric("ddpm_model_info", model="models:/ddpm-dots/1") == 1
    answers = asyncio.run(draw_all_the_while(server, versions))
    assert {answer.status_code for answer in answers} == {200}
    samplers = {str(version): Sampler(tracking.resolve(f"models:/ddpm-dots/{version}")) for version in (1, 2)}
    expected = {
        (version, seed): sampler.sample(3, seed=seed).tobytes()
        for version, sampler in samplers.items()
        for seed in range(8)
    }
    assert len(set(expected.values())) == 16
    seen = set()
    for answer in answers:
        version = answer.headers["X-Model"].rpartition("/")[2]
        images = np.load(io.BytesIO(answer.content)).tobytes()
        assert images in {expected[version, seed] for seed in range(8)}
        seen.add(version)
    assert seen == {"1", "2"}
    assert server.metric("ddpm_model_reloads_total", outcome="loaded") == 2
    assert server.metric("ddpm_model_info") == 1
    (failure,) = (line for line in server.log() if line["level"] == "error")
    assert "does not load" in failure["reason"]
    assert failure["model"] == "models:/ddpm-dots/2"


@pytest.mark.slow
def test_an_alias_is_pinned_to_what_it_means_now(versions):
    assert tracking.pinned(URI) == "models:/ddpm-dots/1"
    versions(2)
    assert tracking.pinned(URI) == "models:/ddpm-dots/2"
    assert tracking.pinned("models:/ddpm-dots/latest") == "models:/ddpm-dots/3"
    for uri in ("models:/ddpm-dots/2", "runs:/0/model"):
        assert tracking.pinned(uri) == uri
    for uri in ("models:/none@champion", "models:/ddpm-dots@none"):
        with pytest.raises(UserError, match=uri) as refused:
            tracking.pinned(uri)
        assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_a_registry_that_goes_away_leaves_the_model_where_it_is(start, versions, tmp_path):
    server = start(URI, "--poll", "0.2")
    tracking.load_mlflow(tmp_path).MlflowClient().delete_registered_model_alias("ddpm-dots", "champion")
    wait_until(lambda: server.metric("ddpm_model_reloads_total", outcome="failed") >= 2)
    assert server.draw().status_code == 200
    assert len([line for line in server.log() if line["level"] == "error"]) == 1
    versions(2)
    wait_until(lambda: server.draw().headers["X-Model"] == "models:/ddpm-dots/2")


@pytest.mark.slow
def test_versions_of_a_server_leave_no_files_behind_whether_they_load_or_not(start, versions, tmp_path):
    """A broken one is downloaded again at every look; where to differs, and the log tells it once all the same."""
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    with tracking_server() as address:
        server = start(URI, "--poll", "0.2", MLFLOW_TRACKING_URI=address, TMPDIR=str(downloads))
        versions(3)
        wait_until(lambda: server.metric("ddpm_model_reloads_total", outcome="failed") >= 4)
        versions(2)
        wait_until(lambda: server.draw().headers["X-Model"] == "models:/ddpm-dots/2")
        # A directory of the process itself stays there until its end.
        assert [path for path in downloads.rglob("*") if path.is_file()] == []
    drawn = np.load(io.BytesIO(server.draw(n=2, seed=1, format="npy").content))
    np.testing.assert_array_equal(drawn, Sampler(tracking.resolve("models:/ddpm-dots/2")).sample(2, seed=1))
    (failure,) = (line for line in server.log() if "models:/ddpm-dots/3" in line.get("reason", ""))
    assert str(downloads) not in failure["reason"]
