"""sampler.json, read with nothing but the standard library and numpy, and held against what the runtime needs of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from ddpm.codecs.embedding import Embedding
from ddpm.codecs.latent import Latent
from ddpm.codecs.scale import Codec, KindName, PixelCodec, codec_for
from ddpm.conditioning.columns import COLUMNS, Column, columns_of
from ddpm.diffusion.plans import plan_for
from ddpm.errors import UserError
from ddpm.files import read_json

FORMAT = 2  # with conditions; files of format 1 have none
KNOWN = (1, 2)

# What there has to be, by its path, and of which type.
_KEYS: dict[str, type] = {
    "shape": list,
    "process": dict,
    "process.schedule": str,
    "process.timesteps": int,
    "process.prediction": str,
    "process.variance": str,
    "sampling": dict,
    "sampling.sampler": str,
    "sampling.steps": int,
}
# Of what guides it: the column whose gradient it gives; None: it is a weaker model.
_GUIDES = {"classifier": "label", "clip": "prompt", "model": None}
_NAMES = {list: "a list", dict: "an object", str: "a string", int: "a whole number"}


class GuideFacts(NamedTuple):
    """The model whose graph is guide.onnx."""

    by_gradient: bool
    """Whether its graph is of the gradient of a classifier or a CLIP; else it is a weaker model."""
    columns: tuple[Column, ...]
    """That it is conditioned on, or whose values it tells of data."""


def read_facts(path: Path) -> tuple[dict[str, Any], Codec, tuple[Column, ...], GuideFacts | None]:
    """What sampler.json says, the data that it describes, what the network is conditioned on, and what guides it.

    Raises:
        UserError: the file is missing, damaged or of another format, or no plan can be made of what it says.
    """
    try:
        facts = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not a deploy directory: sampler.json is missing") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from None
    try:
        _check(facts)
        guide = _guide(facts.get("guide"), facts.get("data", {}))
        codec = _kind(facts)
        by_classifier = guide is not None and guide.by_gradient
        plan = plan_for(facts["process"], facts["sampling"], by_classifier=by_classifier, bounded=codec.bounded)
        columns = _columns(facts)
        _check_condition(columns, guide)
        if plan.column("guidance").any() and guide is None and all(column.null is None for column in columns):
            raise ValueError("`sampling.guidance_scale` must be 1: the model cannot be guided")
        return facts, codec, columns, guide
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def _check(facts: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: something that is needed is missing or is none of what it has to be.
    """
    if (found := facts.get("format", 1)) not in KNOWN:
        raise ValueError(f"its format is {found!r:.50}, and this version of ddpm knows 1 and 2")
    for key, kind in _KEYS.items():
        *outer, name = key.split(".")
        section: Mapping[str, Any] = facts[outer[0]] if outer else facts
        if name not in section:
            raise ValueError(f"the key `{key}` is missing")
        if type(section[name]) is not kind:  # true is an instance of int
            raise ValueError(f"`{key}`: expected {_NAMES[kind]}, found {section[name]!r:.50}")
    bytes_each = facts.get("activation_bytes", 1)
    if not (type(bytes_each) is int and bytes_each > 0):
        raise ValueError(f"`activation_bytes`: expected a positive number, found {bytes_each!r:.50}")
    for name in ("data", "training"):
        if not isinstance(facts.get(name, {}), dict):
            raise ValueError(f"`{name}`: expected an object, found {facts[name]!r:.50}")
    credit = facts.get("data", {}).get("attribution")
    if not (credit is None or (isinstance(credit, str) and credit.isprintable())):
        raise ValueError(f"`data.attribution`: expected a line of text, found {credit!r:.50}")
    scale, interval = (facts["sampling"].get(f"guidance_{name}") for name in ("scale", "interval"))
    if not (scale is None or _is_number(scale)):
        raise ValueError(f"`sampling.guidance_scale`: expected a number, found {scale!r:.50}")
    if not (interval is None or (isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval)))):
        raise ValueError(f"`sampling.guidance_interval`: expected two numbers, found {interval!r:.50}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _guide(described: Any, data: Mapping[str, Any]) -> GuideFacts | None:
    """
    Args:
        data: of the model, which the guide has kind and shape in common with.

    Raises:
        ValueError: of what is wrong with the description of the guide.
    """
    if described is None:
        return None
    if not isinstance(described, dict):
        raise ValueError(f"`guide`: expected an object, found {described!r:.50}")
    kind = described.get("kind")
    if not (isinstance(kind, str) and kind in _GUIDES):
        raise ValueError(f"`guide.kind`: expected {' or '.join(_GUIDES)}, found {kind!r:.50}")
    for name, kind_of in (("data", dict), ("training", dict), ("variant", str)):
        if not isinstance(described.get(name, kind_of()), kind_of):
            raise ValueError(f"`guide.{name}`: expected {_NAMES[kind_of]}, found {described[name]!r:.50}")
    if not isinstance(described.get("mark"), str | None):
        raise ValueError(f"`guide.mark`: expected a string, found {described['mark']!r:.50}")
    try:
        size = {key: data[key] for key in ("kind", "shape") if key in data}
        columns = _columns({**described, "data": {**size, **described.get("data", {})}})
    except ValueError as error:
        raise ValueError(f"`guide`: {error}") from None
    told = _GUIDES[kind]
    if told is not None and [column.name for column in columns] != [told]:
        raise ValueError(f"`guide.condition`: expected the {told} of a {kind}")
    return GuideFacts(told is not None, columns)


def _check_condition(columns: tuple[Column, ...], guide: GuideFacts | None) -> None:
    """
    Raises:
        ValueError: the guide is conditioned on something else than the model.
    """
    if guide is None:
        return
    shared = [each for each in columns if not guide.by_gradient or each.name in {own.name for own in guide.columns}]
    if guide.by_gradient and not shared:
        return
    model, other = ([_meaning(each) for each in some] for some in (shared, guide.columns))
    if model != other:
        raise ValueError("`guide.condition`: expected the columns of the model, with its classes and its tokenizer")


def _meaning(column: Column) -> tuple[Any, ...]:
    """What a column has to have in common with another one for their values to mean the same."""
    return column.name, getattr(column, "classes", ()), getattr(column, "tokenizer", None)


def _columns(facts: Mapping[str, Any]) -> tuple[Column, ...]:
    """
    Raises:
        ValueError: of what is wrong with the condition, or with what it needs of the data.
    """
    condition, data = facts.get("condition", {}), facts.get("data", {})
    if not isinstance(condition, dict):
        raise ValueError(f"`condition`: expected an object, found {condition!r:.50}")
    asked = {name: options for name, options in condition.items() if options is not None}
    for name, options in asked.items():
        if name not in COLUMNS:
            raise ValueError(f"`condition`: no column {name!r:.50}; there are: {', '.join(COLUMNS)}")
        if not isinstance(options, dict):
            raise ValueError(f"`condition.{name}`: expected an object, found {options!r:.50}")
        drop = options.get("drop", 0)
        if not (_is_number(drop) and 0 <= drop <= 1):
            raise ValueError(f"`condition.{name}.drop`: expected a number in 0..1, found {drop!r:.50}")
    if "label" in asked:
        _check_classes(data.get("classes"), data.get("class_counts"))
    return columns_of(asked, data)


def _check_classes(classes: Any, counts: Any) -> None:
    if not (isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)):
        raise ValueError(f"`data.classes`: expected names, found {classes!r:.50}")
    if counts is None:
        return
    if not (
        isinstance(counts, list)
        and len(counts) == len(classes)
        and all(type(number) is int and 0 <= number < 2**63 for number in counts)
        and any(counts)
    ):
        raise ValueError(f"`data.class_counts`: expected how many there are of each class, found {counts!r:.50}")


