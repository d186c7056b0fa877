"""Drawn data as the bytes of an answer."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.codecs.scale import Codec
from ddpm.evaluation.pictures import as_picture, credit, grid, png
from ddpm.serve.models import Choice, ServedModel
from ddpm.serve.schemas import Drawn, Format, ImageRequest

MEDIA_TYPES: dict[Format, str] = {"png": "image/png", "npy": "application/octet-stream", "json": "application/json"}


def formats(codec: Codec) -> tuple[Format, ...]:
    """The forms that an answer can have, the default first."""
    return ("png", "npy", "json") if codec.pictures else ("json", "npy")


def encode(
    data: NDArray[Any], form: Format, model: ServedModel, choice: Choice, asked: ImageRequest, values: dict[str, Any]
) -> bytes:
    """Data [N, *shape], drawn as asked, in a form; of images alone in PNG.

    Args:
        values: what was asked of the model's columns.
    """
    if form == "png":
        columns = max(1, round(len(data) ** 0.5))
        return png(as_picture(data[0]) if len(data) == 1 else grid(data, columns), credit(model.sampler.attribution))
    if form == "npy":
        stream = io.BytesIO()
        np.save(stream, data, allow_pickle=False)
        return stream.getvalue()
    codec = model.sampler.codec
    return (
        Drawn(
            model=model.name,
            kind=codec.name,
            shape=list(codec.shape),
            seed=asked.seed,
            labels=_labels(model, asked, values),
            data=_entries(data, codec, credit(model.sampler.attribution)),
            **choice._asdict(),
        )
        .model_dump_json()
        .encode()
    )


def _labels(model: ServedModel, asked: ImageRequest, values: dict[str, Any]) -> list[str] | None:
    """The class of each datum by name, of a conditional model."""
    if (classes := model.classes) is None:
        return None
    drawn = 1 if asked.one_noise else asked.n
    labels = model.sampler.given(drawn, seed=asked.seed, **values)["label"]
    return [classes[number] for number in labels] * (asked.count // drawn)


def _entries(data: NDArray[Any], codec: Codec, facts: Mapping[str, str]) -> list[Any]:
    if codec.pictures:
        return [base64.b64encode(png(as_picture(image), facts)).decode() for image in data]
    return data.tolist()
