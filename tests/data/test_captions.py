"""A folder's captions, by both conventions: what is read, and one line about everything that cannot be."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm.conditioning.text_limits import MOST_CHARACTERS
from ddpm.data.captions import find_captions
from ddpm.data.folder import files_in
from ddpm.data.store import PreparedData
from ddpm.errors import UserError

FOLDER = {"source": "folder", "path": "../photos"}
IMAGES = ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")
TEXTS = {name: (f"a {name[:3]}, number {name[4]}",) for name in IMAGES}
BOTH = r"captions in both .*metadata\.jsonl and .*; keep one of them"

texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20).filter(
    lambda text: text.strip()
)


def as_jsonl(captions: dict) -> str:
    return "".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in captions.items())


def as_csv(captions: dict) -> str:
    stream = io.StringIO()
    rows = csv.writer(stream)
    rows.writerow(["split", "file_name", "text"])
    rows.writerows(["train", name, text] for name, found in captions.items() for text in found)
    return stream.getvalue()


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def found_in(folder: Path, rule: str = "complete") -> tuple[list[str], dict[str, tuple[str, ...]]]:
    return find_captions(folder, files_in(folder), rule)  # type: ignore[arg-type]


CONVENTIONS = {
    "jsonl": {"metadata.jsonl": as_jsonl(TEXTS)},
    "csv": {"metadata.csv": as_csv(TEXTS)},
    "a table in each folder": {
        f"{place}/metadata.jsonl": as_jsonl({name[4:]: text for name, text in TEXTS.items() if name[:3] == place})
        for place in ("cat", "dog")
    },
    "sidecars": {name.replace(".png", ".txt"): text for name, (text,) in TEXTS.items()},
    "sidecars as some editors write them": {
        name.replace(".png", ".txt"): f"\ufeff\r\n {text}\t\r\n\r\n" for name, (text,) in TEXTS.items()
    },
}


@pytest.mark.parametrize("files", CONVENTIONS.values(), ids=CONVENTIONS.keys())
def test_all_conventions_say_the_same(tmp_path: Path, files: dict):
    write(tmp_path, dict.fromkeys(IMAGES, "") | files)
    images, captions = found_in(tmp_path)
    assert tuple(images) == IMAGES
    assert captions == TEXTS
    assert found_in(tmp_path, "ignored") == (list(IMAGES), {})


def test_several_captions_of_an_image(tmp_path: Path):
    two = ("a cat", "an animal")
    rows = as_jsonl({"a.png": list(two)}) + as_jsonl({"b.png": two[0]}) + as_jsonl({"b.png": two[1]})
    for files in ({"metadata.jsonl": rows}, {"metadata.csv": as_csv({"a.png": two, "b.png": two})}):
        folder = write(tmp_path / next(iter(files)), {"a.png": "", "b.png": ""} | files)
        assert found_in(folder)[1] == {"a.png": two, "b.png": two}
    sidecar = write(tmp_path / "sidecar", {"a.png": "", "a.txt": "a cat\nan animal\n", "a.webp": ""})
    assert found_in(sidecar)[1] == {"a.png": two, "a.webp": two}  # both have this name


@given(st.lists(st.lists(texts, min_size=1, max_size=3), min_size=1, max_size=4))
def test_any_text_comes_back_but_for_its_ends(tmp_path_factory: pytest.TempPathFactory, captions: list[list[str]]):
    folder = tmp_path_factory.mktemp("any")
    names = [f"{number}.png" for number in range(len(captions))]
    write(folder, dict.fromkeys(names, "") | {"metadata.jsonl": as_jsonl(dict(zip(names, captions, strict=True)))})
    stripped = [tuple(text.strip() for text in each) for each in captions]
    assert found_in(folder)[1] == dict(zip(names, stripped, strict=True))


def test_without_captions_every_file_is_an_image(tmp_path: Path):
    """As before there were captions: `prepare` says which file is none, or leaves it out."""
    write(tmp_path, dict.fromkeys((*IMAGES, "README.txt"), ""))
    assert found_in(tmp_path) == (["README.txt", *IMAGES], {})


def test_the_empty_caption_stands_in_where_params_say_so(tmp_path: Path):
    write(tmp_path, dict.fromkeys(IMAGES, "") | {"cat/1.txt": "a cat", "dog/1.txt": " \n"})
    expected = {name: ("a cat",) if name == "cat/1.png" else ("",) for name in IMAGES}
    assert found_in(tmp_path, "partial") == (list(IMAGES), expected)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"a.txt": "a"}, r"captions missing: .*b\.png has none, as 1 of 2 images; .*`data\.captions: partial`"),
        ({"a.txt": "a", "b.txt": ""}, r"b\.txt: an empty caption of b\.png; .*`data\.captions: partial`"),
        ({"a.txt": "a", "b.txt": "\n \t"}, r"b\.txt: an empty caption of b\.png"),
        ({"a.txt": "a", "b.txt": "b", "c.txt": "c"}, r"c\.txt: a caption without an image of its name; .*ignored"),
        ({"a.txt": "a", "b.txt": b"caf\xe9"}, r"b\.txt: not UTF-8 \(byte 3\)"),
        ({"a.txt": "a", "b.txt": "b" * (MOST_CHARACTERS + 1)}, r"b\.txt: the caption: expected at most 4,096 .*4,097"),
        ({"a.txt": "a", "b.txt": "bell\a"}, r"b\.txt: the caption: a control character, U\+0007, in 'bell"),
        ({"metadata.jsonl": as_jsonl({"a.png": "a"})}, r"captions missing: .*b\.png has none"),
        ({"metadata.jsonl": as_jsonl({"a.png": "a", "b.png": " "})}, r"metadata\.jsonl: line 2: an empty caption of b"),
        ({"metadata.jsonl": as_jsonl({"a.png": "a", "c.png": "c"})}, r"metadata\.jsonl: line 2: 'c\.png': no such im"),
        ({"metadata.jsonl": as_jsonl({"../x.png": "a"})}, r"line 1: '\.\./x\.png': no such image"),
        ({"metadata.jsonl": as_jsonl({"/etc/passwd": "a"})}, r"line 1: '/etc/passwd': no such image"),
        ({"metadata.jsonl": as_jsonl({"a.png": 3})}, r"line 1: expected text in `file_name` and `text`, .* and 3"),
        ({"metadata.jsonl": as_jsonl({"a.png": ["a", None]})}, "line 1: expected text in"),
        ({"metadata.jsonl": as_jsonl({"a.png": []})}, "line 1: expected text in"),
        (
            {"metadata.jsonl": '{"file_name": "a.png", "label": 1}'},
            r"line 1: `text` is missing, found file_name, label",
        ),
        ({"metadata.jsonl": "\n{}\n"}, r"line 2: `file_name` is missing, found nothing; .*ignored"),
        ({"metadata.jsonl": "a.png: a cat"}, r"metadata\.jsonl: line 1: not JSON, found 'a\.png: a cat'"),
        ({"metadata.jsonl": "[" * 100_000}, r"line 1: not JSON, found '\[\["),
        ({"metadata.jsonl": '["a.png", "a"]'}, r"line 1: expected an object, found \['a\.png', 'a'\]"),
        ({"metadata.jsonl": '{"file_name": "a.png", "text": "\\ud83d"}'}, r"line 1: .* half a character, U\+D83D"),
        ({"metadata.jsonl": b"\xff"}, r"metadata\.jsonl: not UTF-8"),
        ({"metadata.jsonl": ""}, r"metadata\.jsonl: no captions in it"),
        ({"metadata.csv": "file_name,label\na.png,1\n"}, r"metadata\.csv: line 2: `text` is missing, found file_name"),
        ({"metadata.csv": "file_name,text\na.png\n"}, r"metadata\.csv: line 2: expected text in .*'a\.png' and None"),
        ({"metadata.csv": 'file_name,text\na.png,"a" b\n'}, r"metadata\.csv: line 2: not CSV"),
        (
            {"metadata.csv": f"file_name,text\na.png,{'x' * 200_000}\n"},
            r"metadata\.csv: line \d: not CSV: field larger",
        ),
        ({"metadata.jsonl": as_jsonl({"a.png": "a"}), "metadata.csv": "x"}, r"captions in both metadata\.csv and meta"),
        ({"metadata.jsonl": as_jsonl({"a.png": "a"}), "b.txt": "b"}, r"captions in both metadata\.jsonl and b\.txt; k"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_cannot_be_captions_is_said_in_a_line_with_the_file(tmp_path: Path, files: dict, complaint: str):
    write(tmp_path, {"a.png": "", "b.png": ""} | files)
    with pytest.raises(UserError, match=complaint) as error:
        found_in(tmp_path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_prepared_captions_are_those_of_the_rows(root: Path, prepared: Callable, photos: Callable):
    """Also where a class folder, a bad image and a second caption come in between."""
    folder = photos(dict.fromkeys((*IMAGES, "cat/0.png"), ("RGB", (6, 6))))
    write(folder, {"cat/0.png": "no image", "cat/0.txt": "bad", "dog/2.txt": "a dog\nhund", "cat/1.txt": "猫 🐈"})
    write(folder, {"cat/2.txt": "a cat", "dog/1.txt": "another dog"})
    manifest = prepared(**FOLDER, skip_bad=True, validation_fraction=0.5)
    lines = (root / "prepared/captions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [["猫 🐈"], ["a cat"], ["another dog"], ["a dog", "hund"]]
    sha256 = hashlib.sha256((root / "prepared/captions.jsonl").read_bytes()).hexdigest()
    assert manifest.captions_sha256 == sha256
    data = PreparedData.open(root / "prepared")
    for name in ("train", "validation"):
        split = data.split(name)
        assert split.captions == [tuple(json.loads(lines[row])) for row in split_rows(root, name)]
        assert [("dog" in text[0] or "hund" in text[0]) for text in split.captions] == split.labels.tolist()


def split_rows(root: Path, name: str) -> list[int]:
    return np.load(root / f"prepared/{name}.npy").tolist()


def test_data_without_captions_have_no_file_of_them(root: Path, prepared: Callable, photos: Callable):
    photos(dict.fromkeys(IMAGES, ("RGB", (6, 6))))
    assert prepared(**FOLDER).captions_sha256 is None
    assert not (root / "prepared/captions.jsonl").exists()
    assert "captions" not in (root / "prepared/manifest.json").read_text()
    assert PreparedData.open(root / "prepared").split("train").captions is None


@pytest.mark.parametrize("fault", ["missing", "truncated", "another"])
def test_damaged_captions_are_found_when_they_are_read(root: Path, prepared: Callable, photos: Callable, fault: str):
    folder = photos(dict.fromkeys(IMAGES, ("RGB", (6, 6))))
    write(folder, {"metadata.jsonl": as_jsonl({name: list(text) for name, text in TEXTS.items()})})
    prepared(**FOLDER)
    file = root / "prepared/captions.jsonl"
    whole = file.read_bytes()
    if fault == "missing":
        file.unlink()
    else:
        file.write_bytes(whole[:-5] if fault == "truncated" else whole.replace(b"cat", b"cow"))
    split = PreparedData.open(root / "prepared").split("train")  # does not read them
    with pytest.raises(UserError, match=r"captions\.jsonl: .*run `ddpm prepare`"):
        _ = split.captions


def test_credit_for_a_users_own_images(root: Path, prepared: Callable, photos: Callable):
    photos(dict.fromkeys(IMAGES, ("RGB", (6, 6))))
    assert prepared(**FOLDER).attribution is None
    assert prepared(**FOLDER, attribution="Photos by Ada, CC BY 4.0").attribution == "Photos by Ada, CC BY 4.0"


@pytest.mark.parametrize("text", ["", "two\nlines", "x" * 501])
def test_credit_is_one_line(params: Callable, text: str):
    with pytest.raises(ValueError, match="attribution"):
        params(attribution=text)
