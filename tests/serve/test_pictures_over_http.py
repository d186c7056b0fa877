"""Pictures and prompts over HTTP: what is drawn by them, and what is refused."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from prompts_of_all_kinds import DRAWN, REFUSED

from ddpm.deploy.runtime import Sampler


def picture(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(array: np.ndarray, kind: str = "PNG") -> str:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return base64.b64encode(stream.getvalue()).decode()


def images(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content))


def reason(answer) -> str:
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    return answer.json()["detail"]


LOW, IMAGE, MASK = picture(4, 4, 3), picture(4, 4), picture(4, 4) < 120
PART = {"image": png(IMAGE), "mask": png(MASK.astype(np.uint8) * 255)}


@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
def test_a_small_image_is_enlarged(told_server, told, head):
    answer = told_server.draw(n=3, low=head + png(LOW), low_noise=0.25, prompt="red heart", seed=4, format="npy")
    expected = Sampler(told).sample(3, low=LOW, low_noise=0.25, prompt="red heart", seed=4)
    np.testing.assert_array_equal(images(answer), expected)


def test_several_are_taken_in_turn(told_server, told):
    lows = [picture(4, 4, 3, seed=seed) for seed in range(2)]
    answer = told_server.draw(n=3, low=[png(low) for low in lows], prompt=["red heart", ""], format="npy")
    expected = Sampler(told).sample(3, low=np.stack(lows), prompt=["red heart", ""])
    np.testing.assert_array_equal(images(answer), expected)


def test_any_model_of_images_keeps_the_known_part_to_the_last_bit(server):
    for sampler in ("ddim", "ancestral", "dpmpp_2m"):
        drawn = images(server.draw(n=3, sampler=sampler, format="npy", **PART))[..., 0]
        assert (drawn[:, MASK] == IMAGE[MASK]).all()
        assert (drawn[:, ~MASK] != IMAGE[~MASK]).any()


def test_repaint_over_http(server, deploy):
    plan = {"sampler": "ddim", "steps": 5, "inpainting": "repaint", "resamples": 3, "jump": 2}
    drawn = images(server.draw(n=2, format="npy", **plan, **PART))
    expected = Sampler(deploy).sample(2, image=IMAGE[..., None], mask=MASK, **plan)
    np.testing.assert_array_equal(drawn, expected)
    assert (drawn != images(server.draw(n=2, format="npy", sampler="ddim", steps=5, **PART))).any()
    assert reason(server.draw(**plan)) == "inpainting is how a part of an image is kept: it needs image and mask"
    assert reason(server.draw(**PART, inpainting="paint")) == "no inpainting 'paint'; there are: replace, repaint"
    assert reason(server.draw(**PART, resamples=3)).startswith("resamples is used by inpainting repaint alone")
    assert "resamples" in reason(server.draw(**PART, **{**plan, "resamples": 10**6}))
    costly = {**plan, "steps": 20, "resamples": 100, "jump": 1}
    assert reason(server.draw(n=60, **PART, **costly)) == ("`n` × `steps` must be at most 65536, found 60 × 1901")


def test_requests_with_and_without_pictures_share_batches(start, deploy):
    """All wait while the first is drawn; each gets what it would get alone."""
    server = start(deploy, "--window", "0.5")
    asked = [{}, PART, {}, {**PART, "mask": png(np.uint8(~MASK) * 255)}]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda each: images(server.draw(n=2, format="npy", **each)), asked))
    assert server.metric("ddpm_batch_requests_count") < 4
    alone = [images(server.draw(n=2, format="npy", **each)) for each in asked]
    for one, other in zip(found, alone, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1
    assert (found[1][:, MASK, 0] == IMAGE[MASK]).all()
    assert (found[3][:, ~MASK, 0] == IMAGE[~MASK]).all()


def bomb(side: int) -> str:
    """A PNG whose header promises side × side pixels, in some hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    whole = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return base64.b64encode(whole).decode()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"low": "cat.png"}, "low: expected a PNG image in base64, found 'cat.png'"),
        ({"low": png(LOW)[:40]}, "low: not a PNG image"),
        ({"low": png(LOW)[:80]}, "low: does not decode"),
        ({"low": "data:image/svg+xml;base64,AAAA"}, "low: expected a PNG image in base64"),
        ({"low": "äöü"}, "low: expected a PNG image in base64"),
        ({"low": ""}, "low: empty"),
        ({"low": ["cat.png"] * 2}, "low: the list must have at most 1 entry (`n`), found 2"),
        ({"low": []}, "low: expected at least one picture, found none"),
        ({"low": 7}, "low: expected a PNG image in base64, found 7"),
        ({"low": [[1]]}, "low: expected a PNG image in base64, found [1]"),
        ({"low": {"a": 1}}, "low: expected a PNG image in base64, found {'a': 1}"),
        ({"low": png(LOW, "JPEG")}, "low: not a PNG image"),
        ({"low": png(LOW, "TIFF")}, "low: not a PNG image"),
        ({"low": png(picture(5, 4, 3))}, "low: 4 pixels wide and 5 high, expected 4 wide and 4 high"),
        ({"low": png(picture(2, 2, 3))}, "low: 2 pixels wide and 2 high, expected 4 wide and 4 high"),
        ({"low": bomb(12_000)}, "low: 12000 pixels wide and 12000 high, expected 4 wide and 4 high"),
        ({"low": bomb(60_000)}, "low: far larger than 4 by 4 pixels"),
        ({}, "low: the model needs a picture of 4×4×3, found none"),
        ({"low": png(LOW), "low_noise": 0.7}, "low_noise must be in 0..0.5, found 0.7"),
        ({"low": png(LOW), "low_noise": "much"}, "`low_noise`"),
        ({"low": png(LOW), "image": png(picture(8, 8, 3))}, "image needs mask as well"),
        (
            {"low": png(LOW), "label": 1},
            "label: the model takes no such input; it takes: prompt, low_noise, low,",
        ),
        ({"low": png(LOW), "low_gauss": [1.0]}, "unknown key `low_gauss`"),
    ],
)
def test_what_is_no_picture_for_the_model_is_refused_in_a_line(told_server, asked, words):
    said = reason(told_server.draw(**asked))
    assert said.startswith(words)
    assert "\n" not in said


