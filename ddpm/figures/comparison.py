"""What is known of several models, side by side; ranked only where it was measured under one protocol."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ddpm.errors import UserError
from ddpm.figures.figure import Figure, Reading, headline
from ddpm.figures.protocol import mark_of, refuse_to_mix
from ddpm.files import read_json

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Recorded:
    """What was written down when a model was evaluated; empty where it never was as it is now.

    Attributes:
        metrics: the numbers of metrics.json.
        protocol: protocol.json: its fields, and its identifier under `id`.
        likelihood: t and its term of the bound, in bits per dimension: the decoder's, those between, the prior's.
        version: the registered model's version, such as `models:/ddpm-digits/3`.
    """

    metrics: Mapping[str, float]
    protocol: Mapping[str, Any]
    likelihood: Curve
    version: str | None = None

    @classmethod
    def read(cls, directory: Path, fingerprint: str | None) -> Recorded:
        """What `ddpm evaluate` wrote, as far as it is there and of the training with this fingerprint.

        Raises:
            UserError: a file is damaged.
        """
        table, metrics = directory / "nll.csv", _read(directory / "metrics.json")
        if fingerprint is None or metrics.get("model") != mark_of(fingerprint):
            return cls({}, {}, [])
        return cls.of(
            metrics,
            _read(directory / "protocol.json"),
            table.read_text(encoding="utf-8", errors="replace") if table.is_file() else None,
            source=str(table),
        )

    @classmethod
    def of(
        cls,
        metrics: Mapping[str, Any],
        protocol: Mapping[str, Any],
        likelihood: str | None,
        version: str | None = None,
        source: str = "nll.csv",
    ) -> Recorded:
        """Of metrics.json, protocol.json and the text of nll.csv, which messages call `source`.

        Raises:
            UserError: the text is damaged.
        """
        numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
        return cls(numbers, protocol, _likelihood(likelihood, source) if likelihood else [], version)

    def with_likelihood(self, table: str) -> Recorded:
        """With the terms of the text of nll.csv."""
        return replace(self, likelihood=_likelihood(table, "nll.csv"))


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from None


def _likelihood(table: str, source: str) -> Curve:
    """t and the validation images' term of the bound, of nll.csv."""
    try:
        return [(float(row["t"]), float(row["validation"])) for row in csv.DictReader(io.StringIO(table))]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{source}: damaged: expected numbers in the columns `t` and `validation`") from None


@dataclass(frozen=True)
class Compared:
    """A model with its figures."""

    name: str
    model: str
    """What the user named it by."""
    recorded: Recorded

    @property
    def protocol_id(self) -> str | None:
        return self.recorded.protocol.get("id")

    def reading(self, key: str) -> Reading | None:
        return Reading.of(self.recorded.metrics, key)


def by_protocol(models: Sequence[Compared]) -> dict[str | None, list[Compared]]:
    """The models that may be ranked against each other, under their protocol's identifier; None: not evaluated."""
    groups: dict[str | None, list[Compared]] = {}
    for model in models:
        groups.setdefault(model.protocol_id, []).append(model)
    return groups


def differences(models: Sequence[Compared]) -> dict[str, dict[str, Any]]:
    """Each field in which the models' protocols differ: its value under the identifier of each protocol."""
    protocols = {model.protocol_id: model.recorded.protocol for model in models if model.protocol_id}
    names = sorted({name for protocol in protocols.values() for name in protocol if name != "id"})
    values = {name: {key: protocol.get(name) for key, protocol in protocols.items()} for name in names}
    return {
        name: found for name, found in values.items() if any(value != found[min(found)] for value in found.values())
    }


def best(group: Sequence[Compared], figure: Figure) -> set[str]:
    """Names of the models of one protocol that have the best value, and of those that may well be as good.

    Empty where that would be all of them, or the only one.
    """
    found = [(model.name, reading) for model in group if (reading := model.reading(figure.key))]
    choose = min if figure.better == "lower" else max
    _, top = choose(found, key=lambda each: each[1].value)
    names = {name for name, reading in found if reading.overlaps(top)}
    return names if len(names) < len(found) else set()


def ranked(models: Sequence[Compared]) -> list[Compared]:
    """The models by the figure that models are ranked by, the best first.

    Raises:
        UserError: a model has no such figure, or the protocols differ; it says in which fields.
    """
    for model in models:
        if model.protocol_id is None:
            raise UserError(f"{model.name} cannot be ranked, since it was never evaluated as it is now")
    refuse_to_mix({model.name: model.recorded.protocol for model in models})
    key = headline(models[0].recorded.metrics).key
    return sorted(models, key=lambda model: model.recorded.metrics[key])


@dataclass(frozen=True)
class Comparison:
    """Several models, and what they score over the number of steps when all are measured alike.

    Attributes:
        models: in the order in which they are shown; ranked, if `ranked`.
        key: of the figure that was measured over the steps.
        over_steps: (evaluations of networks for a datum, value) of each model by plans of several numbers of steps.
        conditions: what they were measured under, besides the number of steps.
        guidance: by the model's name, what guides it throughout; nothing of a model without guidance.
        over_guidance: by the figure's key, (guidance scale, value) of each model, each by its own plan otherwise;
            nothing of a model that cannot be guided.
        attributions: the credits for the models' training images, each once.
    """

    models: Sequence[Compared]
    key: str
    over_steps: Sequence[Curve]
    conditions: Mapping[str, Any]
    ranked: bool = False
    guidance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    over_guidance: Mapping[str, Sequence[Curve]] = field(default_factory=dict)
    attributions: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """All its numbers, as JSON has them."""
        protocols = {model.protocol_id: dict(model.recorded.protocol) for model in self.models if model.protocol_id}
        guidance = {key: self._by_name(curves) for key, curves in self.over_guidance.items()}
        return {
            "ranked": self.ranked,
            "models": [
                {
                    "name": model.name,
                    "model": model.model,
                    "version": model.recorded.version,
                    "protocol": model.protocol_id,
                    "metrics": dict(model.recorded.metrics),
                    "likelihood": model.recorded.likelihood,
                }
                for model in self.models
            ],
            "protocols": protocols,
            "differences": differences(self.models),
            "over_steps": {
                "figure": self.key,
                "conditions": dict(self.conditions),
                "curves": self._by_name(self.over_steps),
            },
            **({"guidance": {name: dict(own) for name, own in self.guidance.items()}} if self.guidance else {}),
            **({"over_guidance": guidance} if guidance else {}),
            **({"attributions": list(self.attributions)} if self.attributions else {}),
        }

    def _by_name(self, curves: Sequence[Curve]) -> dict[str, Curve]:
        return {model.name: curve for model, curve in zip(self.models, curves, strict=True)}
