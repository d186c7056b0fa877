"""`ddpm fit-extractor`: the features that FID and IS are computed in, for this data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ddpm.compute.device import pick_device
from ddpm.config.params import Params
from ddpm.data.loader import Images
from ddpm.data.store import PreparedData
from ddpm.errors import UserError
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

    Raises:
        UserError: the kind asked for does not fit the data, or its weights are not at hand.
    """
    data = PreparedData.open(root / PREPARED)
    if data.codec.name != "images":
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


def _fit_small(params: Params, data: PreparedData, kind: str, out: Path) -> None:
    device = pick_device()
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
    print(f"{kind} extractor: {right:.1%} of the validation images right")
    save_cnn(
        network,
        out,
        {"kind": kind, "shape": list(data.manifest.shape), "classes": classes, "validation_accuracy": right},
    )
