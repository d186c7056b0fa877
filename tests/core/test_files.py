import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm import files
from ddpm.files import atomic_directory, atomic_file, meant, read_json, remove_leftovers, write_json


class FaultError(Exception):
    pass


def test_a_file_is_whole_or_as_before(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(FaultError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise FaultError
    assert path.read_text() == "before"
    with atomic_file(path) as temporary:
        temporary.write_text("after")
    assert path.read_text() == "after"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_directory_is_whole_or_as_before(tmp_path: Path):
    path = tmp_path / "d"
    with atomic_directory(path) as temporary:
        (temporary / "old").write_text("1")
    with pytest.raises(FaultError), atomic_directory(path) as temporary:
        (temporary / "new").write_text("2")
        raise FaultError
    assert [p.name for p in path.iterdir()] == ["old"]
    with atomic_directory(path) as temporary:
        (temporary / "new").write_text("2")
    assert [p.name for p in path.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_json_keeps_order_and_refuses_what_json_cannot_say(tmp_path: Path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [0.1, "é"]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8").startswith('{\n  "b": 1')
    assert read_json(tmp_path / "a.json") == {"b": 1, "a": [0.1, "é"]}
    with pytest.raises(ValueError, match="nan"):
        write_json(tmp_path / "a.json", float("nan"))


def old_and_new(path: Path) -> None:
    """Make the old directory and begin to replace it."""
    path.mkdir()
    (path / "old").write_text("1")
    with atomic_directory(path) as temporary:
        (temporary / "new").write_text("2")


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_an_interruption_at_any_rename_leaves_the_old_directory_or_the_new_one(
    tmp_path, monkeypatch, exchanges, fault, nth
):
    renames = 0
    rename = Path.replace

    def replace(self, target):
        nonlocal renames
        renames += 1
        if renames == nth:
            raise fault
        return rename(self, target)

    def exchange(one, other):
        nonlocal renames
        renames += 1
        if renames == nth:
            raise fault
        return original(one, other) if exchanges else False

    original = files.exchange
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(files, "exchange", exchange)
    path = tmp_path / "d"
    try:
        old_and_new(path)
    except fault:
        assert [p.name for p in path.iterdir()] == ["old"]
    else:
        assert [p.name for p in path.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


KILLED_BETWEEN_TWO_RENAMES = """
import os, signal
from pathlib import Path
from ddpm import files

def replace(self, target, rename=Path.replace):
    rename(self, target)
    if self.name == "d":  # the old directory has just left its place
        os.kill(os.getpid(), signal.SIGKILL)

Path.replace = replace
files.exchange = lambda one, other: False
with files.atomic_directory(Path("d")) as temporary:
    (temporary / "new").write_text("2")
"""


@pytest.mark.parametrize("then", ["clean-up", "writing"])
def test_after_a_kill_between_two_renames_the_old_directory_is_put_back(tmp_path, then):
    path = tmp_path / "d"
    path.mkdir()
    (path / "old").write_text("1")
    killed = subprocess.run([sys.executable, "-c", KILLED_BETWEEN_TWO_RENAMES], cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    assert not path.exists()
    if then == "clean-up":
        remove_leftovers(tmp_path, "d")
    else:
        with pytest.raises(FaultError), atomic_directory(path):
            raise FaultError
    assert [p.name for p in path.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_symbolic_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    disk = tmp_path / "disk"
    (disk / "d").mkdir(parents=True)
    (disk / "f").write_text("before")
    for name in ("d", "f"):
        (tmp_path / name).symlink_to(disk / name)
    with atomic_directory(tmp_path / "d") as temporary:
        (temporary / "new").write_text("2")
    with atomic_file(tmp_path / "f") as temporary:
        temporary.write_text("after")
    assert (tmp_path / "d").is_symlink()
    assert (tmp_path / "f").is_symlink()
    assert [p.name for p in (disk / "d").iterdir()] == ["new"]
    assert (disk / "f").read_text() == "after"


@pytest.mark.parametrize(
    ("umask", "of_file", "of_directory"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_permissions_are_what_the_umask_leaves(tmp_path, umask, of_file, of_directory):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {})
        with atomic_directory(tmp_path / "d") as temporary:
            (temporary / "inside").write_text("")
            (temporary / "private").touch(0o600)  # as safetensors makes its files
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == of_file
    assert (tmp_path / "d").stat().st_mode & 0o777 == of_directory
    for name in ("inside", "private"):
        assert (tmp_path / "d" / name).stat().st_mode & 0o777 == of_file


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("a/.data.b964660b.tmp", "a/data"),
        (".x.png.b13c203a.tmp.png", "x.png"),
        (".data.b964660b.old.tmp", "data"),
        ("a/.hidden", "a/.hidden"),
        ("/", "/"),
    ],
)
def test_a_temporary_is_called_what_it_becomes(path, named):
    assert meant(path) == named
