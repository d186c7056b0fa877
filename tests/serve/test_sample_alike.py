"""`ddpm sample` of an exported decoder and of an unCLIP: what options draw together, and what they do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from denoisers import NUMBERS, WORDS, write_decoder
from PIL import Image

import ddpm
from ddpm.cli.main import main

LIKE = ["--like", "a.png"]
TWO = [*LIKE, "--like", "b.png"]
CHANGE = ["--from", "night", "--to", "a light square"]


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 0), ("b", 1)):
        levels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(levels).save(f"{name}.png")


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ([*LIKE, "--n", "3"], 3),
        ([*TWO, "--n", "2"], 2),
        (LIKE, 64),
        ([*TWO, "--mix", "5"], 5),
        ([*TWO, "--mix", "5", "--n", "5"], 5),
        ([*LIKE, *CHANGE], 1),
        ([*LIKE, *CHANGE, "--n", "1", "--strength", "1"], 1),
        ([*LIKE, *CHANGE, "--mix", "4", "--strength", "0.2"], 4),
    ],
)
def test_how_many_are_drawn(decoder: Path, options: list[str], count: int):
    assert main(["sample", str(decoder), *options, "--out", "out.npz"]) == 0
    assert len(np.load("out.npz")["images"]) == count


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([*TWO, "--mix", "3", "--n", "4"], "--mix 3 says how many images are drawn: leave --n 4 out"),
        ([*LIKE, *CHANGE, "--n", "4"], "--from and --to draw one image, or as many as --mix says: leave --n 4 out"),
        ([*LIKE, *CHANGE, "--mix", "3", "--n", "4"], "--mix 3 says how many images are drawn"),
        ([*TWO, "--mix", "1"], "--mix must be in 2..1024, found 1"),
        ([*TWO, "--n", "1"], "--like: found 2, more than the images that --n draws, 1"),
        ([*LIKE, "--strength", "0.3"], "--strength is how far --from and --to change the picture"),
        ([*LIKE, "--to", "night"], "--from and --to go together"),
        (CHANGE, "--from needs --like FILE"),
        ([*LIKE, "--control-scale", "1"], "are for models with a control; this one has none"),
        ([*LIKE, "--label", "3"], "label: the model takes no such input"),
        ([*LIKE, "--resamples", "2"], "resamples is used by inpainting repaint alone"),
        ([*LIKE, "--prompt", "night"], "prompt has no effect with `like`: only the prior reads it"),
        (["--prompt", "night", "--prompt", "a", "--n", "1"], "--prompt: found 2, more than the images that --n draws"),
        (
            [*TWO, "--mix", "3", "--prompt", "night", "--prompt", "a"],
            "--prompt: --mix, --from and --to draw all images with the same one; found 2",
        ),
    ],
)
def test_an_option_without_effect_is_refused(
    unclip: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
):
    assert main(["sample", str(unclip), *options, "--out", "out.npz"]) == 2
    assert said in capsys.readouterr().err
    assert not Path("out.npz").exists()


def test_in_python_an_embedding_may_stand_beside_a_prompt(unclip: Path):
    """Who compares models asks the same of all of them."""
    drawer, embedding = ddpm.load(unclip), np.eye(6)[0]
    found = drawer.sample(2, embedding=embedding, prompt="night")
    np.testing.assert_array_equal(found, drawer.sample(2, embedding=embedding))


def test_words_that_the_encoder_cannot_read_are_said(decoder: Path, capsys: pytest.CaptureFixture[str]):
    command = ["sample", str(decoder), *LIKE, "--from", "a green square", "--to", "night", "--out", "out.npz"]
    assert main(command) == 0
    assert "--from: no training caption has these words of 'a green square': green" in capsys.readouterr().err


def test_a_picture_says_what_it_is_like(decoder: Path):
    assert main(["sample", str(decoder), *LIKE, *CHANGE, "--mix", "3", "--out", "out.png"]) == 0
    found = Image.open("out.png").text
    expected = {"Like": "a.png", "Mix": "3", "From": "night", "To": "a light square", "Strength": "0.4"}
    assert expected.items() <= found.items()


def test_a_missing_encoder_is_named_by_what_needs_it_alone(
    unclip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(unclip, "unclip")
    Path("unclip/decoder/image_encoder.onnx").unlink()
    assert main(["sample", "unclip", "--prompt", "night", "--n", "2", "--out", "out.npz"]) == 0
    assert main(["sample", "unclip", *LIKE, "--n", "2", "--out", "alike.npz"]) == 2
    said = capsys.readouterr().err
    assert "unclip/decoder/image_encoder.onnx is missing: it embeds the pictures that others are drawn like" in said


def test_beside_an_embedding_a_prompt_that_nobody_asks_for_is_the_empty_one(tmp_path: Path):
    """Of a model that reads both, a caption that is drawn would contradict the embedding."""
    directory = write_decoder(tmp_path / "decoder")
    facts = json.loads((directory / "sampler.json").read_text())
    facts["condition"]["prompt"] = {"drop": 0.1}
    facts["data"]["text"] = {"tokenizer": WORDS.as_json(), "captions": ["night"]}
    (directory / "sampler.json").write_text(json.dumps(facts))
    drawer = ddpm.load(directory)
    (column,) = (column for column in drawer.columns if column.name == "prompt")
    embedding = np.ones(NUMBERS, np.float32)
    for prompt, expected in ((None, ""), ("a night", "a night")):
        given = drawer.given(3, embedding=embedding, prompt=prompt)
        np.testing.assert_array_equal(given["prompt"], column.read(expected, 3))
