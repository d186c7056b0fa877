"""Pictures like given ones over HTTP: what is drawn, and what is refused."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from service import Server

import ddpm
from ddpm.drawer.likeness import Likeness


def given(decoder: Path, count: int) -> np.ndarray:
    encoder = ddpm.load(decoder).encoder
    assert encoder is not None
    return np.random.default_rng(0).integers(0, 256, (count, *encoder.shape), dtype=np.uint8)


def png(array: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(array.squeeze()).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def images(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content)).astype(int)


def test_each_gets_what_it_would_get_alone(alike_server: Server, decoder: Path):
    """Variations, an interpolation and a difference of texts, which wait together."""
    two = given(decoder, 2)
    wanted = [
        (Likeness(two), {"n": 3, "like": [png(each) for each in two]}, 3),
        (Likeness(two, mix=5), {"like": [png(each) for each in two], "mix": 5}, 5),
        (
            Likeness(two[:1], mix=2, change=("night", "a light square"), strength=0.3),
            {"like": png(two[0]), "mix": 2, "from": "night", "to": "a light square", "strength": 0.3},
            2,
        ),
    ]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda each: images(alike_server.draw(seed=4, format="npy", **each[1])), wanted))
    for drawn, (likeness, _, count) in zip(found, wanted, strict=True):
        expected = ddpm.load(decoder).alike(likeness, count, seed=4)
        assert len(drawn) == count
        assert np.abs(drawn - expected).max() <= 1


def test_what_does_not_go_together_is_refused_in_a_line(alike_server: Server, decoder: Path):
    one = png(given(decoder, 1)[0])
    for asked, words in [
        ({"like": one, "mix": 3}, "mix goes from one picture to another; expected two in `like`, found 1"),
        ({"like": [one, one]}, "like: the list must have at most 1 entries, found 2"),
        ({"like": one, "from": "night"}, "`from` and `to` go together"),
        ({"like": one, "strength": 0.3}, "strength is how far `from` and `to`"),
        ({"mix": 3}, "mix, from and to need a picture"),
        ({"like": "cat.png"}, "like: expected a PNG image in base64"),
        ({"like": png(np.zeros((3, 3), np.uint8))}, "like: 3 pixels wide and 3 high"),
        ({"like": [one, one], "mix": 65}, "`mix` must be at most 64, found 65"),
    ]:
        answer = alike_server.draw(**asked)
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith(words), answer.json()


def test_the_card_has_the_size_and_other_models_take_none(alike_server: Server, server: Server, decoder: Path):
    columns = {each["name"]: each for each in alike_server.client.get("/v1/model").json()["columns"]}
    assert columns["like"]["shape"] == list(given(decoder, 1)[0].shape)
    assert "like" not in {each["name"] for each in server.client.get("/v1/model").json()["columns"]}
    refused = server.draw(like=png(given(decoder, 1)[0]))
    assert refused.status_code == 422
    assert refused.json()["detail"] == "like: the model draws no pictures of CLIP embeddings"
