"""Bad input at the command line: exit code 2, the last line says what is wrong, and nothing is half-written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ddpm.cli import main
from ddpm.config.model import VariantConfig

SQUARE = ("RGB", (6, 6))
PAIR = {"a.png": SQUARE, "b.png": SQUARE}


def ddpm(root: Path, *arguments: str, before: list[str] | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    command = [*(before or []), sys.executable, "-m", "ddpm", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env={**os.environ, **env})


@pytest.fixture
def folder_project(root: Path) -> Callable[..., None]:
    def make(**keys: object) -> None:
        data = {"source": "folder", "path": "../photos", **keys}
        (root / "params.yaml").write_text(
            yaml.safe_dump({"data": data, "models": {"ddpm": {name: {} for name in VariantConfig.model_fields}}})
        )
        (root.parent / "photos").mkdir(exist_ok=True)

    return make


@pytest.mark.parametrize(
    ("files", "keys", "stage", "complaint"),
    [
        ({}, {}, "fetch", "data.path: ../photos: an empty folder"),
        (PAIR, {"path": "../nowhere"}, "fetch", "data.path: ../nowhere: no such folder"),
        (PAIR, {"max_pixel": 3}, "fetch", "params.yaml: unknown key `data.max_pixel`"),
        ({"a.png": SQUARE}, {}, "prepare", "only one image"),
        ({**PAIR, "c.txt": None}, {}, "prepare", "data/c.txt: not an image"),
        ({**PAIR, "c.png": ("RGB", (6, 9))}, {}, "prepare", "mixed sizes: data/a.png is 6×6, data/c.png is 6×9"),
        ({**PAIR, "c.png": ("L", (6, 6))}, {}, "prepare", "mixed modes: data/a.png is in colour, data/c.png is grey"),
        (PAIR, {"max_pixels": 35}, "prepare", "data/a.png: decodes to more than data.max_pixels (35)"),
        ({**PAIR, "cat/c.png": SQUARE}, {}, "prepare", "labels missing: data/a.png"),
        ({"cat/a.png": SQUARE, "dog/a.png": SQUARE}, {}, "prepare", "class 'cat' has 1 readable image;"),
        ({"cat/a.png": SQUARE, "dog/.hidden": None}, {}, "fetch", "photos/dog: a class folder without images; put"),
        (
            {"cat/big/a.png": SQUARE, "dog/.hidden": None},
            {"subfolders": "nested-classes"},
            "fetch",
            "photos/dog: a class folder without images; put",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_line_and_exit_code_2(
    files: dict,
    keys: dict,
    stage: str,
    complaint: str,
    root: Path,
    folder_project: Callable,
    photos: Callable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder_project(**keys)
    photos({name: what for name, what in files.items() if what})
    for name, what in files.items():
        if what is None:
            path = root.parent / "photos" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("hello")
    monkeypatch.chdir(root)
    if stage == "prepare":
        assert main(["fetch"]) == 0
    assert main([stage]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"ddpm {stage}: ")
    assert complaint in last
    assert not list(root.glob("*prepared*"))
    assert not list(root.glob(".data.*"))


def test_names_of_files_are_utf_8_whatever_the_locale(root: Path, folder_project: Callable, photos: Callable) -> None:
    folder_project()
    photos({"é.png": SQUARE, "ü.png": SQUARE})
    assert ddpm(root, "fetch").returncode == 0
    record = (root / "data.dvc").read_bytes()
    again = ddpm(root, "fetch", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (again.returncode, again.stderr) == (0, "")
    assert "as data.dvc records" in again.stdout
    assert (root / "data.dvc").read_bytes() == record


def test_why_dvc_does_not_take_the_data_is_said(root: Path, folder_project: Callable, photos: Callable) -> None:
    folder_project()
    photos(PAIR)
    (root / ".dvc").mkdir()
    fetched = ddpm(root, "fetch", GIT_CEILING_DIRECTORIES=str(root.parent))
    assert fetched.returncode == 0
    assert "`dvc push` will not send data/, which DVC could not add: " in fetched.stderr
    assert "is not a git repository" in fetched.stderr


def test_a_folder_that_cannot_be_written_to(root: Path, folder_project: Callable, photos: Callable) -> None:
    folder_project()
    photos(PAIR)
    before = []
    if os.geteuid() == 0:  # who may write everywhere, unless it gives that up
        if shutil.which("setpriv") is None:
            pytest.skip("there is no setpriv")
        before = ["setpriv", "--bounding-set=-dac_override"]
    root.chmod(0o555)
    try:
        refused = ddpm(root, "fetch", before=before)
    finally:
        root.chmod(0o755)
    assert refused.returncode == 2
    assert refused.stderr == "ddpm fetch: data: Permission denied\n"


def test_accept_records_the_folder_as_it_is_now(root: Path, folder_project: Callable, photos: Callable) -> None:
    folder_project()
    photos(PAIR)
    assert ddpm(root, "fetch").returncode == 0
    photos({"c.png": SQUARE})
    refused = ddpm(root, "fetch")
    assert refused.returncode == 2
    assert "--accept" in refused.stderr
    assert ddpm(root, "fetch", "--accept").returncode == 0
    assert ddpm(root, "prepare").returncode == 0
    assert (root / "prepared/manifest.json").is_file()
