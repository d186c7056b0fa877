"""What a figure depends on besides the model: two figures compare only under one protocol."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ddpm.errors import UserError
from ddpm.promotion import differing_fields


@dataclass(frozen=True)
class EvaluationProtocol:
    """Everything that decides a figure except the weights."""

    extractor: str  # kind
    extractor_sha256: str  # of its weights
    train_sha256: str  # of the training split's images
    validation_sha256: str  # of those behind the floors, near copies and the likelihood
    reference: str  # what generated images are held against: the training split, or all
    reference_count: int
    samples: int
    sampler: str
    steps: int
    variance: str | None  # None, as below: no matter to this sampler
    eta: float | None
    spacing: str
    clip: bool | None
    dynamic_threshold: float | None
    weights: str  # "ema"
    splits: int  # of the Inception Score
    kid_subsets: int
    kid_subset_size: int  # at most
    neighbourhood: int  # k of precision and recall
    nll_samples: int  # of each split
    resamples: int  # of the bootstrap behind the intervals
    seed: int

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that stand for all of it."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def mark_of(fingerprint: str) -> str:
    """By what metrics.json names the model that its figures are of: the start of its training's fingerprint."""
    return fingerprint[:12]


def refuse_to_mix(protocols: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that figures may stand side by side.

    Args:
        protocols: of each model, by name: what protocol.json says.

    Raises:
        UserError: two protocols differ; it names the fields.
    """
    (first, protocol), *others = protocols.items()
    for name, other in others:
        if differences := "; ".join(differing_fields(protocol, other)):
            raise UserError(f"{first} and {name} were measured under different protocols: {differences}")
