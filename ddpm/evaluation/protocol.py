"""What a figure depends on besides the model: two figures compare only under one protocol."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class EvaluationProtocol:
    """Everything that decides a figure except the weights."""

    extractor: str  # kind
    extractor_sha256: str  # of its weights
    reference: str  # the split that generated images are held against
    reference_sha256: str  # of its pixels
    reference_count: int
    samples: int
    sampler: str
    steps: int
    variance: str  # of the ancestral sampler
    eta: float
    spacing: str
    clip: bool
    dynamic_threshold: float | None
    weights: str  # "ema"
    splits: int  # of the Inception Score
    seed: int

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that stand for all of it."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
