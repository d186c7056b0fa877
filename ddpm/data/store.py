"""prepared/: the data as one memory-mapped array, which row is in which split, and a manifest.

Reading needs numpy and pydantic alone, and no more memory than the batches asked for.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from ddpm.codecs.scale import Codec, KindName, codec_for
from ddpm.errors import UserError

LABELS, CAPTIONS, HINTS, MANIFEST = "labels.npy", "captions.jsonl", "hints.npy", "manifest.json"

SplitName = Literal["train", "validation"]
SPLITS: tuple[SplitName, ...] = ("train", "validation")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitRecord(_Model):
    """One split: how many images, and the SHA-256 of their bytes in order, which identifies a reference set."""

    count: int
    sha256: str


class Counts(_Model):
    """How many images there are, of each split and, of both together, of each class."""

    train: int
    validation: int
    classes: dict[str, int] | None


class Rules(_Model):
    """What made the images what they are."""

    image_size: int | None
    channels: int | None
    resize: str
    validation_fraction: float | None
    """None: the source's own published split."""
    levels: int | tuple[float, float] | None = None
    subfolders: str = "classes"
    captions: str = "complete"


class LeftOut(_Model):
    """A file that is not in the data set, and why."""

    file: str
    reason: str


class Manifest(_Model):
    """manifest.json: everything about a prepared data set but its pixels."""

    name: str
    source: str
    shape: tuple[int, ...]
    """Of every datum: [H, W, C] of images, [C] of points, [C, L] of sequences."""
    counts: Counts
    classes: tuple[str, ...] | None
    """Names, in the order of the label numbers; None without labels."""
    mean: tuple[float, ...]
    """Of the training split, a channel each; of images for levels in [0, 1]."""
    std: tuple[float, ...]
    images_sha256: str
    labels_sha256: str | None
    splits: dict[SplitName, SplitRecord]
    seed: int
    rules: Rules
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...] = ()
    """What seems wrong with the values of the images."""
    kind: KindName = "images"
    low: tuple[float, ...] | None = None
    """Of the training split, a channel each; None for images, whose range is known."""
    high: tuple[float, ...] | None = None
    captions_sha256: str | None = None
    """None without captions."""
    hints_sha256: str | None = None
    """None without hints beside the images."""
    hint_shape: tuple[int, ...] | None = None
    """Of each of them, [H, W, C]."""
    combinations: tuple[int, ...] = ()
    """Rows of the validation split that combine what the training split shows one by one, as a gesture and a skin
    tone."""
    attribution: str | None = None
    """The credit that goes with the images, and with what is drawn by a model of them."""

    @property
    def codec(self) -> Codec:
        return codec_for(self.kind, self.shape, self.low, self.high)


def array_name(kind: KindName) -> str:
    """The file that holds the data: `images.npy`, and likewise."""
    return f"{kind}.npy"


class RowWriter:
    """Writes a .npy file row by row: the number of rows enters its header at the end."""

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self._stream = path.open("wb")
        self._row_shape, self._dtype, self._rows = row_shape, np.dtype(dtype), 0
        self._write_header()

    def _write_header(self) -> None:
        # numpy pads the header so that its length is the same for any number of rows.
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._rows, *self._row_shape),
        }
        self._stream.seek(0)
        np.lib.format.write_array_header_1_0(self._stream, header)

    def append(self, row: np.ndarray) -> None:
        """Add one row, of exactly the shape and type announced."""
        if row.shape != self._row_shape or row.dtype != self._dtype:
            raise ValueError(f"a row of {row.dtype} {row.shape} in a file of {self._dtype} {self._row_shape}")
        self._stream.write(row.tobytes())
        self._rows += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        with self._stream:
            if kind is None:
                self._write_header()


def read_chunks(path: Path, size: int) -> Iterator[np.ndarray]:
    """The rows of a .npy file in order, at most `size` together, by plain reads.

    Pages of a map read from end to end would all count as this process's memory.
    """
    with path.open("rb") as stream:
        np.lib.format.read_magic(stream)
        (rows, *row_shape), _, dtype = np.lib.format.read_array_header_1_0(stream)
        for start in range(0, rows, size):
            count = min(size, rows - start)
            yield np.fromfile(stream, dtype, count * int(np.prod(row_shape))).reshape(count, *row_shape)


