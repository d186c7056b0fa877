"""What the service does with a request before it is queued: refusals cost nothing, and others are not kept waiting."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.exceptions import HTTPException

from ddpm.serve import schemas
from ddpm.serve.app import Service
from ddpm.serve.models import ServedModel, load_model
from ddpm.serve.schemas import ImageRequest
from ddpm.serve.settings import Settings

stream = io.BytesIO()
Image.fromarray(np.zeros((4, 4), np.uint8)).save(stream, "PNG")
PNG = base64.b64encode(stream.getvalue()).decode()
REPAINT = {"sampler": "ddim", "steps": 20, "inpainting": "repaint", "resamples": 100, "jump": 1}


@pytest.fixture
def service(deploy: Path) -> Service:
    made = Service(str(deploy), Settings(allowed_hosts=("*",)))
    made.keeper.current = load_model(str(deploy), threads=1)
    return made


def refusal(service: Service, **asked: Any) -> str:
    with pytest.raises(HTTPException) as refused:
        service.accept(ImageRequest(**asked), service.model())
    assert refused.value.status_code == 422
    return refused.value.detail


@pytest.mark.parametrize("name", ["label", "prompt", "low", "image", "mask"])
def test_a_list_that_is_longer_than_n_is_refused_before_it_is_read(service, monkeypatch, name):
    monkeypatch.setattr(schemas, "from_base64", lambda column, asked: pytest.fail("decoded"))
    expected = f"{name}: the list must have at most 2 entries (`n`), found 3"
    assert refusal(service, n=2, **{name: ["cat"] * 3}) == expected


def test_as_many_as_n_are_taken(service):
    asked = ImageRequest(n=2, image=[PNG] * 2, mask=[PNG] * 2)
    *_, given = service.accept(asked, service.model())
    assert given["image"].shape == (2, 4, 4, 1)


def test_a_plan_that_is_too_long_is_not_built(service, monkeypatch):
    monkeypatch.setattr(ServedModel, "plan", lambda model, choice: pytest.fail("built"))
    found = refusal(service, n=60, image=PNG, mask=PNG, **REPAINT)
    assert found == "`n` × `steps` must be at most 65536, found 60 × 1901"


def test_an_inpainting_without_a_mask_is_refused_before_its_plan_is_built(service, monkeypatch):
    monkeypatch.setattr(ServedModel, "plan", lambda model, choice: pytest.fail("built"))
    found = refusal(service, **REPAINT)
    assert found == "inpainting is how a part of an image is kept: it needs image and mask"


def test_the_least_evaluations_are_those_of_the_plan(service):
    model = service.model()
    for asked in (
        {},
        {"steps": 7},
        {"sampler": "heun", "steps": 9},
        {**REPAINT, "jump": 3},
        {"inpainting": "repaint", "steps": 15},
    ):
        choice = model.choice(**asked)
        assert model.least_evaluations(choice) == model.plan(choice).evaluations


def test_others_are_answered_while_a_request_is_read(service, monkeypatch):
    reached, opened, read = threading.Event(), threading.Event(), schemas.from_base64

    def slow(column, asked):
        reached.set()
        assert opened.wait(30)
        return read(column, asked)

    monkeypatch.setattr(schemas, "from_base64", slow)

    async def test() -> None:
        drawing = asyncio.create_task(service.batcher.run())
        transport = httpx.ASGITransport(service.envelope)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            body = {"image": PNG, "mask": PNG}
            large = asyncio.create_task(client.post("/v1/images", json=body, timeout=60))
            assert await asyncio.to_thread(reached.wait, 30)
            assert (await client.get("/health")).status_code == 200
            assert not large.done()
            opened.set()
            assert (await large).status_code == 200
        drawing.cancel()

    asyncio.run(test())
