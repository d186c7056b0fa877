"""`ddpm.fit`: images in, a model out, in one call: for a notebook. Needs neither DVC, MLflow nor Prefect.

It is prepare and train of the pipeline in memory: no split, no checkpoints, no figures. For these, and for a training
that continues after an interruption, use the pipeline.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.codecs.scale import PixelCodec
from ddpm.config.condition import ConditionConfig, LabelConfig
from ddpm.config.model import VariantConfig
from ddpm.config.network import NetworkConfig
from ddpm.config.process import ProcessConfig
from ddpm.config.sampling import SamplingConfig
from ddpm.config.training import TrainingConfig
from ddpm.data.loader import InMemoryImages
from ddpm.errors import UserError, brief, listed
from ddpm.model import Model
from ddpm.model.card import DataFacts
from ddpm.model.network import columns_for
from ddpm.training.configured import card_of, initial, train_configured
from ddpm.training.loop import DivergedError
from ddpm.training.options import Hooks

MAX_PIXELS = 50_000_000  # of one file
NAME = "fitted"
FOLDERS: Literal["folders"] = "folders"


class Labelled(NamedTuple):
    """Images with their classes."""

    images: NDArray[np.uint8]  # [N, side, side, C]
    labels: NDArray[np.int64] | None = None  # [N]
    classes: tuple[str, ...] | None = None

    @property
    def counts(self) -> tuple[int, ...] | None:
        """How many images each class has."""
        if self.labels is None or self.classes is None:
            return None
        return tuple(np.bincount(self.labels, minlength=len(self.classes)).tolist())


def fit(
    images: Path | str | NDArray[np.uint8],
    *,
    labels: Literal["folders"] | Sequence[str] | Sequence[int] | NDArray[Any] | None = None,
    steps: int = 2000,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    width: int = 32,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: torch.device | str | None = None,
    on_step: Callable[[int], object] = lambda step: None,
) -> Model:
    """Train a U-Net on a folder of images, or on an array, and return the model with its averaged weights.

    Args:
        images: a folder of image files, its subfolders included, or uint8 [N, H, W, C] with C 1 or 3.
        labels: make the model conditional. "folders": the class of an image is the folder within `images` that it lies
            in. For an array: a name, or a number from 0, for each image, [N]. A tenth of the labels is hidden in
            training, so that the model can be guided. None: subfolders say nothing.
        steps: optimiser steps. Each takes `batch_size` images.
        size: pixels a side: of a folder each image's centre square is resized to it; None: they must have one size.
        channels: of a folder: 1 grey, 3 RGB; None: all images must have the same.
        width: channels of the network's first level, a multiple of 8. The network has two to four levels, depending on
            the size.
        learning_rate: of Adam, at its peak; it rises over a twentieth of the steps and falls to 0 by the last.
        seed: of the weights, the batches and the noise. The same seed gives the same model on the same machine.
        device: None: CUDA where there is a device, else the CPU.
        on_step: called with the number of steps done after each.

    Returns:
        The model, in evaluation mode; `ddpm.save(model, directory)` writes it. Its own sampling plan is DPM-Solver++
        (SDE) in 20 steps. With labels, `model.sample(8, label="cat", guidance_scale=2)` draws a class.

    Raises:
        UserError: an image does not decode, or the images have several sizes and no `size` is given, or there is not a
            label for each image, fewer than two classes or a class without images, or the options do not fit together,
            or the loss is NaN.
    """
    data = _data(images, labels, size, channels)
    kind = PixelCodec(data.images.shape[1:])
    config = _config(data, width, steps, batch_size, learning_rate)
    digest = hashlib.sha256(data.images.tobytes()).hexdigest()
    facts = DataFacts(
        name=Path(images).resolve().name if isinstance(images, (str, Path)) else "array",
        shape=kind.shape,
        classes=data.classes,
        train_sha256=digest,
        train_count=len(data.images),
        class_counts=data.counts,
    )
    start = initial(
        seed,
        config,
        kind,
        columns_for(config, facts, "ddpm.fit"),
        device=None if device is None else torch.device(device),
        where="ddpm.fit",
    )
    try:
        curve = train_configured(
            start.network,
            config,
            kind,
            InMemoryImages(data.images, data.labels),
            Hooks(on_step=on_step),
            seed=seed,
            precision=start.precision,
        )
    except DivergedError as error:
        raise UserError(f"ddpm.fit: {error}; lower learning_rate, now {learning_rate:g}") from None
    decided = f"{config.model_dump_json()} {seed} {start.precision} {digest}"
    if data.labels is not None:
        decided += f" {hashlib.sha256(data.labels.tobytes()).hexdigest()}"
    fingerprint = hashlib.sha256(decided.encode()).hexdigest()
    card = card_of(NAME, config, facts, start, curve, seed=seed, fingerprint=fingerprint, own_plan=True)
    return Model(start.network.eval().requires_grad_(False), card, "ddpm.fit")


def _config(data: Labelled, width: int, steps: int, batch_size: int, learning_rate: float) -> VariantConfig:
    """A model of such images: attention at a side of 8 or below, the cosine schedule."""
    size = data.images.shape[1]
    checks: dict[str, Any] = {"steps": steps, "width": width, "batch_size": batch_size, "size": size}
    for name, value in checks.items():
        if value < 1:
            raise UserError(f"ddpm.fit: {name} must be at least 1, found {value}")
    levels = 1
    while levels < 4 and size % 2**levels == 0 and size // 2**levels >= 4:
        levels += 1
    sides = [size // 2**level for level in range(levels)]
    return VariantConfig(
        network=NetworkConfig(
            width=width,
            multipliers=(1, *[2] * (levels - 1)),
            blocks=1,
            attention_resolutions=tuple(side for side in sides[1:] if side <= 8),
            groups=8,
            dropout=0.0,
        ),
        condition=ConditionConfig(label=None if data.labels is None else LabelConfig()),
        process=ProcessConfig(schedule="cosine", variance="fixed_small"),
        training=TrainingConfig(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=steps // 20,
            decay="cosine",
            ema_decay=0.998,
            log_every=min(100, steps),
        ),
        sampling=SamplingConfig(sampler="dpmpp_2m_sde", steps=20),
    )


def _data(images: Path | str | NDArray[np.uint8], labels: Any, size: int | None, channels: int | None) -> Labelled:
    """Square images, and the classes that `labels` tells of them."""
    if isinstance(images, (str, Path)):
        if not (labels is None or (isinstance(labels, str) and labels == FOLDERS)):
            raise UserError('ddpm.fit: labels of a folder must be "folders", for its subfolders are the classes')
        try:
            data = _read(Path(images), labels == FOLDERS, size, channels)
        except UserError as error:
            raise UserError(f"ddpm.fit: {error}") from None
    else:
        array = np.ascontiguousarray(images)
        if array.ndim != 4 or array.dtype != np.uint8 or array.shape[3] not in (1, 3) or len(array) < 1:
            raise UserError(f"ddpm.fit: expected uint8 [N, H, W, 1 or 3], found {array.dtype} {list(array.shape)}")
        if (size, channels) != (None, None):
            raise UserError("ddpm.fit: size and channels are for a folder; an array is taken as it is")
        data = Labelled(array) if labels is None else Labelled(array, *_numbered(labels, len(array)))
    height, width = data.images.shape[1:3]
    if height != width:
        raise UserError(f"ddpm.fit: the images are {width}×{height}, not square: crop them")
    return data


def _numbered(labels: Any, count: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The numbers of the labels, [count], and the names of the classes: of numbers, these themselves."""
    try:
        found = np.asarray(labels if isinstance(labels, (str, np.ndarray)) else list(labels))
    except (TypeError, ValueError):
        found = np.asarray(None)
    if found.ndim != 1 or found.dtype.kind not in "iuU":
        raise UserError(
            f"ddpm.fit: labels: expected a name or a number for each image, such as [0, 2, 1], found {brief(labels)}"
        )
    if len(found) != count:
        raise UserError(f"ddpm.fit: labels has {len(found)} values for {count} images")
    names, numbers = np.unique(found, return_inverse=True)
    if found.dtype.kind != "U" and names.tolist() != list(range(len(names))):
        raise UserError(
            f"ddpm.fit: labels are {listed(list(map(str, names)))}; expected 0 to K-1 with an image of each class, or "
            "names"
        )
    if len(names) < 2:
        raise UserError(f"ddpm.fit: all labels are {str(names[0])!r}; expected at least two classes")
    return numbers.astype(np.int64), tuple(map(str, names))


def _read(folder: Path, of_folders: bool, size: int | None, channels: int | None) -> Labelled:
    """The images of a folder.

    Args:
        of_folders: whether its subfolders are classes.
    """
    from ddpm.data.alike import Alike
    from ddpm.data.folder import read
    from ddpm.data.images import BadImageError, Levels, pixel_limit, to_array

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    raw = read(folder, subfolders="nested-classes" if of_folders else "ignored", captions="ignored")
    if of_folders and raw.classes is None:
        raise UserError(f'{folder}: labels is "folders", which needs two class folders or more: {folder}/CLASS/IMAGE')
    rows, numbers = list[NDArray[np.uint8]](), list[int]()
    alike, levels = Alike("size", "channels"), Levels()
    with pixel_limit(MAX_PIXELS):
        for sample in raw.samples:
            file = folder / sample.name
            try:
                row = to_array(sample.load(levels), channels, size)
            except BadImageError as error:
                raise UserError(f"{file}: {error}") from None
            alike.check(file, row)
            rows.append(row)
            numbers.append(sample.label or 0)
    if not rows:
        raise UserError(f"{folder}: no images")
    return Labelled(np.stack(rows), np.array(numbers, np.int64) if raw.classes else None, raw.classes)
