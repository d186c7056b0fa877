"""`ddpm fit-extractor`: the features that FID and IS are computed in, for this data."""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ddpm.compute.device import pick_device
from ddpm.config.params import Params
from ddpm.data.loader import Images
from ddpm.data.store import PreparedData
from ddpm.errors import DdpmWarning, UserError
from ddpm.evaluation.distances import MEDIAN_COUNT, chosen, median_distance
from ddpm.evaluation.extractor import (
    CNNExtractor,
    Rotations,
    accuracy,
    coordinates,
    find_inception,
    fit_cnn,
    missing_inception,
    save_cnn,
    save_coordinates,
    save_inception,
    where_inception_goes,
)
from ddpm.evaluation.requirements import check_extractor
from ddpm.files import atomic_directory
from ddpm.layout import EXTRACTOR, PREPARED
from ddpm.stages.progress import bar


def fit_extractor(params: Params, *, root: Path = Path()) -> None:
    """Write `extractor/`: a small CNN fitted to the data, or the record of which InceptionV3 is used.

    Warns where the CNN tells no more validation images right than guesses do.

    Raises:
        UserError: the kind asked for does not fit the data, or its weights are not at hand.
    """
    data = PreparedData.open(root / PREPARED)
    if not data.codec.pictures:
        _measure_coordinates(params, data, root)
        return
    kind = resolve_kind(params, labelled=data.manifest.classes is not None, channels=data.manifest.shape[2])
    with atomic_directory(root / EXTRACTOR) as out:
        if kind == "inception":
            weights = find_inception(params.extractor.weights)
            if weights is None:
                raise missing_inception()
            save_inception(weights, out)
        else:
            if params.extractor.kind == "auto" and data.manifest.shape[2] == 3:
                print(f"FID is not comparable with papers: no InceptionV3 weights. {where_inception_goes()}")
            _fit_small(params, data, kind, out)


def _measure_coordinates(params: Params, data: PreparedData, root: Path) -> None:
    """Points and sequences are compared in their own coordinates; what is fitted is the kernel's bandwidth."""
    if params.extractor.kind != "auto":
        raise UserError(
            f"extractor.kind is `{params.extractor.kind}`, which is for images; "
            f"the prepared data are {data.codec.name}: use `auto`"
        )
    split = data.split("train")
    rows = split.rows(chosen(len(split), MEDIAN_COUNT, params.seed))
    with atomic_directory(root / EXTRACTOR) as out:
        save_coordinates(median_distance(coordinates(data.codec, rows)), out)


def resolve_kind(params: Params, *, labelled: bool, channels: int) -> str:
    """The extractor's kind for this data, as `ExtractorConfig.kind` tells."""
    kind = params.extractor.kind
    check_extractor(kind, labelled=labelled, channels=channels)
    if kind != "auto":
        return kind
    if channels == 3 and find_inception(params.extractor.weights) is not None:
        return "inception"
    return "classifier" if labelled else "rotation"


def _task(
    kind: str, data: PreparedData, split: Literal["train", "validation"]
) -> tuple[Images, NDArray[np.int64], int]:
    """What the small CNN is to tell apart: images, labels, number of classes."""
    images = data.split(split)
    if kind == "rotation":
        rotations = Rotations(images)
        return rotations, rotations.labels, 4
    assert images.labels is not None
    assert data.manifest.classes is not None
    return images, images.labels, len(data.manifest.classes)


def _warn_of_chance(right: float, labels: NDArray[np.int64], kind: str, steps: int) -> None:
    """Warn where the network is no better than naming the most frequent label: by less than two standard deviations of
    what such guesses score on so many images.

    Args:
        right: its share of right answers.
        labels: of the images.
    """
    chance = np.bincount(labels).max() / len(labels)
    if right > chance + 2 * math.sqrt(chance * (1 - chance) / len(labels)):
        return
    warnings.warn(
        f"the {kind} extractor tells {right:.1%} of the validation images right, and guesses {chance:.1%}: FID and the "
        f"other figures in its features say little. Raise extractor.steps, now {steps}, or choose another "
        "extractor.kind",
        DdpmWarning,
        stacklevel=2,
    )


def _fit_small(params: Params, data: PreparedData, kind: str, out: Path) -> None:
    device, begin = pick_device(), time.perf_counter()
    images, labels, classes = _task(kind, data, "train")
    held_out, held_out_labels, _ = _task(kind, data, "validation")
    with bar(params.extractor.steps, "steps", f"{kind} extractor") as progress:
        network = fit_cnn(
            images,
            labels,
            classes,
            steps=params.extractor.steps,
            seed=params.seed,
            device=device,
            on_step=lambda step: progress.update(),
        )
    right = accuracy(CNNExtractor(network, {}), held_out, held_out_labels)
    seconds = time.perf_counter() - begin
    print(f"{kind} extractor: {right:.1%} of the validation images right, fitted in {seconds:,.0f} s")
    _warn_of_chance(right, held_out_labels, kind, params.extractor.steps)
    save_cnn(
        network,
        out,
        {"kind": kind, "shape": list(data.manifest.shape), "classes": classes, "validation_accuracy": right},
    )
