from pathlib import Path

import pytest

from ddpm.files import atomic_directory, atomic_file, read_json, write_json


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
