"""`ddpm prepare`: data/ → prepared/."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from ddpm.config.data import DataConfig
from ddpm.config.params import Params
from ddpm.data import folder
from ddpm.data.alike import Alike
from ddpm.data.arrays import RawArray
from ddpm.data.images import BadImageError, Levels, RawImages, Sample, pixel_limit, to_array
from ddpm.data.sources import source_of
from ddpm.data.split import grouped_split, stratified_split
from ddpm.data.store import (
    CAPTIONS,
    HINTS,
    LABELS,
    MANIFEST,
    Counts,
    LeftOut,
    Manifest,
    RowWriter,
    Rules,
    SplitName,
    SplitRecord,
    array_name,
    read_chunks,
)
from ddpm.errors import UserError
from ddpm.files import atomic_directory, sha256_of, write_json
from ddpm.layout import PREPARED
from ddpm.stages.fetch import DATA, RECEIPT, Receipt, changes
from ddpm.stages.progress import bar, show

DEFAULT_FRACTION = 0.2  # kept for validation of a source that publishes no split
_CHUNK_BYTES = 1 << 20
IMAGES = array_name("images")


def prepare(params: Params, *, root: Path = Path()) -> Manifest:
    """Turn the raw bytes in data/ into prepared/: uint8 images, labels, captions, a stratified split and a manifest.

    Points and sequences become float32 and have no labels. Data are streamed: the memory needed does not depend on how
    many there are. Equal data and equal params give equal bytes. An older prepared/ stays until the new one is whole.

    Raises:
        UserError: data/ is not what `ddpm fetch` left; a file is no image (unless `data.skip_bad`); images differ in
            size or channels and params.yaml does not say what they should get; there are too few to split.
    """
    config, data = params.data, root / DATA
    _check_fetched(config, root)
    source = source_of(config, root)
    # Without a share of its own to keep, a source's published split is kept, or this share of one that has none.
    published = source.read_split if config.validation_fraction is None else None
    fraction = None if published else config.validation_fraction or DEFAULT_FRACTION
    raw = published(data) if published else source.read(data)
    with atomic_directory(root / PREPARED) as out:
        if isinstance(raw, RawArray):
            return _prepare_array(raw, params, data, out)
        levels = Levels(config.levels)
        written, left_out = _write_images(raw, config, data, out, levels)
        labels = np.array(written.labels, np.int64) if raw.classes else None
        counts = _count(labels, raw.classes, data)
        train, validation, combinations = _split(raw, written, labels, fraction, params.seed, data)
        np.save(out / "train.npy", train)
        np.save(out / "validation.npy", validation)
        if labels is not None:
            np.save(out / LABELS, labels)
        shape, splits, mean, std = _summarise(out / IMAGES, {"train": train, "validation": validation})
        if not any(std):
            raise _constant(data, mean, levels)
        warnings = levels.warnings()
        manifest = Manifest(
            name=config.dataset_name,
            source=config.source,
            shape=shape,
            counts=Counts(train=len(train), validation=len(validation), classes=counts),
            classes=raw.classes,
            mean=mean,
            std=std,
            images_sha256=sha256_of(out / IMAGES),
            labels_sha256=None if labels is None else sha256_of(out / LABELS),
            splits=splits,
            seed=params.seed,
            rules=Rules(
                image_size=config.image_size,
                channels=config.channels,
                resize=raw.resize,
                validation_fraction=fraction,
                levels=config.levels,
                subfolders=config.subfolders,
                captions=config.captions,
            ),
            left_out=tuple(left_out),
            warnings=tuple(warnings),
            captions_sha256=sha256_of(out / CAPTIONS) if raw.captioned else None,
            hints_sha256=sha256_of(out / HINTS) if raw.hinted else None,
            hint_shape=written.hint_shape,
            combinations=tuple(combinations.tolist()),
            attribution=config.attribution or raw.attribution,
        )
        _write_manifest(manifest, out)
    for warning in warnings:
        print(f"warning: {data}/: {warning}", file=sys.stderr)
    return manifest


def _constant(data: Path, mean: tuple[float, ...], levels: Levels) -> UserError:
    """Images that are all the same teach nothing, and are mostly a mistake in the range of their values."""
    value = ", ".join(f"{255 * each:g}" for each in mean)
    stored = "; ".join(
        f"the files hold values of {each}, of {each.least:g} to {each.most:g}" for each in levels.ranges.values()
    )
    advice = "; ".join(levels.warnings()) or stored
    return UserError(f"{data}/: every pixel of every training image is {value} of 255: {advice}")


def _write_manifest(manifest: Manifest, out: Path) -> None:
    # Defaults are left out: a manifest of images has no word of kinds.
    write_json(out / MANIFEST, manifest.model_dump(mode="json", exclude_defaults=True))


def _prepare_array(raw: RawArray, params: Params, data: Path, out: Path) -> Manifest:
    """Points or sequences → float32 rows, with the range of each channel in the manifest."""
    values, config = raw.values, params.data
    fraction = config.validation_fraction or DEFAULT_FRACTION
    train, validation = stratified_split(None, len(values), fraction, params.seed)
    array = out / array_name(raw.kind)
    low, high = np.full(values.shape[1], np.inf), np.full(values.shape[1], -np.inf)
    total, squares = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    splits: dict[SplitName, np.ndarray] = {"train": train, "validation": validation}
    digests = {name: hashlib.sha256() for name in splits}
    is_train = np.isin(np.arange(len(values)), train)
    with RowWriter(array, values.shape[1:], np.float32) as writer, show(len(values), raw.kind, "reading") as done:
        for number, value in enumerate(values):
            with np.errstate(over="ignore"):
                row = np.asarray(value, np.float32)
            if not np.isfinite(row).all():
                raise UserError(f"{data}: row {number} of the {raw.kind} holds NaN, or numbers beyond float32's")
            writer.append(row)
            done(1)
            digests["train" if is_train[number] else "validation"].update(row.tobytes())
            if is_train[number]:
                flat = row.reshape(len(row), -1).astype(np.float64)
                low, high = np.minimum(low, flat.min(1)), np.maximum(high, flat.max(1))
                total, squares = total + flat.mean(1), squares + (flat**2).mean(1)
    if not (high > low).any():
        same = ", ".join(f"{value:g}" for value in low)
        raise UserError(f"{data}: every training datum of the {raw.kind} is {same}: there is nothing to learn")
    for name, index in splits.items():
        np.save(out / f"{name}.npy", index)
    mean = total / len(train)
    manifest = Manifest(
        name=config.dataset_name,
        source=config.source,
        kind=raw.kind,
        shape=values.shape[1:],
        counts=Counts(train=len(train), validation=len(validation), classes=None),
        classes=None,
        mean=tuple(mean.tolist()),
        std=tuple(np.sqrt(np.maximum(squares / len(train) - mean**2, 0)).tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        images_sha256=sha256_of(array),
        labels_sha256=None,
        splits={
            name: SplitRecord(count=len(splits[name]), sha256=digest.hexdigest()) for name, digest in digests.items()
        },
        seed=params.seed,
        rules=Rules(image_size=None, channels=None, resize="none", validation_fraction=fraction),
        left_out=(),
        attribution=config.attribution,
    )
    _write_manifest(manifest, out)
    return manifest


def _check_fetched(config: DataConfig, root: Path) -> None:
    receipt = Receipt.read(root / RECEIPT)
    if (receipt.source, receipt.name) != (config.source, config.dataset_name):
        raise UserError(
            f"data/ holds {receipt.name} ({receipt.source}), but params.yaml asks for {config.dataset_name} "
            f"({config.source}); run `ddpm fetch`"
        )
    if not (root / DATA).is_dir():
        raise UserError(f"{root / DATA}: no such folder; run `ddpm fetch`")
    with show(receipt.nfiles, "files", "checking data/") as done:
        found = folder.listing(root / DATA, on_file=done)
    if found.fingerprint.md5 != receipt.md5:
        difference = changes(found, receipt.version, root)
        raise UserError(f"data/ has changed since {RECEIPT} was written: {difference}; run `ddpm fetch`")


class _Written:
    """What is known of each image that became a row, in the order of the rows."""

    def __init__(self) -> None:
        self.labels: list[int | None] = []
        self.held_out: list[bool] = []
        self.groups: list[str] = []
        self.combination: list[bool] = []
        self.hint_shape: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def add(self, sample: Sample) -> None:
        self.labels.append(sample.label)
        self.held_out.append(sample.held_out)
        self.groups.append(sample.group or sample.name)
        self.combination.append(sample.combination)


def _write_images(
    raw: RawImages, config: DataConfig, data: Path, out: Path, levels: Levels
) -> tuple[_Written, list[LeftOut]]:
    """Decode every image into a row of images.npy, with a line of captions.jsonl if it has captions; what is known of
    the rows, and what was left out."""
    written, left_out = _Written(), list[LeftOut]()
    with pixel_limit(config.max_pixels), contextlib.closing(_rows(raw, config, data, levels, left_out)) as rows:
        first = next(rows, None)
        if first is None:
            raise UserError(f"{data}: no images{_in_words(left_out)}")
        alike = Alike("data.image_size", "data.channels")
        hint = _hint_of(first[0], first[1], config, data)
        written.hint_shape = None if hint is None else hint.shape
        with (
            RowWriter(out / IMAGES, first[1].shape, np.uint8) as writer,
            _captions_file(raw, out) as captions,
            contextlib.nullcontext() if hint is None else RowWriter(out / HINTS, hint.shape, np.uint8) as hints,
        ):
            for sample, row in itertools.chain([first], rows):
                alike.check(data / sample.name, row)
                writer.append(row)
                if hints is not None:
                    hints.append(_alike_hint(sample, row, config, data, written.hint_shape))
                captions.write(json.dumps(sample.captions, ensure_ascii=False) + "\n")
                written.add(sample)
    if len(written) == 1:
        raise UserError(f"{data}: only one image, {sample.name}; a training and a validation split need two")
    return written, left_out


def _hint_of(sample: Sample, row: np.ndarray, config: DataConfig, data: Path) -> np.ndarray | None:
    """The hint of an image by the image's rules, uint8 [H, W, C] of its own channels; None without one.

    Raises:
        UserError: it does not decode, or is not as large as its image.
    """
    if sample.hint is None:
        return None
    try:
        image, hint = sample.load(Levels(config.levels)), sample.hint(Levels())
    except BadImageError as error:
        raise UserError(f"the hint of {data / sample.name}: {error}") from None
    if image.size != hint.size:
        found, expected = ("×".join(map(str, each.size)) for each in (hint, image))
        raise UserError(f"the hint of {data / sample.name} is {found} pixels, expected the image's {expected}")
    return to_array(hint, None, config.image_size)


def _alike_hint(
    sample: Sample, row: np.ndarray, config: DataConfig, data: Path, shape: tuple[int, ...] | None
) -> np.ndarray:
    """
    Raises:
        UserError: as `_hint_of`, or it is not of the shape of those before it.
    """
    hint = _hint_of(sample, row, config, data)
    assert hint is not None  # all have one, or none
    if hint.shape != shape:
        kinds = {1: "grey", 3: "in colour"}
        raise UserError(
            f"the hint of {data / sample.name} is {kinds[hint.shape[2]]}, and those before it are not: make them alike"
        )
    return hint


def _captions_file(raw: RawImages, out: Path) -> TextIO:
    """Where the captions go; of a source without captions, nowhere."""
    return (out / CAPTIONS if raw.captioned else Path(os.devnull)).open("w", encoding="utf-8", newline="\n")


def _split(
    raw: RawImages, written: _Written, labels: np.ndarray | None, fraction: float | None, seed: int, data: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The row numbers of (training, validation, combinations held out): as the source publishes them, or drawn, by its
    groups if it has any.

    Args:
        fraction: None: as the source publishes them.

    Raises:
        UserError: one of them has no image.
    """
    none = np.zeros(0, np.int64)
    if fraction is None:
        return (*published_split(written.held_out, data), none)
    if raw.grouped:
        return grouped_split(written.groups, written.combination, fraction, seed)
    return (*stratified_split(labels, len(written), fraction, seed), none)


