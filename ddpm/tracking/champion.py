"""Which version of a registered model is the champion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddpm.errors import UserError
from ddpm.promotion import Candidate, Decision, decide, headline
from ddpm.tracking.registry import find
from ddpm.tracking.store import load_mlflow, store_answers


@store_answers()
def promote(variant: str, root: Path = Path()) -> Decision:
    """Make the variant's registered version champion if the policy says so; the reason becomes a tag either way.

    Raises:
        UserError: the variant, as it is now, is not registered.
    """
    challenger = find(variant, root)
    if challenger is None:
        raise UserError(f"{variant} is not registered as it is now; run `ddpm register {variant}`")
    mlflow = load_mlflow(root)
    client = mlflow.MlflowClient()
    champion = champion_of(client, challenger.model)
    version = str(challenger.version)
    if champion == version:
        decision = Decision(True, challenger.reason or "it is the champion already")
    else:
        decision = decide(
            _candidate(mlflow, client, challenger.model, version),
            _candidate(mlflow, client, challenger.model, champion) if champion else None,
        )
    # The alias first: if this dies between the two, the next call finds the champion and adds the tag.
    if decision.promote:
        client.set_registered_model_alias(challenger.model, "champion", version)
    # Why a version once became champion stays said, also when it comes again and is refused.
    tag = "promotion_reason" if decision.promote or challenger.reason is None else "refusal_reason"
    client.set_model_version_tag(challenger.model, version, tag, decision.reason)
    return decision


def champion_of(client: Any, model: str) -> str | None:
    """The version that has the alias `champion`."""
    version = client.get_registered_model(model).aliases.get("champion")
    return None if version is None else str(version)


def _candidate(mlflow: Any, client: Any, model: str, version: str) -> Candidate:
    found = client.get_model_version(model, version)
    metrics = client.get_run(found.run_id).data.metrics
    key, measure = headline(metrics)
    return Candidate(
        name=f"version {found.version}",
        score=metrics[key],
        measure=measure,
        protocol=mlflow.artifacts.load_dict(f"runs:/{found.run_id}/protocol.json"),
        parity_passed=found.tags.get("parity_passed") == "true",
    )
