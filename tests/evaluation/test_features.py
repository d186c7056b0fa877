"""Features of real images, computed once and kept."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.data.store import Split
from ddpm.evaluation.extractor import Features
from ddpm.evaluation.features import BATCH, cached_features, extract


class MeanColour:
    """The smallest extractor there is; it counts the images it sees."""

    def __init__(self, name: str = "a") -> None:
        self.identity = {"kind": "mean-colour", "sha256": name}
        self.seen = 0

    def __call__(self, pixels: np.ndarray) -> Features:
        self.seen += len(pixels)
        means = torch.from_numpy(pixels).float().mean((1, 2))
        return Features(means, means)


def split(count: int = 250, sha256: str = "b") -> Split:
    images = np.random.RandomState(0).randint(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    return Split(images, None, np.arange(count), sha256)


def test_features_are_computed_once(tmp_path: Path):
    first, second = MeanColour(), MeanColour()
    made = cached_features(first, split(), tmp_path)
    found = cached_features(second, split(), tmp_path)
    assert (first.seen, second.seen) == (250, 0)
    assert torch.equal(made.features, found.features)
    assert torch.equal(made.logits, found.logits)


@pytest.mark.parametrize(("name", "sha256"), [("other", "b"), ("a", "other")])
def test_another_extractor_or_split_has_its_own(tmp_path: Path, name: str, sha256: str):
    cached_features(MeanColour(), split(), tmp_path)
    extractor = MeanColour(name)
    cached_features(extractor, split(sha256=sha256), tmp_path)
    assert extractor.seen == 250


def flip(data: bytes, where: int) -> bytes:
    return data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: flip(data, 1000),
        lambda data: flip(data, len(data) // 2),
        lambda data: b"not an archive",
    ],
)
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: Callable[[bytes], bytes]):
    made = cached_features(MeanColour(), split(), tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    again = MeanColour()
    assert torch.equal(cached_features(again, split(), tmp_path).features, made.features)
    assert again.seen == 250
    assert path.read_bytes() == whole


def test_a_flipped_bit_of_the_archives_directory_is_found_or_does_no_harm(tmp_path: Path):
    """Some make zipfile ask for a password, others for a compression that it does not know."""
    made = cached_features(MeanColour(), split(), tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for bit in range(whole.index(b"PK\1\2") * 8, 8 * len(whole), 7):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        assert torch.equal(cached_features(MeanColour(), split(), tmp_path).features, made.features)


def test_a_batch_does_not_change_features(tmp_path: Path):
    whole = split(2 * BATCH + 7)
    for size in (1, BATCH, 3 * BATCH):
        found = extract(MeanColour(), whole.batches(size), len(whole)).features
        assert torch.equal(found, cached_features(MeanColour(), whole, tmp_path).features)


def test_those_who_write_and_delete_at_once_all_read_whole_features(tmp_path: Path):
    def use(number: int) -> int:
        found = cached_features(MeanColour(), split(), tmp_path)
        if number % 3 == 0:
            for path in tmp_path.glob("[!.]*.npz"):
                path.unlink(missing_ok=True)
        return len(found)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(use, range(200))) == {250}
    assert not [file for file in tmp_path.iterdir() if file.suffix != ".npz"]
