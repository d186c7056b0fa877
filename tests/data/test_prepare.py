"""`ddpm prepare`: what it writes, and one line about every kind of bad input."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddpm.config.params import Params
from ddpm.data.store import PreparedData
from ddpm.errors import UserError
from ddpm.stages.fetch import fetch
from ddpm.stages.prepare import _mean_and_std, prepare

FOLDER = {"source": "folder", "path": "../photos"}
SQUARE = ("RGB", (6, 6))
LABELLED = {f"{name}/{number}.png": SQUARE for name in ("cat", "dog") for number in range(5)}


def test_manifest(root: Path, prepared: Callable, photos: Callable) -> None:
    photos({**LABELLED, "cat/5.png": SQUARE})
    manifest = prepared(**FOLDER, validation_fraction=0.4)
    out = root / "prepared"
    images, labels = np.load(out / "images.npy"), np.load(out / "labels.npy")
    index = {name: np.load(out / f"{name}.npy") for name in ("train", "validation")}
    assert manifest.name == "photos"
    assert manifest.shape == images.shape[1:] == (6, 6, 3)
    assert manifest.classes == ("cat", "dog")
    assert manifest.counts.model_dump() == {"train": 7, "validation": 4, "classes": {"cat": 6, "dog": 5}}
    assert labels.tolist() == [0] * 6 + [1] * 5
    for number, label in enumerate(sorted(path.relative_to(root / "data") for path in (root / "data").rglob("*.png"))):
        assert (images[number] == np.asarray(Image.open(root / "data" / label))).all()
    for name, rows in index.items():
        assert manifest.splits[name].count == len(rows)
        assert manifest.splits[name].sha256 == hashlib.sha256(images[rows].tobytes()).hexdigest()
    train = images[index["train"]].reshape(-1, 3) / 255
    assert manifest.mean == pytest.approx(train.mean(0))
    assert manifest.std == pytest.approx(train.std(0))
    assert manifest.images_sha256 == hashlib.sha256((out / "images.npy").read_bytes()).hexdigest()
    assert manifest.labels_sha256 == hashlib.sha256((out / "labels.npy").read_bytes()).hexdigest()
    assert manifest == PreparedData.open(out).manifest


@given(st.lists(st.integers(0, 255), min_size=1, max_size=50))
def test_statistics_from_counts(levels: list[int]) -> None:
    mean, std = _mean_and_std(np.bincount(levels, minlength=256).tolist())
    assert mean == pytest.approx(np.mean(levels) / 255)
    assert std == pytest.approx(np.std(levels) / 255)


def test_equal_runs_are_equal_bytes(root: Path, params: Callable, photos: Callable) -> None:
    photos(LABELLED)
    runs = []
    for place in (root, root.parent / "elsewhere"):
        place.mkdir(exist_ok=True)
        fetch(params(**FOLDER), root=place)
        prepare(params(**FOLDER), root=place)
        runs.append({file.name: file.read_bytes() for file in (place / "prepared").iterdir()})
    assert runs[0] == runs[1]
    assert sorted(runs[0]) == ["images.npy", "labels.npy", "manifest.json", "train.npy", "validation.npy"]


def test_the_seed_moves_the_split_and_nothing_else(root: Path, params: Callable) -> None:
    fetch(params(), root=root)
    first, second = (prepare(params(seed=seed), root=root) for seed in (0, 1))
    assert first.images_sha256 == second.images_sha256
    assert first.splits != second.splits


def test_without_classes_there_are_no_labels(root: Path, prepared: Callable, photos: Callable) -> None:
    photos({f"{number}.png": SQUARE for number in range(5)})
    manifest = prepared(**FOLDER)
    assert manifest.classes is manifest.counts.classes is manifest.labels_sha256 is None
    assert not (root / "prepared/labels.npy").exists()
    assert PreparedData.open(root / "prepared").split("train").labels is None


def test_mixed_sizes_and_modes_by_the_rules(prepared: Callable, photos: Callable) -> None:
    photos({"a.png": ("L", (9, 5)), "b.png": ("RGBA", (4, 4)), "c.bmp": ("P", (7, 30)), "d.jpg": ("CMYK", (8, 8))})
    assert prepared(**FOLDER, image_size=8, channels=3).shape == (8, 8, 3)


def deep_images(root: Path, kind: str, dtype: type, high: float) -> None:
    """Four files beside the project, with samples 0 to `high`."""
    folder = root.parent / "photos"
    folder.mkdir()
    for number in range(4):
        samples = np.roll(np.linspace(0, high, 36).reshape(6, 6), number, 0).astype(dtype)
        Image.fromarray(samples).save(folder / f"{number}.{kind}")


def test_12_bits_in_16_are_dark_and_said_to_be(root: Path, prepared: Callable, capsys: pytest.CaptureFixture) -> None:
    deep_images(root, "png", np.uint16, 4000)
    manifest = prepared(**FOLDER)
    assert manifest.mean[0] < 0.04
    (warning,) = manifest.warnings
    assert "hold values of 0 to 4000" in warning
    assert "0 to 65535" in warning
    assert "`data.levels`, here perhaps to 4095" in warning
    assert warning in capsys.readouterr().err
    assert json.loads((root / "prepared/manifest.json").read_text())["warnings"] == [warning]

    manifest = prepared(**FOLDER, levels=4095)
    assert manifest.mean[0] == pytest.approx(2000 / 4095, abs=0.01)
    assert manifest.warnings == ()
    assert manifest.rules.levels == 4095
    assert capsys.readouterr().err == ""


def test_levels_that_are_too_narrow_are_said(root: Path, prepared: Callable) -> None:
    deep_images(root, "tif", np.float32, 2)
    (warning,) = prepared(**FOLDER, levels=[0, 1]).warnings
    assert "hold values of 0 to 2; those outside `data.levels`, 0 to 1, became black or white" in warning


@pytest.mark.parametrize(
    ("dtype", "high", "complaint"),
    [
        (np.int32, 255, "signed or 32-bit samples, 0 to 255 in this file, .*`data.levels`"),
        (np.float32, 1, "float samples, 0 to 1 in this file, .*`data.levels`"),
        (np.uint16, 255, "every pixel .* is 0 of 255: .* values of 0 to 255, .* to 65535, .*`data.levels`, .* to 255"),
        (np.uint8, 0, "every pixel .* is 0 of 255"),
    ],
)
def test_black_images_are_refused(
    dtype: type, high: float, complaint: str, root: Path, params: Callable, prepared: Callable
) -> None:
    deep_images(root, "tif", dtype, high)
    with pytest.raises(UserError, match=complaint):
        prepared(**FOLDER)
    assert not list(root.glob("*prepared*"))


def test_plain_images_have_no_warnings_in_the_manifest(root: Path, prepared: Callable, photos: Callable) -> None:
    photos(LABELLED)
    prepared(**FOLDER)
    written = json.loads((root / "prepared/manifest.json").read_text())
    assert "warnings" not in written
    assert not {"levels", "subfolders"} & written["rules"].keys()


@pytest.mark.parametrize(
    ("files", "keys", "complaint"),
    [
        ({"a.png": SQUARE}, {}, r"only one image, a\.png"),
        ({"a.png": SQUARE, "b.png": ("RGB", (7, 7))}, {}, r"mixed sizes: .*a\.png is 6×6, .*b\.png is 7×7; set"),
        ({"a.png": ("L", (6, 7)), "b.png": SQUARE}, {}, r"a\.png is 6×7, not square; set `data\.image_size`"),
        ({"a.png": ("L", (6, 6)), "b.png": SQUARE}, {}, r"mixed modes: .*a\.png is grey, .*b\.png is in colour; set"),
        ({"a.png": SQUARE, "b.png": ("L", (9, 6))}, {"image_size": 4}, r"b\.png is grey; set `data\.channels`"),
        ({**LABELLED, "emu/1.png": SQUARE}, {}, r"class 'emu' has 1 readable image;"),
        ({**LABELLED, "stray.png": SQUARE}, {}, r"labels missing: .*stray\.png lies beside the class folders cat, dog"),
        ({"x/cat/1.png": SQUARE, "x/dog/1.png": SQUARE}, {}, r"x/cat/1\.png: a folder in a class folder"),
        (LABELLED, {"max_pixels": 35}, r"cat/0\.png: decodes to more than data\.max_pixels \(35\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_input(files: dict, keys: dict, complaint: str, root: Path, prepared: Callable, photos: Callable) -> None:
    photos(files)
    with pytest.raises(UserError, match=complaint) as error:
        prepared(**FOLDER, **keys)
    assert "\n" not in str(error.value)
    assert not list(root.glob("*prepared*"))


def spoil(folder: Path, kind: str) -> None:
    whole = (folder / "cat/1.png").read_bytes()
    content = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello", "pickle": b"\x80\x04N."}[kind]
    (folder / "cat/1.png").write_bytes(content)


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "pickle"])
def test_a_bad_file_is_named_or_left_out(kind: str, root: Path, prepared: Callable, photos: Callable) -> None:
    spoil(photos(LABELLED), kind)
    with pytest.raises(UserError, match=r"cat/1\.png: (not an image|does not decode|empty).*skip_bad"):
        prepared(**FOLDER)
    manifest = prepared(**FOLDER, skip_bad=True)
    (left_out,) = manifest.left_out
    assert left_out.file == "cat/1.png"
    assert left_out.reason
    assert manifest.counts.classes == {"cat": 4, "dog": 5}
    assert json.loads((root / "prepared/manifest.json").read_text())["left_out"] == [left_out.model_dump()]


def test_nothing_but_bad_files(prepared: Callable, photos: Callable) -> None:
    folder = photos(LABELLED)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"hello")
    with pytest.raises(UserError, match=r"no images but 10 unreadable files, such as cat/0\.png: not an image"):
        prepared(**FOLDER, skip_bad=True)


def test_a_failure_leaves_the_older_one(root: Path, params: Callable[..., Params], photos: Callable) -> None:
    folder = photos(LABELLED)
    fetch(params(**FOLDER), root=root)
    prepare(params(**FOLDER), root=root)
    before = {file: file.read_bytes() for file in (root / "prepared").iterdir()}
    spoil(folder, "text")
    fetch(params(**FOLDER), root=root, accept=True)
    with pytest.raises(UserError):
        prepare(params(**FOLDER), root=root)
    assert {file: file.read_bytes() for file in (root / "prepared").iterdir()} == before


def test_before_fetch(root: Path, params: Callable) -> None:
    with pytest.raises(UserError, match=r"fetched\.json: no such file; run `ddpm fetch`"):
        prepare(params(), root=root)


@pytest.mark.parametrize("receipt", ["", "{}", "[1]", '{"source": 1}', "\x00"])
def test_a_damaged_receipt(receipt: str, root: Path, params: Callable) -> None:
    (root / "fetched.json").write_text(receipt)
    with pytest.raises(UserError, match=r"fetched\.json: damaged; run `ddpm fetch`"):
        prepare(params(), root=root)


def test_data_changed_since_fetch(root: Path, params: Callable) -> None:
    fetch(params(), root=root)
    (root / "data/more").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"data/ has changed since fetched\.json was written: added more; run `ddpm fetch`"
    ):
        prepare(params(), root=root)
    shutil.rmtree(root / "data")
    with pytest.raises(UserError, match="data: no such folder; run `ddpm fetch`"):
        prepare(params(), root=root)


def test_another_source_since_fetch(root: Path, params: Callable) -> None:
    fetch(params(), root=root)
    with pytest.raises(UserError, match=r"data/ holds digits \(digits\), but params\.yaml asks for mnist"):
        prepare(params(source="mnist"), root=root)
