"""`ddpm.fit`: images in, a model out, in one call: for a notebook. Needs neither DVC, MLflow nor Prefect.

It is prepare and train of the pipeline in memory: no split, no checkpoints, no figures. For these, and for a training
that continues after an interruption, use the pipeline.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.codecs.scale import PixelCodec
from ddpm.config.model import VariantConfig
from ddpm.config.network import NetworkConfig
from ddpm.config.process import ProcessConfig
from ddpm.config.sampling import SamplingConfig
from ddpm.config.training import TrainingConfig
from ddpm.data.loader import InMemoryImages
from ddpm.errors import UserError
from ddpm.model import DataFacts, Model
from ddpm.training.configured import card_of, initial, train_configured
from ddpm.training.loop import DivergedError
from ddpm.training.options import Hooks

MAX_PIXELS = 50_000_000  # of one file
NAME = "fitted"


def fit(
    images: Path | str | NDArray[np.uint8],
    *,
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
        (SDE) in 20 steps.

    Raises:
        UserError: an image does not decode, or the images have several sizes and no `size` is given, or the options do
            not fit together, or the loss is NaN.
    """
    array = _array(images, size, channels)
    kind = PixelCodec(array.shape[1:])
    config = _config(array.shape[1], width, steps, batch_size, learning_rate)
    start = initial(seed, config, kind, device=None if device is None else torch.device(device), where="ddpm.fit")
    try:
        curve = train_configured(
            start.network,
            config,
            kind,
            InMemoryImages(array),
            Hooks(on_step=on_step),
            seed=seed,
            precision=start.precision,
        )
    except DivergedError as error:
        raise UserError(f"ddpm.fit: {error}; lower learning_rate, now {learning_rate:g}") from None
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    decided = f"{config.model_dump_json()} {seed} {start.precision} {digest}"
    data = DataFacts(
        name=Path(images).resolve().name if isinstance(images, (str, Path)) else "array",
        shape=kind.shape,
        classes=None,
        train_sha256=digest,
        train_count=len(array),
    )
    fingerprint = hashlib.sha256(decided.encode()).hexdigest()
    card = card_of(NAME, config, data, start, curve, seed=seed, fingerprint=fingerprint, own_plan=True)
    return Model(start.network.eval().requires_grad_(False), card, "ddpm.fit")


def _config(size: int, width: int, steps: int, batch_size: int, learning_rate: float) -> VariantConfig:
    """A model of images of that size: attention at a side of 8 or below, the cosine schedule."""
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


def _array(images: Path | str | NDArray[np.uint8], size: int | None, channels: int | None) -> NDArray[np.uint8]:
    """uint8 [N, side, side, C]."""
    if not isinstance(images, (str, Path)):
        array = np.ascontiguousarray(images)
        if array.ndim != 4 or array.dtype != np.uint8 or array.shape[3] not in (1, 3) or len(array) < 1:
            raise UserError(f"ddpm.fit: expected uint8 [N, H, W, 1 or 3], found {array.dtype} {list(array.shape)}")
        if (size, channels) != (None, None):
            raise UserError("ddpm.fit: size and channels are for a folder; an array is taken as it is")
    else:
        try:
            array = _read(Path(images), size, channels)
        except UserError as error:
            raise UserError(f"ddpm.fit: {error}") from None
    height, width = array.shape[1:3]
    if height != width:
        raise UserError(f"ddpm.fit: the images are {width}×{height}, not square: crop them")
    return array


def _read(folder: Path, size: int | None, channels: int | None) -> NDArray[np.uint8]:
    from ddpm.data.alike import Alike
    from ddpm.data.folder import read
    from ddpm.data.images import BadImageError, Levels, pixel_limit, to_array

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    rows: list[NDArray[np.uint8]] = []
    alike, levels = Alike("size", "channels"), Levels()
    with pixel_limit(MAX_PIXELS):
        for sample in read(folder, subfolders="ignored", captions="ignored").samples:
            file = folder / sample.name
            try:
                row = to_array(sample.load(levels), channels, size)
            except BadImageError as error:
                raise UserError(f"{file}: {error}") from None
            alike.check(file, row)
            rows.append(row)
    if not rows:
        raise UserError(f"{folder}: no images")
    return np.stack(rows)