def test_a_plain_model_has_no_small_image(server):
    assert reason(server.draw(low=png(LOW))) == "low: the model takes no such input; it takes: image, mask"
    assert reason(server.draw(low_noise=0.1)).startswith("low_noise: the model takes no such input")


def test_a_body_that_is_too_large_is_not_read(told_server):
    assert told_server.draw(low="A" * 2**22).status_code == 413


def test_the_card_says_what_can_be_asked_for(told_server, server):
    columns = {each["name"]: each for each in told_server.client.get("/v1/model").json()["columns"]}
    assert columns.keys() == {"image", "mask", "prompt", "low", "low_noise"}
    assert columns["low"] == {"name": "low", "dtype": "uint8", "shape": [4, 4, 3], "most": None, "kind": None}
    assert columns["low_noise"]["most"] == 0.5
    assert [each["name"] for each in server.client.get("/v1/model").json()["columns"]] == ["image", "mask"]


def test_openapi_describes_the_pictures(server):
    keys = server.client.get("/openapi.json").json()["components"]["schemas"]["ImageRequest"]["properties"]
    for name in ("low", "image", "mask"):
        assert keys[name]["anyOf"][0]["contentMediaType"] == "image/png"
    assert "white is kept" in keys["mask"]["description"]


@pytest.mark.parametrize("prompt", DRAWN.values(), ids=DRAWN)
def test_a_prompt_that_is_drawn(told_server, told, prompt):
    answer = told_server.draw(low=png(LOW), prompt=prompt, steps=2, format="npy")
    np.testing.assert_array_equal(images(answer), Sampler(told).sample(1, low=LOW, prompt=prompt, steps=2))


@pytest.mark.parametrize(("prompt", "words"), REFUSED.values(), ids=REFUSED)
def test_a_prompt_that_is_refused(told_server, prompt, words):
    assert reason(told_server.draw(low=png(LOW), prompt=prompt)).startswith(f"prompt: {words}")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ('"\\ud800"', "prompt: half a character, U+D800"),
        ("7", "prompt: expected text, found 7"),
        ("[]", "prompt: expected at least one text, found none"),
        ('["red", null]', "prompt: expected text, found None"),
        ('{"a": 1}', "prompt: expected text, found {'a': 1}"),
    ],
)
def test_what_is_no_text(told_server, prompt, words):
    body = f'{{"n": 2, "low": {json.dumps(png(LOW))}, "prompt": {prompt}}}'
    answer = told_server.client.post("/v1/images", content=body, headers={"Content-Type": "application/json"})
    assert reason(answer).startswith(words)


EDGES = np.eye(8, dtype=bool)
HINT = {"control": png(255 * EDGES.astype(np.uint8))}


def test_a_hint_and_its_weights_over_http(hinted_server, hinted):
    sampler, asked = Sampler(hinted), {"seed": 3, "sampler": "ddim", "steps": 4}
    drawn = {}
    for weights in ({}, {"control_scale": 0.0}, {"control_scale": 2.0, "control_interval": [0.5, 1.0], "guess": True}):
        drawn[len(drawn)] = images(hinted_server.draw(n=2, format="npy", **asked, **HINT, **weights))
        np.testing.assert_array_equal(drawn[len(drawn) - 1], sampler.sample(2, control=EDGES, **asked, **weights))
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    card = hinted_server.client.get("/v1/model").json()
    (column,) = (column for column in card["columns"] if column["name"] == "control")
    assert column == {"name": "control", "dtype": "bool", "shape": [8, 8], "most": None, "kind": "edges"}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "control: the model needs edges, a picture of 8×8; found none"),
        ({"control": png(picture(4, 4))}, "control: 4 pixels wide and 4 high, expected 8 wide and 8 high"),
        ({"control": png(picture(8, 8))}, "control: expected edges, white on black, found"),
        ({**HINT, "control_scale": 11}, "control_scale"),
        ({**HINT, "control_interval": [0.8, 0.2]}, "control_interval must be two shares, 0 <= low <= high <= 1"),
        (
            {**HINT, "control_2": HINT["control"]},
            "control_2: the model takes no such input; it takes: image, mask, control",
        ),
    ],
)
def test_a_hint_that_cannot_be_followed_is_refused(hinted_server, asked, words):
    assert words in reason(hinted_server.draw(n=1, **asked))


def test_a_model_without_a_control_takes_no_weights(server):
    words = "control_scale, control_interval and guess are for models with a control; this one has none"
    assert words in reason(server.draw(n=1, guess=True))
