"""`ddpm fetch` and the version that data.dvc records, with the real DVC where there is one to ask."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sklearn
import yaml

from ddpm.config.model import VariantConfig
from ddpm.config.params import Params
from ddpm.data.folder import fingerprint
from ddpm.errors import UserError
from ddpm.stages.fetch import fetch
from ddpm.stages.prepare import prepare

REPOSITORY = Path(__file__).parents[2]
DVC = Path(sys.executable).parent / "dvc"
PHOTOS = {
    "cat/1.png": ("L", (4, 4)),
    "cat/2.png": ("L", (4, 4)),
    "dog/1.png": ("L", (4, 4)),
    "dog/2.png": ("L", (4, 4)),
}


def state(root: Path) -> dict[Path, tuple[bytes, int]]:
    """Every file of the project, and that it is the same file on the disk."""
    return {path: (path.read_bytes(), path.stat().st_ino) for path in root.rglob("*") if path.is_file()}


def dvc(root: Path, *arguments: str) -> str:
    done = subprocess.run([DVC, *arguments], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder_params(params: Callable[..., Params]) -> Params:
    return params(source="folder", path="../photos")


def test_digits_are_the_bytes_of_the_installed_package(
    root: Path, params: Callable, capsys: pytest.CaptureFixture
) -> None:
    fetch(params(), root=root)
    published = Path(sklearn.__file__).parent / "datasets/data/digits.csv.gz"
    assert (root / "data/digits.csv.gz").read_bytes() == published.read_bytes()
    assert capsys.readouterr().out.count("\n") == 1


def test_the_repository_records_the_digits(root: Path, params: Callable) -> None:
    """The committed data.dvc is of the bytes that the locked scikit-learn has."""
    shutil.copy(REPOSITORY / "data.dvc", root)
    recorded = (root / "data.dvc").read_bytes()
    fetch(params(), root=root)
    assert (root / "data.dvc").read_bytes() == recorded


def test_the_receipt_says_what_there_is(root: Path, params: Callable) -> None:
    fetch(params(name="handwriting"), root=root)
    receipt = json.loads((root / "fetched.json").read_text())
    assert receipt == {"source": "digits", "name": "handwriting", **fingerprint(root / "data").model_dump()}


def test_twice_changes_nothing(root: Path, params: Callable) -> None:
    fetch(params(), root=root)
    before = state(root / "data")
    fetch(params(), root=root)
    assert state(root / "data") == before


def test_another_version_upstream_needs_accept(root: Path, params: Callable) -> None:
    fetch(params(), root=root)
    found = fingerprint(root / "data").md5
    record = yaml.safe_load((root / "data.dvc").read_text())
    record["outs"][0]["md5"] = old = f"{'0' * 32}.dir"
    (root / "data.dvc").write_text(yaml.safe_dump(record))
    before = state(root)
    with pytest.raises(UserError, match="--accept") as error:
        fetch(params(), root=root)
    assert found in str(error.value)
    assert old in str(error.value)
    assert state(root) == before
    fetch(params(), root=root, accept=True)
    assert yaml.safe_load((root / "data.dvc").read_text())["outs"][0]["md5"] == found


def test_damaged_data_are_restored_and_what_was_there_is_kept(root: Path, params: Callable) -> None:
    fetch(params(), root=root)
    whole = (root / "data/digits.csv.gz").read_bytes()
    (root / "data/digits.csv.gz").write_bytes(whole[:100])
    (root / "data/mine.png").write_bytes(b"my only copy")
    fetch(params(), root=root)
    assert [file.name for file in (root / "data").iterdir()] == ["digits.csv.gz"]
    assert (root / "data/digits.csv.gz").read_bytes() == whole
    (kept,) = (root / ".ddpm/replaced").iterdir()
    assert (kept / "mine.png").read_bytes() == b"my only copy"


def test_what_programs_leave_behind_is_no_new_version(
    root: Path, folder_params: Params, photos: Callable, capsys: pytest.CaptureFixture
) -> None:
    folder = photos(PHOTOS)
    fetch(folder_params, root=root)
    for name in (".DS_Store", "cat/Thumbs.db", "dog/1.png~"):
        (folder / name).write_bytes(b"x")
        (root / "data" / name).write_bytes(b"x")
    before = state(root)
    capsys.readouterr()
    fetch(folder_params, root=root)
    prepare(folder_params, root=root)
    assert "as data.dvc records" in capsys.readouterr().out
    assert {path: found for path, found in state(root).items() if path in before and path.name != "fetched.json"} == {
        path: found for path, found in before.items() if path.name != "fetched.json"
    }
    assert not (root / ".ddpm/replaced").exists()


def test_the_latest_replaced_version_is_kept_and_no_other(
    root: Path, params: Callable, capsys: pytest.CaptureFixture
) -> None:
    fetch(params(), root=root)
    for content in ("one", "two", "two"):
        (root / "data/mine").write_text(content)
        fetch(params(), root=root)
    (kept,) = (root / ".ddpm/replaced").iterdir()
    assert (kept / "mine").read_text() == "two"
    said = capsys.readouterr().out
    assert f"was of no recorded version: added mine; it was moved to {kept.relative_to(root)}, 2 files, " in said
    assert "was removed: the latest one is kept" in said


def test_a_linked_data_folder_stays_a_link(root: Path, params: Callable) -> None:
    (root.parent / "disk").mkdir()
    (root.parent / "disk/mine").write_text("my only copy")
    (root / "data").symlink_to("../disk")
    fetch(params(), root=root)
    assert (root / "data").is_symlink()
    assert (root.parent / "disk/digits.csv.gz").is_file()
    (kept,) = (root / ".ddpm/replaced").iterdir()
    assert (kept / "mine").read_text() == "my only copy"


def test_a_folder_is_copied_without_hidden_files(root: Path, folder_params: Params, photos: Callable) -> None:
    folder = photos(PHOTOS)
    (folder / ".DS_Store").write_bytes(b"x")
    fetch(folder_params, root=root)
    assert fingerprint(root / "data") == fingerprint(folder, hidden=False)
    assert yaml.safe_load((root / "data.dvc").read_text())["meta"] == {"source": "folder", "path": "../photos"}


def test_a_changed_folder_needs_accept(root: Path, folder_params: Params, photos: Callable) -> None:
    folder = photos(PHOTOS)
    fetch(folder_params, root=root)
    photos({"dog/3.png": ("L", (4, 4))})
    before = state(root)
    (folder / "dog/1.png").unlink()
    (folder / "cat/1.png").write_bytes(b"other")
    with pytest.raises(
        UserError, match=r"photos has changed.*: added dog/3\.png; removed dog/1\.png; changed cat/1\.png; .*--accept"
    ):
        fetch(folder_params, root=root)
    assert state(root) == before
    fetch(folder_params, root=root, accept=True)
    assert (root / "data/dog/3.png").is_file()
    fetch(folder_params, root=root)


def test_a_folder_that_went_away_is_not_needed(root: Path, folder_params: Params, photos: Callable) -> None:
    folder = photos(PHOTOS)
    fetch(folder_params, root=root)
    shutil.rmtree(folder)
    fetch(folder_params, root=root)
    shutil.rmtree(root / "data")
    with pytest.raises(UserError, match=r"data\.path: .*photos: no such folder"):
        fetch(folder_params, root=root)


def test_another_source_is_a_new_data_set(
    root: Path, params: Callable, folder_params: Params, photos: Callable, capsys: pytest.CaptureFixture
) -> None:
    fetch(params(), root=root)
    photos(PHOTOS)
    capsys.readouterr()
    fetch(folder_params, root=root)
    assert "a new version, recorded in data.dvc" in capsys.readouterr().out
    assert (root / "data/cat/1.png").is_file()
    assert not (root / "data/digits.csv.gz").exists()
    assert not (root / ".ddpm/replaced").exists()  # what was there is of a recorded version


@pytest.mark.parametrize("path", [".", "data", "data/cats", ".."])
def test_the_folder_must_not_be_data_itself(root: Path, params: Callable, path: str) -> None:
    with pytest.raises(UserError, match=r"data\.path: .* lie in one another"):
        fetch(params(source="folder", path=path), root=root)


@pytest.mark.parametrize("hidden", [False, True])
def test_an_empty_folder(root: Path, folder_params: Params, hidden: bool) -> None:
    (root.parent / "photos/cats").mkdir(parents=True)
    if hidden:
        (root.parent / "photos/.hidden.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"photos: an empty folder"):
        fetch(folder_params, root=root)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("text", ["outs: []", "- 1", "\tx", "outs:\n- md5: 1\n  path: data\n", "\x00"])
def test_a_damaged_record(root: Path, params: Callable, text: str) -> None:
    (root / "data.dvc").write_text(text)
    with pytest.raises(UserError, match=r"data\.dvc: not a record of one directory"):
        fetch(params(), root=root)


def test_inside_a_pipeline_with_a_remote(root: Path, photos: Callable) -> None:
    """As the DVC stage: recorded, pushed, and restored from the remote on a machine without the folder."""
    sections = ", ".join(f"{name}: {{}}" for name in VariantConfig.model_fields)
    others = "seed: 0\nextractor: {}\nevaluation: {}\nexport: {}\n"
    data = "data: {source: folder, path: ../photos}\n"
    (root / "params.yaml").write_text(f"{others}{data}models: {{ddpm: {{{sections}}}}}\n")
    (root / "stage.py").write_text(
        "from ddpm.config.params import load_params\nfrom ddpm.stages.fetch import fetch\nfetch(load_params())\n"
    )
    stage = {"cmd": f"{sys.executable} stage.py", "always_changed": True, "outs": ["fetched.json"]}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"fetch": stage}}))
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    dvc(root, "init", "-q")
    shutil.copy(REPOSITORY / ".dvc/config", root / ".dvc/config")
    dvc(root, "remote", "add", "-d", "store", str(root.parent / "remote"))
    folder = photos(PHOTOS)

    assert "a new version, recorded in data.dvc" in dvc(root, "repro")
    record, lock, version = [(root / name).read_bytes() for name in ("data.dvc", "dvc.lock", "fetched.json")]
    assert "pushed" in dvc(root, "push")

    shutil.rmtree(root / "data")
    shutil.rmtree(root / ".dvc/cache")
    (root / "fetched.json").unlink()
    shutil.rmtree(folder)
    assert "as data.dvc records" in dvc(root, "repro")
    assert (root / "data/dog/2.png").is_file()
    assert [(root / name).read_bytes() for name in ("data.dvc", "dvc.lock", "fetched.json")] == [record, lock, version]
    assert "up to date" in dvc(root, "status", "data.dvc")