def _kind(facts: Mapping[str, Any]) -> Codec:
    shape, data = facts["shape"], facts.get("data", {})
    if not all(type(side) is int and side > 0 for side in shape):
        raise ValueError(f"`shape`: expected positive numbers, found {shape!r:.50}")
    if data.get("embedding") is not None:
        return _embedding(data["embedding"], shape)
    name, low, high = data.get("kind", "images"), data.get("low"), data.get("high")
    if name not in get_args(KindName):
        raise ValueError(f"`data.kind`: expected one of {', '.join(get_args(KindName))}, found {name!r:.50}")
    ends = (end if end is None else [float(number) for number in end] for end in (low, high))
    codec = codec_for(name, shape, *ends)
    return codec if data.get("latent") is None else _latent(data["latent"], codec)


def _embedding(described: Any, shape: list[int]) -> Embedding:
    """
    Raises:
        ValueError: of what is wrong with the description of the embeddings.
    """
    found: dict[str, Any] = described if isinstance(described, dict) else {}
    mean, std, unit_norm = found.get("mean", []), found.get("std", []), found.get("unit_norm")
    for key, numbers in (("mean", mean), ("std", std)):
        if not (isinstance(numbers, list) and [len(numbers)] == shape and all(map(_is_number, numbers))):
            raise ValueError(f"`data.embedding.{key}`: expected as many numbers as `shape` says, found {numbers!r:.50}")
    if not all(0 < each < math.inf for each in std) or type(unit_norm) is not bool:
        raise ValueError(f"`data.embedding`: expected a std above 0 and unit_norm, found {described!r:.80}")
    return Embedding(tuple(map(float, mean)), tuple(map(float, std)), unit_norm)


def _latent(described: Any, pixels: Codec) -> Latent:
    """
    Raises:
        ValueError: of what is wrong with the description of the latents.
    """
    found: dict[str, Any] = described if isinstance(described, dict) else {}
    shape, scale = found.get("shape"), found.get("scale")
    sides = shape if isinstance(shape, list) and all(type(side) is int and side > 0 for side in shape) else []
    if len(sides) != 3 or not isinstance(scale, float | int) or not 0 < scale < math.inf:
        raise ValueError(f"`data.latent`: expected a shape of 3 numbers and a scale, found {described!r:.80}")
    if not isinstance(pixels, PixelCodec):
        raise ValueError(f"`data.latent`: expected images, found {pixels.name}")
    return Latent(pixels, tuple(sides), float(scale))
