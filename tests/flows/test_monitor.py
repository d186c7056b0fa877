"""The watch over the champion, against a real Prefect server and a real registered model with real faults."""

import time
from pathlib import Path

import pytest
import yaml
from finished import VARIANT, write_outputs
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


def events(name: str) -> list[dict]:
    """The server's events of that name; they arrive a moment after they are sent."""
    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            body = {"filter": {"event": {"name": [name]}}}
            if found := client.request("POST", "/events/filter", json=body).json()["events"]:
                return found
            time.sleep(0.2)
    return []


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
    [event] = events("ddpm.champion.damaged")
    assert event["resource"]["prefect.resource.id"] == "ddpm.model.ddpm-dots"
    assert event["payload"]["reason"] in state.message


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
