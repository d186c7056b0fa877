"""Folders: what is listed, which version DVC says they are, which classes they hold."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ddpm.data.folder import copy, differences, files_in, fingerprint, read
from ddpm.errors import UserError

DVC = Path(sys.executable).parent / "dvc"


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    return folder


def test_listing_is_sorted_and_leaves_hidden_files_out(tmp_path: Path) -> None:
    fill(tmp_path, "b/2.png", "b/.hidden", "a.png", ".git/config", "B/1.png", "b/10.png")
    assert files_in(tmp_path) == ["B/1.png", "a.png", "b/10.png", "b/2.png"]
    assert len(files_in(tmp_path, hidden=True)) == 6


LEFT_BEHIND = (
    ".DS_Store",
    "b/.DS_Store",
    "._a.png",
    "__MACOSX/a.png",
    "Thumbs.db",
    "b/thumbs.db",
    "desktop.ini",
    "Desktop.ini",
    ".directory",
    "a.png~",
    ".a.png.swp",
    ".a.png.swo",
    "#a.png#",
    ".#a.png",
)


def test_what_programs_leave_behind_is_not_part_of_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b/2.png", *LEFT_BEHIND)
    assert files_in(tmp_path, hidden=True) == files_in(tmp_path) == ["a.png", "b/2.png"]


def test_links_are_followed(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "cat.png")
    photos = fill(tmp_path / "photos", "dog/1.png")
    (photos / "cat").symlink_to(tmp_path / "elsewhere")
    copy(photos, tmp_path / "copy")
    assert files_in(tmp_path / "copy") == ["cat/cat.png", "dog/1.png"]
    assert not (tmp_path / "copy/cat").is_symlink()


def test_a_link_to_a_parent_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png")
    (tmp_path / "a/up").symlink_to(tmp_path)
    with pytest.raises(UserError, match="a/up: a link to a folder that it lies in"):
        files_in(tmp_path)


def test_a_broken_link_and_a_pipe_are_named(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"gone\.png: neither a file"):
        files_in(tmp_path)
    (tmp_path / "gone.png").unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: neither a file"):
        files_in(tmp_path)


@pytest.mark.parametrize("name", ["latin-1-\udcff.png", "two\nlines.png", "caf\udce9/1.png"])
def test_a_name_that_cannot_be_recorded(tmp_path: Path, name: str) -> None:
    fill(tmp_path, name)
    with pytest.raises(UserError, match="rename it") as error:
        files_in(tmp_path)
    assert str(error.value).isprintable()


def test_fingerprint_is_what_dvc_add_records(tmp_path: Path) -> None:
    """With this repository's .dvcignore, which leaves out the same files."""
    shutil.copy(Path(__file__).parents[2] / ".dvcignore", tmp_path)
    fill(tmp_path / "data", *LEFT_BEHIND)
    fill(tmp_path / "data", "a/b.png", "a.b", "a b", "é/ü.png", "Z", ".hidden", 'quo"te', "a/c/d")
    (tmp_path / "data/empty").mkdir()
    subprocess.run([DVC, "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    subprocess.run([DVC, "config", "core.analytics", "false"], cwd=tmp_path, check=True)
    subprocess.run([DVC, "add", "-q", "data"], cwd=tmp_path, check=True)
    (recorded,) = yaml.safe_load((tmp_path / "data.dvc").read_text())["outs"]
    found = fingerprint(tmp_path / "data")
    assert {"hash": "md5", "path": "data", **found.model_dump()} == recorded


def test_fingerprint_tells_names_and_content_apart(tmp_path: Path) -> None:
    versions = {fingerprint(fill(tmp_path / "1", "a")).md5, fingerprint(fill(tmp_path / "2", "b")).md5}
    (tmp_path / "2/b").write_bytes(b"a")
    versions.add(fingerprint(tmp_path / "2").md5)
    assert len(versions) == 3


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ({"a": "1"}, {"a": "1", "b": "2"}, "added b"),
        ({"a": "1", "b": "2"}, {"b": "2"}, "removed a"),
        ({"a": "1", "b": "2"}, {"b": "3", "c": "1"}, "added c; removed a; changed b"),
        ({}, dict.fromkeys("abcde", "1"), "added a, b, c and 2 more"),
    ],
)
def test_differences_name_files(before: dict, after: dict, text: str) -> None:
    assert differences(before, after) == text


def test_class_folders_become_labels(tmp_path: Path) -> None:
    raw = read(fill(tmp_path, "dog/1.png", "cat/2.png", "cat/1.png", ".git/x"))
    assert raw.classes == ("cat", "dog")
    assert raw.count == 3
    assert [(sample.name, sample.label) for sample in raw.samples] == [
        ("cat/1.png", 0),
        ("cat/2.png", 0),
        ("dog/1.png", 1),
    ]


@pytest.mark.parametrize("names", [("2.png", "1.png"), ("all/2.png", "all/1.png")], ids=["flat", "one class folder"])
def test_no_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    raw = read(fill(tmp_path, *names))
    assert raw.classes is None
    assert [(Path(sample.name).name, sample.label) for sample in raw.samples] == [("1.png", None), ("2.png", None)]


def test_labels_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels missing: .*/stray\.png lies beside the class folders cat, dog"):
        read(fill(tmp_path, "cat/1.png", "dog/1.png", "stray.png"))


def test_deeper_folders_are_refused_unless_params_say_what_they_are(tmp_path: Path) -> None:
    fill(tmp_path, "dog/2021/1.png", "cat/a/b/2.png", "cat/3.png")
    with pytest.raises(UserError, match=r"cat/a/b/2\.png: a folder in a class folder; .*`data\.subfolders`"):
        read(tmp_path)
    raw = read(tmp_path, subfolders="nested-classes")
    assert raw.classes == ("cat", "dog")
    assert [(sample.name, sample.label) for sample in raw.samples] == [
        ("cat/3.png", 0),
        ("cat/a/b/2.png", 0),
        ("dog/2021/1.png", 1),
    ]


def test_folders_can_be_ignored(tmp_path: Path) -> None:
    raw = read(fill(tmp_path, "dog/2021/1.png", "cat/2.png", "stray.png"), subfolders="ignored")
    assert raw.classes is None
    assert [(sample.name, sample.label) for sample in raw.samples] == [
        ("cat/2.png", None),
        ("dog/2021/1.png", None),
        ("stray.png", None),
    ]
