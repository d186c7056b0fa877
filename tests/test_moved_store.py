"""A project that was moved, renamed or copied works on its own store, and leaves that of the original alone."""

import hashlib
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from finished import VARIANT, write_outputs

from ddpm import tracking
from ddpm.stages.sample import sample_to
from ddpm.tracking.database import relocate

URI = "models:/ddpm-dots@champion"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A project with a registered champion."""
    root = tmp_path_factory.mktemp("place") / "proj"
    root.mkdir()
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        os.chdir(root)
        try:
            write_outputs(Path())
            tracking.register(VARIANT)
            tracking.promote(VARIANT)
        finally:
            os.chdir(before)
    return root


@pytest.fixture
def project(original, tmp_path):
    """A copy of it, healed or not, that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "proj", copy_function=shutil.copy2))


def hashes(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def addresses(root: Path) -> list[str]:
    """All addresses of files that the store has."""
    connection = sqlite3.connect(root / "mlflow" / "mlflow.db")
    queries = (
        "SELECT artifact_location FROM experiments",
        "SELECT artifact_uri FROM runs",
        "SELECT artifact_location FROM logged_models",
        "SELECT storage_location FROM model_versions",
    )
    found = [address for query in queries for (address,) in connection.execute(query)]
    connection.close()
    return found


# Nothing that has a meaning in an address, in SQL, in a shell or in make gets in the way.
STRANGE = """a b%20c#d?e'f"g&h;é"""


@pytest.mark.parametrize("name", ["copy", STRANGE])
def test_a_copy_works_on_its_own_store_and_never_on_the_original(original, tmp_path, monkeypatch, name, capfd):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    copy, before = Path(shutil.copytree(original, tmp_path / name)), hashes(original)
    monkeypatch.chdir(copy)
    assert len(sample_to(URI, Path("samples.npz"), count=2)) == 2
    assert f"mlflow.db: moved or copied from {original}; its files are now those beside it" in capfd.readouterr().err
    assert tracking.resolve(URI).is_relative_to(copy)
    write_outputs(copy, fid=10.0, lock="2")
    assert tracking.register(VARIANT).version == 2
    assert tracking.promote(VARIANT).promote
    assert tracking.rollback("ddpm-dots", "blurred").version == 1
    assert {address.startswith((copy.as_uri(), str(copy))) for address in addresses(copy)} == {True}
    assert hashes(original) == before
    assert "moved or copied" not in capfd.readouterr().err


def test_a_move_is_undone_by_moving_back(project, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("elsewhere", "proj"):
        moved = tmp_path / name
        if moved != project:
            project.rename(moved)
            project = moved
        tracking.load_mlflow(moved)
        assert {address.startswith((f"{moved.as_uri()}/", f"{moved}/")) for address in addresses(moved)} == {True}


def test_a_project_reached_through_a_link_is_left_as_it_is(project, tmp_path):
    tracking.load_mlflow(project)
    (tmp_path / "link").symlink_to(project)
    before = addresses(project)
    assert not relocate(tmp_path / "link" / "mlflow" / "mlflow.db", tmp_path / "link")
    assert addresses(project) == before


def test_another_projects_files_in_a_store_that_is_shared_stay_where_they_are(project, tmp_path):
    tracking.load_mlflow(project)
    other = tmp_path / "other" / "mlflow" / "artifacts"
    shutil.move(project / "mlflow" / "artifacts", other)
    connection = sqlite3.connect(project / "mlflow" / "mlflow.db")
    connection.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'ddpm-dots'",
                       ((other / "ddpm-dots").as_uri(),))  # fmt: skip
    connection.commit()
    connection.close()
    assert not relocate(project / "mlflow" / "mlflow.db", project)


def test_what_a_copy_had_written_into_the_original_is_brought_home(project, tmp_path, monkeypatch):
    """As stores were used before: the copy's database names files that are in the original alone."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking.load_mlflow(project)
    copy = Path(shutil.copytree(project, tmp_path / "copy"))
    for model in (copy / "mlflow" / "artifacts" / "ddpm-dots" / "models").iterdir():
        shutil.rmtree(model)
    before = hashes(project)
    monkeypatch.chdir(copy)
    assert (tracking.resolve(URI) / "sampler.json").is_file()
    assert tracking.resolve(URI).is_relative_to(copy)
    assert hashes(project) == before
