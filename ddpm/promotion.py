"""Which model version is the champion: a pure policy, applied by `ddpm.tracking`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """What the policy knows of a model version."""

    name: str
    """How a reason speaks of it, such as `version 3`."""
    fid: float
    """Fréchet inception distance, lower is better."""
    protocol: Mapping[str, Any]
    """How the FID was measured, field by field, its identifier under `id`."""
    parity_passed: bool
    """Whether the exported model was shown to be the trained one."""


@dataclass(frozen=True)
class Decision:
    """Whether the challenger becomes the champion, and why or why not, in one line."""

    promote: bool
    reason: str

    def __str__(self) -> str:
        return f"{'champion' if self.promote else 'not champion'}: {self.reason}"


def decide(challenger: Candidate, champion: Candidate | None) -> Decision:
    """Promote the first sound model, and after it each one with a lower FID under the champion's protocol.

    Figures measured under different protocols are never ranked; the reason then names the fields that differ.
    """
    if not challenger.parity_passed:
        return Decision(False, "the exported model was not shown to be the trained one")
    if not math.isfinite(challenger.fid):
        return Decision(False, f"FID {challenger.fid} is no figure")
    if champion is None:
        return Decision(True, f"FID {challenger.fid:.4f}, the first version of this model")
    if differences := list(differing_fields(champion.protocol, challenger.protocol)):
        return Decision(
            False,
            f"not ranked: FID {challenger.fid:.4f} and {champion.fid:.4f} of {champion.name} were measured under "
            f"different protocols: {'; '.join(differences)}",
        )
    comparison = f"{challenger.fid:.4f} against {champion.fid:.4f} of {champion.name}"
    if challenger.fid < champion.fid:
        return Decision(True, f"lower FID: {comparison}")
    return Decision(False, f"no lower FID: {comparison}")


def differing_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Each field in which two protocols differ, as `field: before → after`; `id` only if nothing else does."""
    fields = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    for name in [name for name in fields if name != "id"] or fields:
        yield f"{name}: {_short(before.get(name))} → {_short(after.get(name))}"


def _short(value: Any) -> str:
    """A value as a reason quotes it; hashes by their first digits."""
    text = str(value)
    return text if len(text) <= 32 else f"{text[:12]}…"
