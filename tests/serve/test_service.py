"""A server process: what it answers, what it refuses, and that it is well afterwards."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import re
import shutil
import socket
import subprocess
import time
from typing import Any

import httpx
import numpy as np
import pytest
from denoisers import CLASSES, write_conditional, write_deploy
from finished import write_guide
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from service import PATIENCE, ROOT, wait_until

from ddpm.deploy.runtime import Sampler
from ddpm.evaluation.pictures import grid, png
from ddpm.serve.server import _own_names

JSON = {"Content-Type": "application/json"}


def opened(content: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content)))


def refusal(answer: httpx.Response) -> str:
    """The reason, which is one line and tells nothing of the inside."""
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    told = answer.json()
    assert told.keys() == {"detail", "request_id"}
    assert told["request_id"] == answer.headers["X-Request-ID"]
    assert 0 < len(told["detail"].splitlines()[0]) == len(told["detail"]) <= 300
    assert not re.search(r"Traceback|\.py|site-packages|/tmp", told["detail"])
    return told["detail"]


# --- Answers --------------------------------------------------------------------------------------------------------


def test_an_image_is_the_one_that_the_runtime_draws(server, deploy):
    sampler = Sampler(deploy)
    array = np.load(io.BytesIO(server.draw(n=5, seed=2**64 - 1, format="npy").content), allow_pickle=False)
    expected = sampler.sample(5, seed=2**64 - 1)
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(opened(server.draw(n=5, seed=2**64 - 1).content), np.array(grid(expected, 2)))
    one = server.draw(sampler="ancestral", steps=3)
    assert one.headers["Content-Type"] == "image/png"
    np.testing.assert_array_equal(opened(one.content), sampler.sample(1, sampler="ancestral", steps=3)[0, ..., 0])
    assert one.headers["X-Model"].startswith("ddpm-dots@")


def test_json_holds_each_image_and_how_it_came_about(server, deploy):
    answer = server.draw(n=3, seed=4, eta=0.5, format="json").json()
    images = np.stack([opened(base64.b64decode(png)) for png in answer.pop("data")])
    np.testing.assert_array_equal(images[..., None], Sampler(deploy).sample(3, seed=4, eta=0.5))
    model = answer.pop("model")
    assert model == server.client.get("/v1/model").json()["model"]
    plan = {"sampler": "ddim", "steps": 5, "eta": 0.5, "guidance_scale": 1.0, "guidance_interval": None}
    plan |= {"inpainting": None, "resamples": None, "jump": None}
    plan |= {"control_scale": None, "control_interval": None, "guess": None}
    assert answer == {"kind": "images", "shape": [4, 4, 1], "seed": 4, "labels": None, **plan}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"label": "boot"},
        {"label": "1"},  # a name before it is a number
        {"label": 1},
        {"label": ["sneaker", 0]},
        {"guidance_scale": 3},
        {"label": 2, "guidance_scale": 0.0},
        {"label": [2, 1], "guidance_scale": 4.5, "guidance_interval": [0, 0.6]},
    ],
    ids=str,
)
def test_a_class_and_guidance_draw_what_the_runtime_draws(conditional_server, conditional, asked):
    sampler = Sampler(conditional)
    expected = sampler.sample(70, seed=3, **asked)  # more than a batch
    array = np.load(io.BytesIO(conditional_server.draw(n=70, seed=3, format="npy", **asked).content))
    np.testing.assert_array_equal(array, expected)
    if asked:
        assert (array != sampler.sample(70, seed=3)).any()
    answer = conditional_server.draw(n=70, seed=3, format="json", **asked).json()
    assert answer["labels"] == [
        CLASSES[number] for number in sampler.given(70, seed=3, label=asked.get("label"))["label"]
    ]
    assert answer["guidance_scale"] == asked.get("guidance_scale", 1)
    assert answer["guidance_interval"] == asked.get("guidance_interval")
    if "label" not in asked:
        assert set(answer["labels"]) == set(CLASSES)
        assert answer["labels"].count("sneaker") > 70 / 3  # six of ten, not one of three


def test_the_card_says_what_may_be_asked(server, conditional_server):
    card = conditional_server.client.get("/v1/model").json()
    assert (card["classes"], card["guidable"], card["sampling"]["guidance_scale"]) == (CLASSES, True, 1.0)
    card = server.client.get("/v1/model").json()
    assert (card["classes"], card["guidable"], card["sampling"]["guidance_interval"]) == (None, False, None)


def test_a_model_that_a_classifier_guides_has_its_scale_from_0(start, tmp_path):
    deploy = write_deploy(tmp_path / "guided", answer=0.5)
    write_guide(deploy, classes=["dark", "light"], pull=0.1)
    server, sampler = start(deploy, "--max-evaluations", "100"), Sampler(deploy)
    card = server.client.get("/v1/model").json()
    assert (card["classes"], card["guidable"], card["unguided_scale"]) == (["dark", "light"], True, 0.0)
    for scale in (0.0, 1.0, 3.0):
        asked = {"label": "light", "guidance_scale": scale}
        for sampled_by in ({}, {"sampler": "ancestral"}):
            array = np.load(io.BytesIO(server.draw(n=3, format="npy", **asked, **sampled_by).content))
            np.testing.assert_array_equal(array, sampler.sample(3, **asked, **sampled_by))
            moved = (array != sampler.sample(3, **{**asked, "guidance_scale": 0.0}, **sampled_by)).any()
            assert moved == (scale != 0)
    answer = server.draw(n=4, seed=2, format="json", guidance_scale=2.0, guidance_interval=[0, 0.5]).json()
    assert answer["labels"] == [["dark", "light"][number] for number in sampler.given(4, seed=2)["label"]]
    assert (answer["guidance_scale"], answer["guidance_interval"]) == (2.0, [0.0, 0.5])
    # Without guidance the interval would decide nothing.
    refused = server.draw(guidance_scale=0.0, guidance_interval=[0, 0.5])
    assert (refused.status_code, "guidance_interval is not used at guidance_scale 0" in refused.text) == (422, True)
    # A step with guidance counts twice; the model's own scale is 1.
    assert server.draw(n=11, steps=5).status_code == 422
    assert server.draw(n=11, steps=5, guidance_scale=0.0).status_code == 200


def test_a_models_own_guidance_is_what_it_draws_with_unasked(start, tmp_path):
    deploy = write_conditional(tmp_path / "own")
    facts = json.loads((deploy / "sampler.json").read_text())
    facts["sampling"] |= {"guidance_scale": 3.0, "guidance_interval": [0.0, 0.5]}
    (deploy / "sampler.json").write_text(json.dumps(facts))
    server = start(deploy)
    sampling = server.client.get("/v1/model").json()["sampling"]
    assert (sampling["guidance_scale"], sampling["guidance_interval"]) == (3.0, [0.0, 0.5])
    answer = server.draw(n=2, format="json", label=2).json()
    assert (answer["guidance_scale"], answer["guidance_interval"]) == (3.0, [0.0, 0.5])
    images = np.stack([opened(base64.b64decode(png)) for png in answer["data"]])[..., None]
    np.testing.assert_array_equal(images, Sampler(deploy).sample(2, label=2))
    assert (images != Sampler(deploy).sample(2, label=2, guidance_scale=1)).any()
    # The model's own interval is no obstacle to a request without guidance.
    assert server.draw(n=2, format="json", label=2, guidance_scale=1).json()["guidance_interval"] is None


def test_a_request_larger_than_a_batch_is_one_answer(server, deploy):
    array = np.load(io.BytesIO(server.draw(n=150, format="npy").content))
    np.testing.assert_array_equal(array, Sampler(deploy).sample(150))


def test_the_examples_of_the_documentation_work(conditional_server):
    server = conditional_server
    document = server.client.get("/openapi.json").json()
    asked = document["paths"]["/v1/images"]["post"]
    examples = asked["requestBody"]["content"]["application/json"]["examples"]
    assert examples
    part = examples.pop("inpainting")["value"]
    for name, words in [
        ("prompt", "prompt: the model takes no such input; it takes: label, image, mask"),
        ("control", "control_scale, control_interval and guess are for models with a control; this one has none"),
    ]:
        assert refusal(server.draw(**examples.pop(name)["value"])).startswith(words)
    alike = refusal(server.draw(**examples.pop("alike")["value"]))
    assert alike == "like: the model draws no pictures of CLIP embeddings"
    whole = dict.fromkeys(("image", "mask"), base64.b64encode(png(Image.new("L", (4, 4)))).decode())
    examples["filled in"] = {"value": {**part, **whole}}
    for example in examples.values():
        answer = server.draw(**example["value"])
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"] in asked["responses"]["200"]["content"]
    named = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))
    assert set(named) <= document["components"]["schemas"].keys()
    page = server.client.get("/docs")
    assert page.status_code == 200
    assert "script" not in page.text
    assert not re.findall(r'(?:src|href)="[a-z]*:?//', page.text), "it loads something from elsewhere"
    for name in ("/v1/images", "ImageRequest", "max_evaluations"):
        assert name in page.text


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_readmes_lines_work_as_written(server, tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [line for line in text.splitlines() if line.startswith("    curl -s 127.0.0.1:8000/")]
    assert len(commands) == 3
    for command in commands:
        asked = command.replace("127.0.0.1:8000", server.url) + " --fail"
        subprocess.run(asked, shell=True, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert Image.open(tmp_path / "samples.png").size == (8 * 34 + 2, 8 * 34 + 2)
    assert np.load(tmp_path / "images.npy").shape == (4, 4, 4, 1)


def test_points_come_as_numbers_and_not_as_a_picture_and_no_more_of_them_than_the_bounds(start, tmp_path):
    data = {"kind": "points", "low": [-2.0, 0.0], "high": [2.0, 1.0]}
    deploy = write_deploy(tmp_path / "points", shape=(2,), data=data)
    server = start(deploy, "--max-evaluations", "40", "--max-bytes", "24")
    expected = Sampler(deploy).sample(3, seed=1)
    np.testing.assert_array_equal(np.load(io.BytesIO(server.draw(n=3, seed=1, format="npy").content)), expected)
    for form in (None, "json"):
        answer = server.draw(n=3, seed=1, format=form).json()
        assert (answer["kind"], answer["shape"]) == ("points", [2])
        np.testing.assert_array_equal(np.float32(answer["data"]), expected)
    assert "draws points" in refusal(server.draw(format="png"))
    assert server.draw(n=2, steps=20).status_code == 200
    assert refusal(server.draw(n=3, steps=20)) == "`n` × `steps` must be at most 40, found 3 × 20"
    assert refusal(server.draw(n=4)) == "`n` must be at most 3, found 4"  # of 8 bytes each
    assert server.client.get("/v1/model").json()["limits"] == {"max_images": 3, "max_evaluations": 40}


def test_a_requests_own_identifier_is_in_its_answer_and_in_the_log(server):
    for given_id, kept in [("order-66.b:1", True), ("x" * 65, False), ("a b", False)]:
        answer = server.client.get("/v1/model", headers={"X-Request-ID": given_id})
        assert (answer.headers["X-Request-ID"] == given_id) == kept
        line = server.line(id=answer.headers["X-Request-ID"])
        assert (line["method"], line["path"], line["status"]) == ("GET", "/v1/model", 200)


# --- Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ('{"n": -1}', "`n`: .*greater than or equal to 1, found -1"),
        ('{"n": 0}', "`n`"),
        ('{"n": 1025}', "`n` must be at most 1024, found 1025"),
        (f'{{"n": {10**40}}}', "`n` must be at most 1024"),
        ('{"n": 1' + "0" * 5000 + "}", "."),
        ('{"n": 1.5}', "`n`: .*integer, found 1.5"),
        ('{"n": "4"}', "`n`: .*integer, found '4'"),
        ('{"n": true}', "`n`: .*integer, found True"),
        ('{"n": 4.0}', "`n`: .*integer, found 4.0"),
        ('{"seed": true}', "`seed`: .*integer, found True"),
        ('{"steps": true}', "`steps`: .*integer, found True"),
        ('{"eta": true}', "`eta`: .*number, found True"),
        ('{"n": null}', "`n`"),
        ('{"n": NaN}', "`n`: .*found nan"),
        ('{"n": [1]}', "`n`"),
        ('{"seed": -1}', "`seed`"),
        (f'{{"seed": {2**64}}}', "`seed`"),
        ('{"sampler": "eulerian"}', "no sampler 'eulerian'; there are: ancestral, ddim"),
        ('{"sampler": 3}', "`sampler`"),
        ('{"steps": 0}', "`steps`"),
        ('{"steps": 21}', "steps must be in 1..20"),
        (f'{{"steps": {10**30}}}', "steps must be in 1..20"),
        ('{"eta": NaN}', "`eta`: .*finite"),
        ('{"eta": Infinity}', "`eta`: .*finite"),
        ('{"eta": 1.1}', "`eta`"),
        ('{"eta": "0"}', "`eta`"),
        ('{"format": "gif"}', "`format`: .*'gif'"),
        ('{"n": 2, "size": 64}', "unknown key `size`"),
        ('{"line\\nbreak": 1}', "unknown key `line\\\\nbreak`"),
        ('{"n": "' + "x" * 9000 + '"}', "`n`"),
        ("[]", "JSON object"),
        ("3", "JSON object"),
        ("null", "."),
        ("", "."),
        ("{", "not JSON"),
        ("n=4", "not JSON"),
        ("[" * 8000, "."),
        (b'{"n": "\xff"}', "."),
        (b"\x00" * 100, "not JSON"),
        (b"x" * (2**22 + 1), "at most 4194304 bytes"),
        (b"x" * 2**24, "at most 4194304 bytes"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_bad_request_is_told_in_a_line_what_is_wrong(server, asked, words):
    reason = refusal(server.client.post("/v1/images", content=asked, headers=JSON))
    assert re.search(words, reason), reason


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ('{"label": "shoe"}', "^label: no class 'shoe'; there are: boot, sneaker, 1$"),
        ('{"label": 3}', "^label: no class 3; there are: boot"),  # the null class is none to be asked for
        ('{"label": -1}', "no class -1"),
        ('{"label": true}', "no class True"),
        ('{"label": 1.0}', "no class 1.0"),
        ('{"label": NaN}', "no class nan"),
        ('{"label": []}', "label: expected at least one class, found none"),
        ('{"n": 2, "label": [0, "shoe"]}', "no class 'shoe'"),
        ('{"label": [[0]]}', r"no class \[0\]"),
        ('{"label": {"boot": 1}}', "no class {'boot': 1}"),
        ('{"label": 1' + "0" * 4000 + "}", "no class a number of"),
        ('{"label": "\\ud800"}', "no class"),
        ('{"guidance_scale": NaN}', "`guidance_scale`: .*finite"),
        ('{"guidance_scale": Infinity}', "`guidance_scale`: .*finite"),
        ('{"guidance_scale": -0.5}', "`guidance_scale`: .*greater than or equal to 0, found -0.5"),
        ('{"guidance_scale": 1001}', "`guidance_scale`: .*less than or equal to 1000"),
        ('{"guidance_scale": true}', "`guidance_scale`: .*number, found True"),
        ('{"guidance_scale": "2"}', "`guidance_scale`: .*number, found '2'"),
        ('{"guidance_interval": 0.5}', "`guidance_interval`: .*list, found 0.5"),
        ('{"guidance_interval": [0.5]}', "`guidance_interval`: .*at least 2 items"),
        ('{"guidance_interval": [0, 0.5, 1]}', "`guidance_interval`: .*at most 2 items"),
        ('{"guidance_interval": [0, NaN]}', "`guidance_interval.1`: .*finite"),
        ('{"guidance_interval": [0, true]}', "`guidance_interval.1`: .*number, found True"),
        ('{"guidance_interval": [0, 1.5]}', "`guidance_interval.1`: .*less than or equal to 1"),
        ('{"guidance_interval": [0, 0.5]}', "guidance_interval is not used at guidance_scale 1, which is no guidance"),
        ('{"guidance_scale": 2, "guidance_interval": [0.6, 0.5]}', "low <= high <= 1, found 0.6, 0.5"),
        (
            '{"n": 30, "steps": 20, "guidance_scale": 2, "guidance_interval": [0, 0.9]}',
            r"`n` × `steps` must be at most 1000, found 30 × \(20 \+ 18 with guidance\)",
        ),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_class_or_guidance_that_cannot_be_is_told_in_a_line(conditional_server, asked, words):
    answer = conditional_server.client.post("/v1/images", content=asked, headers=JSON)
    assert answer.status_code == 422
    assert re.search(words, refusal(answer)), refusal(answer)


def test_guided_steps_count_twice_in_the_bound_and_others_do_not(conditional_server):
    assert conditional_server.draw(n=50, steps=20).status_code == 200
    assert conditional_server.draw(n=25, steps=20, guidance_scale=2).status_code == 200
    assert conditional_server.draw(n=26, steps=20, guidance_scale=2).status_code == 422


def test_a_model_that_is_not_conditional_or_cannot_be_guided_says_so(server, start, tmp_path):
    assert refusal(server.draw(label=0)).startswith("label: the model takes no such input; it takes: image, mask")
    reason = refusal(server.draw(guidance_scale=2))
    assert reason == "guidance_scale must be 1: the model has no condition and no guide"
    assert server.draw(guidance_scale=1).status_code == 200
    undropped = start(write_conditional(tmp_path / "undropped", drop=0))
    card = undropped.client.get("/v1/model").json()
    assert (card["classes"], card["guidable"]) == (CLASSES, False)
    assert undropped.draw(label="boot").status_code == 200
    assert "trained without dropping its condition" in refusal(undropped.draw(label="boot", guidance_scale=2))


def test_a_chunked_body_is_bounded_too_and_another_type_is_refused(server):
    chunks = (b" " * 2**20 for _ in range(5))
    assert server.client.post("/v1/images", content=chunks, headers=JSON).status_code == 413
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = server.client.post("/v1/images", content='{"n": 1}', headers={"Content-Type": kind})
        assert answer.status_code == 415
        assert "application/json" in refusal(answer)


def test_what_is_not_there_is_refused_in_a_line(server):
    for answer in (
        server.client.get("/v1/images"),
        server.client.get("/etc/passwd"),
        server.client.get("/%0a../x"),
        server.client.delete("/"),
    ):
        assert answer.status_code in (404, 405)
        refusal(answer)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
)
OPTIONS = ["n", "seed", "sampler", "steps", "eta", "format", "label", "guidance_scale", "guidance_interval"]
KEYS = st.sampled_from(OPTIONS) | st.text(max_size=3)
BODIES = st.dictionaries(KEYS, VALUES, max_size=4).map(json.dumps).map(str.encode) | st.binary(max_size=50)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES)
def test_whatever_is_sent_it_is_drawn_or_refused(conditional_server, body):
    answer = conditional_server.client.post("/v1/images", content=body, headers=JSON)
    if answer.status_code != 200:
        refusal(answer)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::2]:80"])
def test_a_page_whose_name_resolves_to_this_machine_reads_nothing(server, host):
    answer = server.client.get("/v1/model", headers={"Host": host})
    assert answer.status_code == 403
    assert "--allowed-hosts" in refusal(answer)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000"])
def test_this_machines_own_names_are_answered(server, host):
    assert server.client.get("/v1/model", headers={"Host": host}).status_code == 200


def test_a_page_of_another_site_has_nothing_drawn(server):
    """Without a question asked before, a browser sends no JSON; the question is not answered with leave."""
    evil = {"Origin": "http://evil.example"}
    simple = server.client.post("/v1/images", content=b'{"n": 1}', headers={**evil, "Content-Type": "text/plain"})
    assert simple.status_code == 415
    preflight = server.client.options("/v1/images", headers={**evil, "Access-Control-Request-Method": "POST"})
    for answer in (simple, preflight, server.client.get("/v1/model", headers=evil)):
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("host", "named"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("192.168.0.7", False)],
)
def test_only_a_service_that_no_other_machine_reaches_knows_its_names(host, named):
    assert ("*" not in _own_names(host)) == named


def test_it_is_well_after_all_that(server):
    """Bytes that are no HTTP, and connections that are left in the middle, included."""
    host, port = httpx.URL(server.url).host, httpx.URL(server.url).port
    for bytes_sent in (
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"POST /v1/images HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
    ):
        with socket.create_connection((host, port)) as connection:
            connection.sendall(bytes_sent)
    assert server.client.get("/health").json() == {"status": "alive"}
    assert server.client.get("/ready").json() == {"status": "ready"}
    assert server.draw(n=4).status_code == 200
    assert server.metric("ddpm_requests_total", status="500") == 0
    assert not [line for line in server.log() if line["level"] in ("error", "critical")]


# --- Load -----------------------------------------------------------------------------------------------------------


def test_two_hundred_at_once_are_all_served_and_share_batches(server, deploy):
    sampler = Sampler(deploy)
    expected = sampler.sample(3, seed=9), sampler.sample(2, seed=9, sampler="ancestral", steps=20)
    asked: tuple[dict[str, Any], ...] = ({"n": 3}, {"n": 2, "sampler": "ancestral", "steps": 20})
    images, batches = server.metric("ddpm_batch_images_sum"), server.metric("ddpm_batch_images_count")

    async def all_at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            bodies = [{"seed": 9, "format": "npy", **asked[i % 2]} for i in range(200)]
            return await asyncio.gather(*(client.post("/v1/images", json=body) for body in bodies))

    answers = asyncio.run(all_at_once())
    for i, answer in enumerate(answers):
        assert answer.status_code == 200, answer.text
        np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), expected[i % 2])
    drawn, runs = server.metric("ddpm_batch_images_sum") - images, server.metric("ddpm_batch_images_count") - batches
    assert drawn == 100 * 3 + 100 * 2
    assert runs < 100
    assert server.metric("ddpm_batch_requests_sum") > server.metric("ddpm_batch_requests_count")
    assert server.metric("ddpm_batch_images_bucket", le="64.0") == server.metric("ddpm_batch_images_count")
    assert server.metric("ddpm_queue_requests") == 0


def test_one_too_many_is_refused_and_what_was_left_is_not_drawn(start, tmp_path):
    """Three requests of a thousand images take turns at one place; two may wait."""
    slow = write_deploy(tmp_path / "slow", work=10)
    server = start(slow, "--threads", "1", "--batch-size", "1", "--queue", "2", "--timeout", "3600")

    async def load() -> httpx.Response:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
            asked = [client.post("/v1/images", json={"n": 1000, "steps": 20, "seed": seed}) for seed in range(3)]
            endless = [asyncio.create_task(asked.pop())]
            await asyncio.to_thread(wait_until, lambda: server.metric("ddpm_batch_images_count") > 0)
            endless += map(asyncio.create_task, asked)
            await asyncio.to_thread(wait_until, lambda: server.metric("ddpm_queue_requests") == 2)
            refused = await client.post("/v1/images", json={})
            for each in endless:
                each.cancel()
            return refused

    refused = asyncio.run(load())
    assert refused.status_code == 429
    assert "too many" in refusal(refused)
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    wait_until(lambda: server.metric("ddpm_requests_total", status="499") == 3)
    assert server.metric("ddpm_queue_requests") == 0
    assert server.draw(steps=1).status_code == 200
    assert server.metric("ddpm_batch_images_sum") < 1000


def test_what_takes_too_long_is_given_up(start, tmp_path):
    slow = write_deploy(tmp_path / "slow", work=10)
    server = start(slow, "--threads", "1", "--batch-size", "1", "--timeout", "0.5", "--body-seconds", "0.5")
    late = server.draw(n=1000, steps=20)
    assert late.status_code == 504
    assert late.json()["detail"] == "not drawn within 0.5 s"
    with socket.create_connection((httpx.URL(server.url).host, httpx.URL(server.url).port)) as connection:
        connection.sendall(b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
    assert server.client.get("/ready").status_code == 200


def test_a_connection_that_does_not_come_to_a_request_is_closed(start, deploy):
    """Half a head, none, half a second one, and what is still sent after a refusal; while one that does is kept."""
    server = start(deploy, "--body-seconds", "2")
    address = httpx.URL(server.url).host, httpx.URL(server.url).port
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    refused = b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\nExpect: 100-continue\r\n\r\n"
    with contextlib.ExitStack() as stack:
        slow = []
        for *answered, last in ([whole[:-2]], [b""], [whole, whole[:-2]], [whole, whole, b"G"], [refused, b" "]):
            slow.append(stack.enter_context(socket.create_connection(address, timeout=PATIENCE)))
            for request in answered:
                slow[-1].sendall(request)
                read_answer(slow[-1])
            slow[-1].sendall(last)
        for connection in slow:
            assert connection.recv(4096) == b""
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        for _ in range(3):
            for part in (whole[:9], whole[9:]):
                connection.sendall(part)
                time.sleep(0.4)
            read_answer(connection)


def read_answer(connection: socket.socket) -> None:
    """An answer to its end, which of JSON is a brace."""
    read = b""
    while not read.endswith(b"}"):
        piece = connection.recv(4096)
        assert piece
        read += piece


def test_a_fault_inside_is_told_to_the_log_and_not_to_the_client(start, tmp_path):
    """This network takes one image at a time, as one exported without a dynamic axis would."""
    server = start(write_deploy(tmp_path / "single", batch=1))
    answer = server.draw(n=2)
    assert answer.status_code == 500
    assert "log" in answer.json()["detail"]
    assert "onnx" not in answer.text.lower()
    line = server.line(id=answer.json()["request_id"], level="error")
    assert "Traceback" in line["traceback"]
    assert server.draw(n=1).status_code == 200


def test_a_model_that_gives_nan_is_answered_with_500_and_the_reason(start, tmp_path):
    """Only at small timesteps, so that the step that is tried at the start does not find it."""
    server = start(write_deploy(tmp_path / "diverged", nan_below=10))
    for form in ("png", "npy", "json"):
        answer = server.draw(n=2, steps=20, format=form)
        assert answer.status_code == 500
        assert answer.json()["detail"] == "the network's output is NaN or infinite in 2 of 2 samples"
        line = server.line(id=answer.json()["request_id"])
        assert line["reason"] == answer.json()["detail"]
        assert "traceback" not in line
    assert server.metric("ddpm_requests_total", status="500") == 3
    assert server.draw(n=2, steps=1).status_code == 200