def published_split(held_out: Sequence[bool], data: Path) -> tuple[np.ndarray, np.ndarray]:
    """The row numbers of (training, validation) as the source publishes them.

    Raises:
        UserError: one of them has no image.
    """
    marks = np.array(held_out, bool)
    train, validation = (np.flatnonzero(rows).astype(np.int64) for rows in (~marks, marks))
    if not len(train) or not len(validation):
        raise UserError(
            f"{data}: of its images {len(train)} are published for training and {len(validation)} for validation; "
            "set `data.validation_fraction` to a share such as 0.2"
        )
    return train, validation


def _rows(
    raw: RawImages, config: DataConfig, data: Path, levels: Levels, left_out: list[LeftOut]
) -> Generator[tuple[Sample, np.ndarray]]:
    """The images by the rules, uint8 [H, W, C]; what does not decode goes to `left_out`, if that is wanted."""
    with bar(raw.count, "img", "decoding") as progress:
        for sample in raw.samples:
            try:
                yield sample, to_array(sample.load(levels), config.channels, config.image_size)
            except BadImageError as error:
                if not config.skip_bad:
                    raise UserError(f"{data / sample.name}: {error}; `data.skip_bad: true` leaves such out") from None
                left_out.append(LeftOut(file=sample.name, reason=str(error)))
            progress.update()


