"""Which model version is the champion: a pure policy, applied by `ddpm.tracking`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# The metric that models are ranked by, of images and of other data, and what people call it.
_HEADLINES = {"fid": "FID", "wasserstein": "Wasserstein distance"}


def headline(metrics: Mapping[str, Any]) -> tuple[str, str]:
    """The key of the metric that models with these metrics are ranked by, and its name.

    Raises:
        KeyError: there is none.
    """
    for key, name in _HEADLINES.items():
        if key in metrics:
            return key, name
    raise KeyError(f"none of {', '.join(_HEADLINES)} among the metrics")


@dataclass(frozen=True)
class Candidate:
    """What the policy knows of a model version."""

    name: str
    """How a reason speaks of it, such as `version 3`."""
    score: float
    """The figure that models are ranked by, lower is better."""
    protocol: Mapping[str, Any]
    """How it was measured, field by field, its identifier under `id`."""
    parity_passed: bool
    """Whether the exported model was shown to be the trained one."""
    measure: str = "FID"
    """The figure's name; models of one protocol have one."""


@dataclass(frozen=True)
class Decision:
    """Whether the challenger becomes the champion, and why or why not, in one line."""

    promote: bool
    reason: str

    def __str__(self) -> str:
        return f"{'champion' if self.promote else 'not champion'}: {self.reason}"


def decide(challenger: Candidate, champion: Candidate | None) -> Decision:
    """Promote the first sound model, and after it each one with a lower figure under the champion's protocol.

    Figures measured under different protocols are never ranked; the reason then names the fields that differ.
    """
    if not challenger.parity_passed:
        return Decision(False, "the exported model was not shown to be the trained one")
    if not math.isfinite(challenger.score):
        return Decision(False, f"{challenger.measure} {challenger.score} is no figure")
    if champion is None:
        return Decision(True, f"{challenger.measure} {challenger.score:.4f}, the first version of this model")
    if differences := list(differing_fields(champion.protocol, challenger.protocol)):
        return Decision(
            False,
            f"not ranked: {challenger.measure} {challenger.score:.4f} and {champion.score:.4f} of {champion.name} "
            f"were measured under different protocols: {'; '.join(differences)}",
        )
    comparison = f"{challenger.score:.4f} against {champion.score:.4f} of {champion.name}"
    if challenger.score < champion.score:
        return Decision(True, f"lower {challenger.measure}: {comparison}")
    return Decision(False, f"no lower {challenger.measure}: {comparison}")


def differing_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Each field in which two protocols differ, as `field: before → after`; `id` only if nothing else does."""
    fields = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    for name in [name for name in fields if name != "id"] or fields:
        yield f"{name}: {_short(before.get(name))} → {_short(after.get(name))}"


def _short(value: Any) -> str:
    """A value as a reason quotes it; hashes by their first digits."""
    text = str(value)
    return text if len(text) <= 32 else f"{text[:12]}…"
