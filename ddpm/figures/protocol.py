"""What a figure depends on besides the model: two figures compare only under one protocol."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from ddpm.errors import UserError


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
    nll_timesteps: int | None = None  # that the bound is estimated from; None: all of them
    nll_ode_steps: int = 64  # of the likelihood by the ODE
    labels: str | None = None  # that a conditional model is asked for: "frequencies", those of the training data
    labels_sha256: str | None = None  # of the data's labels, by which a conditional model is asked
    captions_sha256: str | None = None  # of the data's captions, that a model is asked for which is conditioned on them
    held_out_samples: int | None = None  # drawn of captions that training has not seen
    judge: str | None = None  # the CLIP that measures models with captions: its name, and its weights' SHA-256
    judge_candidates: int | None = None  # captions that a sample's own is to be the best of
    lows: str | None = None  # of an upsampler: the split whose images it enlarges, and their size
    hints: str | None = None  # of a model with a control: the split whose hints it is shown, and what they are
    inpainted: int | None = None  # validation images of which a part is drawn again, of a model that was trained for it
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] | None = None  # shares of the process between which the scale holds
    control_scale: float = 1.0
    control_interval: tuple[float, float] | None = None  # shares of the process between which there is a control
    guess: bool = False
    churn: float = 0.0  # of heun, as the two below
    churn_interval: tuple[float, float] | None = None  # sigma between which there is churn
    churn_noise: float = 1.0
    langevin_steps: int = 5  # of langevin, as the one below
    langevin_epsilon: float | None = None
    clip_range: float | None = None  # what `clip` clips to; None: 1
    candidates: int = 1  # of a prior: embeddings drawn for each that is kept
    guide: str | None = None  # the model that guides, by its name and the start of its weights' SHA-256

    # Of a cascade, whose leading link has the fields above: by the other links' names, their plans and fixed inputs.
    other_plans: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that stand for all of it."""
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, Any]:
        """Every field, and the plan of each other link under the link's name. A field that was added later is left out
        at its default, so that the identifiers of protocols recorded before it existed stay what they are.
        """
        own = asdict(self)
        other_plans = own.pop("other_plans")
        later = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        return {name: value for name, value in own.items() if name not in later or value != later[name]} | other_plans


def other_links(protocol: Mapping[str, Any]) -> set[str]:
    """The links of a cascade with plans of their own, of what protocol.json says; none of a model."""
    return {name for name, value in protocol.items() if isinstance(value, Mapping)}


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


def differing_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Each field in which two protocols differ, as `field: before → after`; `id` only if nothing else does."""
    fields = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    for name in [name for name in fields if name != "id"] or fields:
        yield f"{name}: {_short(before.get(name))} → {_short(after.get(name))}"


def _short(value: Any) -> str:
    """A value as a reason quotes it; hashes by their first digits."""
    text = str(value)
    return text if len(text) <= 32 else f"{text[:12]}…"
