"""`ddpm sample` with pictures of the user: small images for upsamplers, images of which a part is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from untrained import untrained

import ddpm
from ddpm.cli.main import main
from ddpm.model.card import DataFacts

COLOUR = DataFacts(name="dots", shape=(8, 8, 3), classes=None)
MODELS = {
    "up": (COLOUR, {"low": {"side": 4, "noise": 0.5}}),
    "grey-up": (DataFacts(name="dots", shape=(8, 8, 1), classes=None), {"low": {"side": 4}}),
    "fills": (COLOUR, {"mask": {}}),
    "plain": (COLOUR, {}),
    "points": (DataFacts(name="dots", shape=(2,), classes=None, kind="points", low=(-1, -1), high=(1, 1)), {}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of random weights, and pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, (facts, condition) in MODELS.items():
        network = {"network": {"kind": "mlp", "width": 8}} if facts.kind == "points" else {}
        untrained(name, folder / "models", facts, condition=condition, **network)
    for name, shape in {"image": (8, 8, 3), "low": (4, 4, 3), "grey": (4, 4), "large": (16, 16, 3)}.items():
        Image.fromarray(picture(*shape)).save(folder / f"{name}.png")
    Image.fromarray((picture(8, 8) < 100).astype(np.uint8) * 255).save(folder / "mask.png")
    Image.fromarray(picture(8, 8)).save(folder / "greys.png")
    (folder / "text.png").write_text("no image")
    (folder / "lows").mkdir()
    for number in range(3):
        Image.fromarray(picture(4, 4, 3, seed=number)).save(folder / f"lows/{number}.png")
    (folder / "lows/.hidden").write_text("no image")
    (folder / "nothing").mkdir()
    return folder


@pytest.fixture(autouse=True)
def here(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)


def picture(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def drawn(tmp_path: Path) -> Callable[..., np.ndarray]:
    """What `ddpm sample` draws with these arguments."""

    def draw(*arguments: str) -> np.ndarray:
        assert main(["sample", *arguments, "--steps", "4", "--out", str(tmp_path / "out.npz")]) == 0
        return np.load(tmp_path / "out.npz")["images"]

    return draw


MASK = picture(8, 8) < 100


def test_a_small_image_is_enlarged(drawn):
    images = drawn("models/up", "--low", "low.png", "--low-noise", "0.25", "--n", "2")
    expected = ddpm.load("models/up").sample(2, steps=4, low=picture(4, 4, 3), low_noise=0.25)
    np.testing.assert_array_equal(images, expected)
    assert (images != drawn("models/up", "--low", "low.png", "--n", "2")).any()


def test_the_files_of_a_directory_are_taken_in_turn(drawn):
    expected = ddpm.load("models/up").sample(4, steps=4, low=np.stack([picture(4, 4, 3, seed=n) for n in range(3)]))
    np.testing.assert_array_equal(drawn("models/up", "--low", "lows", "--n", "4"), expected)


@pytest.mark.parametrize("model", ["fills", "plain"])
@pytest.mark.parametrize("sampler", ["ancestral", "unipc"])
def test_what_is_white_in_the_mask_is_kept_to_the_last_bit(drawn, model: str, sampler: str):
    images = drawn(f"models/{model}", "--image", "image.png", "--mask", "mask.png", "--n", "3", "--sampler", sampler)
    assert (images[:, MASK] == picture(8, 8, 3)[MASK]).all()
    assert (images[:, ~MASK] != picture(8, 8, 3)[~MASK]).any((1, 2)).all()
    assert (images[0] != images[1]).any()


@pytest.mark.parametrize(
    ("mode", "known"),
    [
        ("1", lambda m: Image.fromarray(m)),
        ("L of 0 and 1", lambda m: Image.fromarray(m.astype(np.uint8))),
        ("RGB", lambda m: Image.fromarray(np.repeat(m[..., None], 3, 2).astype(np.uint8) * 255)),
        ("P", lambda m: Image.fromarray(m.astype(np.uint8) * 255).convert("P")),
        ("transparent is white", lambda m: Image.fromarray(np.dstack([*[m * 0] * 3, ~m * 255]).astype(np.uint8))),
    ],
)
def test_a_mask_of_any_mode(drawn, tmp_path: Path, capsys, mode: str, known):
    known(MASK).save(tmp_path / "mask.png")
    images = drawn("models/plain", "--image", "image.png", "--mask", str(tmp_path / "mask.png"), "--n", "1")
    np.testing.assert_array_equal((images[0] == picture(8, 8, 3)).all(-1), MASK)
    assert "neither" not in capsys.readouterr().err


def test_greys_of_a_mask_count_as_the_nearer_one_with_a_message(drawn, capsys):
    images = drawn("models/plain", "--image", "image.png", "--mask", "greys.png", "--n", "1")
    np.testing.assert_array_equal((images[0] == picture(8, 8, 3)).all(-1), picture(8, 8) >= 128)
    greys = int(((picture(8, 8) > 0) & (picture(8, 8) < 255)).sum())
    assert f"--mask greys.png: {greys} pixels are neither black nor white; each counts as the nearer one" in (
        capsys.readouterr().err
    )


def test_pictures_become_what_preparation_makes_of_them(drawn, tmp_path: Path):
    """Grey becomes colour, colour grey, transparency is laid over white, and a JPEG is as good as a PNG."""
    grey = np.repeat(picture(4, 4)[..., None], 3, 2)
    up, grey_up = ddpm.load("models/up"), ddpm.load("models/grey-up")
    np.testing.assert_array_equal(drawn("models/up", "--low", "grey.png", "--n", "1"), up.sample(1, steps=4, low=grey))
    luma = np.asarray(Image.open("low.png").convert("L"))[..., None]
    expected = grey_up.sample(1, steps=4, low=luma)
    np.testing.assert_array_equal(drawn("models/grey-up", "--low", "low.png", "--n", "1"), expected)
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    expected = up.sample(1, steps=4, low=np.full((4, 4, 3), 255))
    np.testing.assert_array_equal(drawn("models/up", "--low", str(tmp_path / "clear.png"), "--n", "1"), expected)
    Image.open("low.png").save(tmp_path / "low.jpg")
    expected = up.sample(1, steps=4, low=np.asarray(Image.open(tmp_path / "low.jpg")))
    np.testing.assert_array_equal(drawn("models/up", "--low", str(tmp_path / "low.jpg"), "--n", "1"), expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("up --low none.png", "--low none.png: No such file or directory"),
        ("up --low text.png", "--low text.png: not an image"),
        ("up --low nothing", "--low nothing: the directory has no files"),
        ("up --low large.png", "--low large.png: 16 pixels wide and 16 high, expected 4 wide and 4 high"),
        ("up", "low: the model needs a picture of 4×4×3, found none"),
        ("up --low low.png --low-noise 0.6", "low_noise must be in 0..0.5, found 0.6"),
        ("plain --low low.png", "low: the model takes no such input; it takes: image, mask"),
        ("plain --low-noise 0.1", "low_noise: the model takes no such input; it takes: image, mask"),
        ("plain --image image.png", "image needs mask as well: give both or neither"),
        ("fills --mask mask.png", "mask needs image as well: give both or neither"),
        ("fills --image image.png --mask large.png", "--mask large.png: 16 pixels wide and 16 high, expected 8 wide"),
        ("points --image image.png --mask mask.png", "image: the model takes no such input; it takes: none"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(capsys, tmp_path: Path, arguments: str, words: str):
    model, *options = arguments.split()
    out = tmp_path / "out.npz"
    assert main(["sample", f"models/{model}", *options, "--n", "1", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_a_huge_picture_is_refused_by_its_header(capsys, tmp_path: Path):
    """40,000 by 40,000 pixels of one bit compress to less than a megabyte, and decode to 1.6 GB."""
    Image.new("1", (8000, 8000)).save(tmp_path / "bomb.png")
    with contextlib.suppress(FileNotFoundError):
        (tmp_path / "out.npz").unlink()
    asked = ["--low", str(tmp_path / "bomb.png"), "--out", str(tmp_path / "out.npz")]
    assert main(["sample", "models/up", *asked]) == 2
    assert "8000 pixels wide and 8000 high, expected 4 wide and 4 high" in capsys.readouterr().err


def test_a_picture_says_by_which_pictures_it_was_drawn(tmp_path: Path):
    asked = ["--low", "low.png", "--low-noise", "0.1", "--n", "1", "--steps", "2", "--out", str(tmp_path / "up.png")]
    assert main(["sample", "models/up", *asked]) == 0
    found = Image.open(tmp_path / "up.png").text
    assert (found["Low"], found["Low noise"]) == ("low.png", "0.1")
    assert "low" not in found["Plan"]
