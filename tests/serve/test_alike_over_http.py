"""Pictures like given ones over HTTP: what is drawn, and what is refused."""

from __future__ import annotations

import base64
import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from service import Server

import ddpm
from ddpm import tracking
from ddpm.cli.main import main
from ddpm.drawer.likeness import Likeness
from ddpm.errors import UserError
from ddpm.serve.models import load_model


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
    one, small = png(given(decoder, 1)[0]), png(np.zeros((4, 4), np.uint8))
    for asked, words in [
        ({"like": one, "mix": 3}, "mix goes from one picture to another; expected two in `like`, found 1"),
        ({"like": [one, one]}, "like: the list must have at most 1 entry (`n`), found 2"),
        ({"like": one, "from": "night"}, "`from` and `to` go together"),
        ({"like": one, "strength": 0.3}, "strength is how far `from` and `to`"),
        ({"mix": 3}, "mix, from and to need a picture"),
        ({"like": "cat.png"}, "like: expected a PNG image in base64"),
        ({"like": png(np.zeros((3, 3), np.uint8))}, "like: 3 pixels wide and 3 high"),
        ({"like": [one, one], "mix": 65}, "`mix` must be at most 64, found 65"),
        ({"like": [one, one], "mix": 3, "n": 4}, "n is how many images are drawn, and `mix` says it; leave `n` out"),
        ({"like": one, "from": "night", "to": "a", "n": 2}, "n is how many images are drawn, and `from` and `to` draw"),
        ({"like": [one, one], "mix": 1}, "mix must be in 2..1024, found 1"),
        ({"like": [one, one], "from": "night", "to": "a"}, "like: a difference of texts (from, to) changes one"),
        ({"like": one, "from": "night", "to": "night"}, "`from` and `to` are the same to the model"),
        ({"like": [one, one], "mix": 3, "image": [small, small], "mask": small}, "image: the list must have at most 1"),
        ({"like": one, "steps": 5, "prompt": "night"}, "prompt: the model takes no such input"),
        (
            {"like": one, "control_scale": 1.0},
            "control_scale, control_interval and guess are for models with a control",
        ),
    ]:
        answer = alike_server.draw(**asked)
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith(words), answer.json()


def test_n_may_say_what_mix_says(alike_server: Server, decoder: Path):
    two = [png(each) for each in given(decoder, 2)]
    found = [images(alike_server.draw(like=two, mix=3, format="npy", **more)) for more in ({}, {"n": 3})]
    np.testing.assert_array_equal(*found)


def test_an_unclip_draws_of_a_text_or_like_a_picture(unclip_server: Server, unclip: Path):
    drawer, one = ddpm.load(unclip), given(unclip, 1)
    of_text = images(unclip_server.draw(n=2, prompt="night", format="npy"))
    assert np.abs(of_text - drawer.sample(2, prompt="night")).max() <= 1
    alike = images(unclip_server.draw(n=2, like=png(one[0]), format="npy"))
    assert np.abs(alike - drawer.alike(Likeness(one), 2)).max() <= 1
    both = unclip_server.draw(like=png(one[0]), prompt="night")
    assert both.status_code == 422
    assert both.json()["detail"].startswith("prompt has no effect with `like`: only the prior reads it")


ENCODERS = {"image_encoder.onnx": "it embeds the pictures", "text_encoder.onnx": "it embeds texts"}


@pytest.mark.parametrize(("file", "needed_for"), ENCODERS.items())
def test_a_missing_encoder_is_said_before_anything_is_served(
    decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, needed_for: str
):
    shutil.copytree(decoder, tmp_path / "decoder")
    (tmp_path / "decoder" / file).unlink()
    assert main(["serve", str(tmp_path / "decoder"), "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'decoder' / file} is missing: {needed_for}" in said
    assert "`ddpm export` makes it" in said


def test_of_an_unclip_each_links_files_are_looked_for(unclip: Path, tmp_path: Path):
    for link, file in [("prior", "text_encoder.onnx"), *(("decoder", file) for file in ENCODERS)]:
        model = tmp_path / f"without-{link}-{file}"
        shutil.copytree(unclip, model)
        (model / link / file).unlink()
        with pytest.raises(UserError, match=rf"{link}/{file} is missing"):
            load_model(str(model))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("half", "image_encoder.onnx does not load"),
        ("another", "image_encoder.onnx loads, but embeds nothing"),
        ("longer", "image_encoder.onnx: expected an embedding of 7 numbers, found "),
    ],
)
def test_an_encoder_that_embeds_nothing_is_said(decoder: Path, tmp_path: Path, fault: str, words: str):
    model = tmp_path / "decoder"
    shutil.copytree(decoder, model)
    file = model / "image_encoder.onnx"
    if fault == "half":
        file.write_bytes(file.read_bytes()[:-20])
    elif fault == "another":
        shutil.copyfile(model / "text_encoder.onnx", file)
    else:
        facts = model / "sampler.json"
        facts.write_text(facts.read_text().replace('"numbers": 6', '"numbers": 7'))
    with pytest.raises(UserError, match=words):
        load_model(str(model))


def test_a_registered_model_needs_its_files_no_more(decoder: Path, monkeypatch: pytest.MonkeyPatch):
    """They are in a folder that is gone once the model is loaded."""

    def resolve(uri: str, root: Path = Path(), *, into: Path) -> Path:
        return Path(shutil.copytree(decoder, into / "model"))

    monkeypatch.setattr(tracking, "resolve", resolve)
    drawer, likeness = load_model("models:/ddpm-dots/1").sampler, Likeness(given(decoder, 1), change=("night", "a"))
    np.testing.assert_array_equal(drawer.alike(likeness, 1), ddpm.load(decoder).alike(likeness, 1))


def test_the_card_has_the_size_and_other_models_take_none(alike_server: Server, server: Server, decoder: Path):
    columns = {each["name"]: each for each in alike_server.client.get("/v1/model").json()["columns"]}
    assert columns["like"]["shape"] == list(given(decoder, 1)[0].shape)
    assert "like" not in {each["name"] for each in server.client.get("/v1/model").json()["columns"]}
    refused = server.draw(like=png(given(decoder, 1)[0]))
    assert refused.status_code == 422
    assert refused.json()["detail"] == "like: the model draws no pictures of CLIP embeddings"
