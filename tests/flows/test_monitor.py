"""The watch over the champion, against a real Prefect server and a real registered model with real faults."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from finished import VARIANT, empty_store, write_outputs
from prefect import get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.states import State

from ddpm import tracking
from flows.monitor import monitor

pytestmark = pytest.mark.usefixtures("server")

ROOT = Path(__file__).parents[2]
MODEL = "ddpm-dots"


@pytest.fixture
def champion(graph, store) -> Path:
    """The deploy directory of a registered champion."""
    write_outputs(graph)
    tracking.register(VARIANT)
    tracking.promote(VARIANT)
    return tracking.resolve(f"models:/{MODEL}@champion")


def watch(**options) -> State:
    return monitor(MODEL, **{"figures": False, **options}, return_state=True)


def alarm(name: str, state: State) -> dict:
    """The server's event of that name which says why the flow run failed; it arrives a moment after it is sent."""
    deadline = time.monotonic() + 60
    body = {"filter": {"event": {"name": [name]}}}
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            for event in client.request("POST", "/events/filter", json=body).json()["events"]:
                if state.message.endswith(event["payload"]["reason"]):
                    return event
            time.sleep(0.2)
    raise AssertionError(f"no event {name} for: {state.message}")


def test_a_healthy_champion_passes_and_a_flipped_byte_of_it_raises_the_alarm(champion):
    state = watch()
    assert state.is_completed()
    assert state.message == "models:/ddpm-dots/1: files and samples are those on record"

    path = champion / "denoiser.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    state = watch()
    assert state.is_failed()
    assert state.message.startswith("models:/ddpm-dots/1 damaged: denoiser.onnx is not the file that was registered")
    event = alarm("ddpm.champion.damaged", state)
    assert event["resource"]["prefect.resource.id"] == "ddpm.model.ddpm-dots"
    assert event["payload"]["version"] == 1


def test_a_champion_whose_files_are_lost_or_unreadable_raises_the_alarm(champion, store):
    model = next(folder for folder in champion.parents if (folder / "MLmodel").exists())
    [fingerprint] = store.rglob("fingerprint.npy")
    faults: list[tuple[Path, Callable[[Path], object], str]] = [
        (fingerprint, Path.unlink, "fingerprint.npy, what it drew at its registration"),
        (fingerprint, lambda path: path.write_bytes(b"\x93NUMPY"), "fingerprint.npy, what it drew"),
        (model / "MLmodel", Path.unlink, "its file MLmodel is lost or damaged"),
        (model / "MLmodel", lambda path: path.write_text(""), "its file MLmodel is lost or damaged"),
        (model, shutil.rmtree, "no such model"),
    ]
    states = []
    for path, damage, words in faults:
        content = path.read_bytes() if path.is_file() else None
        damage(path)
        state = watch()
        assert state.is_failed()
        assert state.message.startswith("models:/ddpm-dots/1 damaged: ")
        assert words in state.message
        states.append(state)
        if content is not None:
            path.write_bytes(content)
    assert all(alarm("ddpm.champion.damaged", state) for state in states)


@pytest.mark.slow
def test_a_champion_that_does_not_score_what_is_on_record_raises_the_alarm(trained, tmp_path_factory, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(empty_store(tmp_path_factory) / "mlflow", trained / "mlflow")
    stages = ("prepare", "train@tiny", "evaluate@tiny", "export@tiny")
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {stage: {} for stage in stages}}))
    version = tracking.register("tiny")
    tracking.promote("tiny")
    state = monitor(version.model, return_state=True)
    assert state.is_completed()
    assert state.message.endswith("files and samples are those on record; figures are those on record")

    client = tracking.load_mlflow().MlflowClient()
    recorded = client.get_run(version.run_id).data.metrics
    for end in ("", "_low", "_high"):
        key = next(key for key in recorded if key.endswith(f"/fid{end}"))
        client.log_metric(version.run_id, key, recorded[key] / 2)
    state = monitor(version.model, return_state=True)
    assert state.is_failed()
    assert state.message.startswith(f"{version.uri} drifted: ")
    assert alarm("ddpm.champion.drifted", state)


def test_the_server_takes_the_automation_and_it_listens_to_every_alarm():
    [described] = yaml.safe_load((ROOT / "flows" / "automations.yaml").read_text())["automations"]
    with get_client(sync_client=True) as client:
        made = client.create_automation(AutomationCore.model_validate(described))
        listening = client.read_automation(made).trigger
        client.delete_automation(made)
    assert listening.expect == {"ddpm.champion.damaged", "ddpm.champion.drifted"}
    assert listening.match.root == {"prefect.resource.id": "ddpm.model.*"}


def test_without_a_champion_there_is_nothing_to_watch(graph, store):
    state = watch()
    assert (state.name, state.is_completed()) == ("NoChampion", True)
    assert state.message == "ddpm-dots has no champion: there is nothing to watch yet"
