"""The prepared store, read back."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm.data.store import PreparedData, RowWriter, read_chunks
from ddpm.errors import UserError


@pytest.fixture
def digits(root: Path, prepared: Callable) -> Path:
    prepared()
    return root / "prepared"


def test_rows_are_gathered_by_position_in_the_split(digits: Path) -> None:
    images, labels = np.load(digits / "images.npy"), np.load(digits / "labels.npy")
    data = PreparedData.open(digits)
    for name in ("train", "validation"):
        split, index = data.split(name), np.load(digits / f"{name}.npy")
        assert len(split) == len(index)
        assert (split.labels == labels[index]).all()
        some = np.random.RandomState(0).randint(0, len(split), 50)
        assert (split.rows(some) == images[index[some]]).all()
        out = np.zeros((50, *data.manifest.shape), np.uint8)
        assert split.rows(some, out) is out
        assert (out == images[index[some]]).all()


def test_batches_are_the_split_in_order(digits: Path) -> None:
    split = PreparedData.open(digits).split("validation")
    batches = list(split.batches(100))
    assert [len(batch) for batch in batches] == [100, 100, 100, 59]
    assert hashlib.sha256(np.concatenate(batches).tobytes()).hexdigest() == split.sha256


def test_a_position_beyond_the_split(digits: Path) -> None:
    split = PreparedData.open(digits).split("validation")
    with pytest.raises(IndexError):
        split.rows(np.array([len(split)]))


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "train.npy", "validation.npy", "manifest.json"])
@pytest.mark.parametrize("fault", ["missing", "truncated", "empty", "another"])
def test_damage_is_named(digits: Path, name: str, fault: str) -> None:
    file = digits / name
    whole = file.read_bytes()
    if fault == "missing":
        file.unlink()
    elif fault == "another":
        np.save(digits / "x.npy", np.arange(3))
        file.write_bytes((digits / "x.npy").read_bytes())
    else:
        file.write_bytes(whole[: len(whole) // 2] if fault == "truncated" else b"")
    with pytest.raises(UserError, match=rf"{name}: .*run `ddpm prepare`") as error:
        PreparedData.open(digits)
    assert "\n" not in str(error.value)


def test_rows_that_do_not_exist(digits: Path) -> None:
    index = np.load(digits / "train.npy")
    index[-1] = 1797
    np.save(digits / "train.npy", index)
    with pytest.raises(UserError, match=r"train\.npy: damaged \(rows beyond the 1797"):
        PreparedData.open(digits)


@given(rows=st.integers(0, 30), shape=st.tuples(st.integers(1, 3), st.integers(1, 3)), chunk=st.integers(1, 40))
def test_a_file_written_by_rows_is_the_one_numpy_writes(
    tmp_path_factory: pytest.TempPathFactory, rows: int, shape: tuple[int, int], chunk: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    array = np.random.RandomState(0).randint(0, 256, (rows, *shape)).astype(np.uint8)
    with RowWriter(folder / "by-rows.npy", shape, np.uint8) as writer:
        for row in array:
            writer.append(row)
    np.save(folder / "at-once.npy", array)
    assert (folder / "by-rows.npy").read_bytes() == (folder / "at-once.npy").read_bytes()
    chunks = list(read_chunks(folder / "by-rows.npy", chunk))
    assert all(len(part) <= chunk for part in chunks)
    assert (np.concatenate([np.empty((0, *shape), np.uint8), *chunks]) == array).all()


def test_a_row_of_another_shape_or_type(tmp_path: Path) -> None:
    with RowWriter(tmp_path / "x.npy", (2, 2), np.uint8) as writer:
        for row in (np.zeros((2, 3), np.uint8), np.zeros((2, 2), np.int64)):
            with pytest.raises(ValueError, match="a row of"):
                writer.append(row)


def test_reading_needs_numpy_and_pydantic_alone(digits: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'PIL', 'yaml', 'sklearn', 'tqdm'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from ddpm.data.store import PreparedData\n"
        "print(len(PreparedData.open(Path(sys.argv[1])).split('train')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(digits)], capture_output=True, text=True)
    assert done.stdout == "1438\n", done.stderr