class Captions:
    """The captions of all data, read when one is asked for the first time."""

    def __init__(self, path: Path, count: int, sha256: str) -> None:
        self._path, self._count, self._sha256 = path, count, sha256

    @cached_property
    def all(self) -> list[tuple[str, ...]]:
        """Of each datum, one or more.

        Raises:
            UserError: the file is missing or damaged, or of other data.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{self._path}: no such file; run `ddpm prepare`") from None
        if hashlib.sha256(content).hexdigest() != self._sha256:
            raise _damaged(self._path, "not the file of the manifest")
        found = [tuple(json.loads(line)) for line in content.splitlines()]
        if len(found) != self._count:
            raise _damaged(self._path, f"{len(found)} lines and not {self._count}")
        return found


class Rows:
    """Some rows of an array on the disk, by their position; no more of them is read than is asked for."""

    def __init__(self, array: np.ndarray, index: np.ndarray) -> None:
        self._array, self._index = array, index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        return self._array[self._index[positions]]


class Split:
    """The data of one split, by their position in it. Of images, [H, W, C] and uint8; else as the manifest says."""

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None,
        index: np.ndarray,
        sha256: str,
        captions: Captions | None = None,
        hints: np.ndarray | None = None,
    ) -> None:
        self._images, self._captions = images, captions
        self.index = index
        """Which row of the data each is, int64 [n]."""
        self.labels = None if labels is None else labels[index]
        """int64 [n], or None."""
        self.hints = None if hints is None else Rows(hints, index)
        """uint8 [n, H, W, C], or None."""
        self.embeddings: Rows | None = None
        """float32 [n, D], or None."""
        self.sha256 = sha256
        """Of the images' bytes in order."""
        self.pictures: Split | None = None
        """Of latents, the images that they are of."""

    @cached_property
    def captions(self) -> list[tuple[str, ...]] | None:
        """Of each datum, one or more; None without captions. Read from the disk when first asked for.

        Raises:
            UserError: as `Captions.all`.
        """
        return None if self._captions is None else [self._captions.all[row] for row in self.index]

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Gather images from the memory map.

        Args:
            indices: positions in this split, integers [n].
            out: uint8 [n, H, W, C] to fill, or None for a new array.

        Returns:
            uint8 [n, H, W, C].

        Raises:
            IndexError: a position that is not in this split.
        """
        # The look-up has checked the bounds, so numpy need not, which would make it buffer `out`.
        return np.take(self._images, self.index[indices], axis=0, out=out, mode="clip")

    def of(self, array: np.ndarray) -> Split:
        """The same data, as the rows of another array, such as their latents."""
        other = copy.copy(self)
        other._images, other.pictures = array, self
        return other

    def with_embeddings(self, embeddings: np.ndarray) -> Split:
        """The same data with the embeddings of all, float32 [N, D] in the order of prepared/."""
        other = copy.copy(self)
        other.embeddings = Rows(embeddings, self.index)
        return other

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """All images in order, uint8 [≤ size, H, W, C] at a time."""
        for start in range(0, len(self), size):
            yield self.rows(np.arange(start, min(start + size, len(self))))


class PreparedData:
    """An open prepared/ directory."""

    def __init__(self, manifest: Manifest, splits: dict[SplitName, Split]) -> None:
        self.manifest = manifest
        self.codec = manifest.codec
        self._splits = splits

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map the arrays, and check that they are as long as the manifest says.

        Raises:
            UserError: a file is missing, damaged, or of another data set.
        """
        manifest = _read_manifest(path / MANIFEST)
        total = manifest.counts.train + manifest.counts.validation
        try:
            kind = manifest.codec
        except ValueError as error:
            raise _damaged(path / MANIFEST, str(error)) from None
        array = path / array_name(manifest.kind)
        images = _load(array, kind.dtype, (total, *manifest.shape), mmap_mode="r")
        labels = _load(path / LABELS, np.int64, (total,)) if manifest.classes else None
        texts = manifest.captions_sha256
        captions = None if texts is None else Captions(path / CAPTIONS, total, texts)
        hints = None
        if manifest.hint_shape is not None:
            hints = _load(path / HINTS, np.uint8, (total, *manifest.hint_shape), mmap_mode="r")
        splits = {}
        for name in SPLITS:
            record = manifest.splits[name]
            index = _load(path / f"{name}.npy", np.int64, (record.count,))
            if not ((index >= 0) & (index < total)).all():
                raise _damaged(path / f"{name}.npy", f"rows beyond the {total} there are")
            splits[name] = Split(images, labels, index, record.sha256, captions, hints)
        return cls(manifest, splits)

    def reference(self, wanted: Literal["train", "all", "published"]) -> tuple[SplitName, ...]:
        """The splits that `evaluation.reference` stands for. Those published for training are the training split where
        the source publishes others for validation, else both."""
        if wanted == "published":
            wanted = "train" if self.manifest.rules.validation_fraction is None else "all"
        return SPLITS if wanted == "all" else ("train",)

    @property
    def held_out_captions(self) -> list[tuple[str, ...]]:
        """The captions of pictures that a model should be able to draw though it has not seen them: of the combinations
        held out, or where there are none, of the validation split. Of each picture one or more; empty without captions.
        """
        validation, chosen = self._splits["validation"], set(self.manifest.combinations)
        rows = zip(validation.index.tolist(), validation.captions or (), strict=False)
        return [texts for row, texts in rows if not chosen or row in chosen]

    def split(self, name: SplitName) -> Split:
        """The training or the validation images."""
        return self._splits[name]


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `ddpm prepare`") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(path, f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip()) from None


def _load(path: Path, dtype: np.dtype[Any] | type[np.generic], shape: tuple[int, ...], **options: Any) -> np.ndarray:
    try:
        array = np.load(path, **options)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `ddpm prepare`") from None
    except (ValueError, EOFError, OSError) as error:
        raise _damaged(path, str(error)) from None
    if array.dtype != dtype or array.shape != shape:
        raise _damaged(path, f"{array.dtype} {array.shape} and not {np.dtype(dtype)} {shape}")
    return np.asarray(array)


def _damaged(path: Path, found: str) -> UserError:
    return UserError(f"{path}: damaged ({' '.join(found.split())}); run `ddpm prepare`")