def _in_words(left_out: list[LeftOut]) -> str:
    if not left_out:
        return ""
    return f" but {len(left_out)} unreadable files, such as {left_out[0].file}: {left_out[0].reason}"


def _count(labels: np.ndarray | None, classes: tuple[str, ...] | None, data: Path) -> dict[str, int] | None:
    """Images a class. One that cannot be on both sides of the split is a UserError."""
    if labels is None or classes is None:
        return None
    counts = dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True))
    for name, count in counts.items():
        if count < 2:
            raise UserError(
                f"{data}: class {name!r} has {count} readable image{'' if count == 1 else 's'}; "
                "a training and a validation split need two of each class"
            )
    return counts


def _summarise(
    images: Path, splits: dict[SplitName, np.ndarray]
) -> tuple[tuple[int, int, int], dict[SplitName, SplitRecord], tuple[float, ...], tuple[float, ...]]:
    """The images' shape, what identifies each split, and the training split's mean and std a channel."""
    rows, height, width, channels = np.load(images, mmap_mode="r").shape
    records, levels = {}, {}
    with show(len(splits) * rows, "img", "statistics") as done:
        for name, index in splits.items():
            member = np.zeros(rows, bool)
            member[index] = True
            digest, levels[name] = hashlib.sha256(), np.zeros((channels, 256), np.int64)
            start = 0
            for chunk in read_chunks(images, max(1, _CHUNK_BYTES // (height * width * channels))):
                chosen = chunk[member[start : start + len(chunk)]]
                start += len(chunk)
                digest.update(chosen.tobytes())
                for channel, counts in enumerate(levels[name]):
                    counts += np.bincount(chosen[..., channel].ravel(), minlength=256)
                done(len(chunk))
            records[name] = SplitRecord(count=len(index), sha256=digest.hexdigest())
    mean, std = zip(*(_mean_and_std(counts.tolist()) for counts in levels["train"]), strict=True)
    return (height, width, channels), records, mean, std


def _mean_and_std(counts: list[int]) -> tuple[float, float]:
    """Of levels 0..255 scaled to [0, 1], from how often each occurs. In whole numbers, so the same on any machine."""
    n = sum(counts)
    total = sum(level * count for level, count in enumerate(counts))
    squares = sum(level * level * count for level, count in enumerate(counts))
    return total / (255 * n), math.sqrt(n * squares - total * total) / (255 * n)
