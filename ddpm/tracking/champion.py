"""Which version of a registered model is the champion: by the policy, by hand, and the one before it.

The alias `champion` says which it is. The registered model's tag `champions` holds those that were, oldest first and
the present one last, so that one can go back.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm.config.promotion import PromotionConfig
from ddpm.errors import UpstreamError, UserError
from ddpm.figures.promotion import Candidate, Decision, decide, measuring_again_helps
from ddpm.tracking.registry import HISTORY, PROMOTED, REFUSED, TAKEN_BACK, Registration, champions, describe, find
from ddpm.tracking.store import load_mlflow, one_at_a_time, store_answers, store_uri
from ddpm.tracking.version_records import figures_of

_ATTEMPTS = 5

# The tags with the numbers that a reason came of.
_FIGURES = {PROMOTED: "promotion_figures", REFUSED: "refusal_figures"}


@store_answers()
def promote(
    variant: str, root: Path = Path(), policy: PromotionConfig | None = None, *, obstacle: str | None = None
) -> Decision:
    """Make the variant's registered version champion if the policy says so; the decision becomes tags either way.

    Args:
        variant: a registered model of params.yaml.
        root: the project's folder.
        policy: None: the default one.
        obstacle: why the champion could not be measured as the challenger was, if somebody tried.

    Raises:
        UserError: the variant, as it is now, is not registered; or the champion has no figures.
        UpstreamError: the server does not answer, or others keep moving the alias.
    """
    challenger = _registered(variant, root)
    mlflow = load_mlflow(root)
    client = mlflow.MlflowClient()
    version = str(challenger.version)
    with one_at_a_time(root):
        for _ in range(_ATTEMPTS):
            champion = _champion(client, challenger.model)
            if champion == version:
                return _already(client, challenger.model, version)
            decision = _decide(mlflow, challenger.model, version, champion, policy)
            if obstacle and not decision.promote:
                decision = Decision(False, f"{decision.reason}; {obstacle}", decision.figures)
            _record(client, challenger.model, version, decision)
            if not decision.promote or _crown(client, challenger.model, version, champion):
                return decision
    raise UpstreamError(f"the champion of {challenger.model} keeps changing")


@store_answers()
def promote_by_hand(
    model: str, version: int, reason: str, root: Path = Path(), policy: PromotionConfig | None = None
) -> Decision:
    """Make a version champion whatever the policy says of it, and keep both the reason and the policy's.

    Args:
        policy: None: the default one.

    Raises:
        UserError: there is no such model or version.
        UpstreamError: the server does not answer, or another process is moving the alias.
    """
    mlflow = load_mlflow(root)
    client = mlflow.MlflowClient()
    _check_version(client, model, version, root)
    with one_at_a_time(root):
        champion = _champion(client, model)
        if champion == str(version):
            _delete_tags(client, model, champion, TAKEN_BACK)  # where an earlier call ended before this
            return Decision(True, "it is the champion already")
        try:
            verdict = _decide(mlflow, model, str(version), champion, policy)
        except UserError as error:  # it, or the champion, has no figures: somebody else registered it
            verdict = Decision(False, str(error))
        aside = "" if verdict.promote else f"; the policy would not have it: {verdict.reason}"
        decision = Decision(True, f"by hand: {reason}{aside}", verdict.figures)
        _record(client, model, str(version), decision)
        if not _crown(client, model, str(version), champion):
            raise UpstreamError(f"the champion of {model} has just changed")
        _delete_tags(client, model, str(version), TAKEN_BACK)
    return decision


@store_answers()
def rollback(model: str, reason: str, root: Path = Path()) -> Registration:
    """Give the alias back to the version that had it before; the policy does not promote the present one again.

    Returns:
        The version that is champion now.

    Raises:
        UserError: there is no such model, it has no champion, or there was none before.
        UpstreamError: the server does not answer, or another process is moving the alias.
    """
    client = load_mlflow(root).MlflowClient()
    known = _versions(client, model, root)
    with one_at_a_time(root):
        champion = _champion(client, model)
        if champion is None:
            raise UserError(f"{model} has no champion in {store_uri(root)}")
        history = [
            version
            for version in champions(client, model)
            if version in known and version != champion and TAKEN_BACK not in known[version].tags
        ]
        if not history:
            raise UserError(f"{model}: version {champion} is the champion, and there is none before it to go back to")
        with _taken_back(client, model, champion, reason) if champion in known else contextlib.nullcontext():
            if not _move(client, model, history[-1], champion):
                raise UpstreamError(f"the champion of {model} has just changed")
        client.set_registered_model_tag(model, HISTORY, json.dumps(history))
        return describe(client, client.get_model_version(model, history[-1]))


@store_answers()
def find_champion(model: str, root: Path = Path()) -> Registration | None:
    """The version with the alias `champion`, or None where there is no such model or no champion."""
    mlflow = load_mlflow(root)
    client = mlflow.MlflowClient()
    try:
        version = _champion(client, model)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return describe(client, _version(mlflow, model, version)) if version else None


@store_answers()
def champion_to_measure(variant: str, root: Path = Path(), *, own_plan: bool = True) -> Registration | None:
    """The champion, if the variant's version can be ranked against it only once it is measured under its protocol.

    Args:
        own_plan: whether models are measured each by its own sampling plan.
    """
    challenger = _registered(variant, root)
    mlflow = load_mlflow(root)
    client = mlflow.MlflowClient()
    champion = _champion(client, challenger.model)
    if champion is None:
        return None
    protocol = _candidate(mlflow, challenger.model, str(challenger.version)).protocol
    present = _candidate(mlflow, challenger.model, champion, protocol["id"]).protocol
    if not measuring_again_helps(present, protocol, own_plan=own_plan):
        return None
    return describe(client, _version(mlflow, challenger.model, champion))


@contextlib.contextmanager
def _taken_back(client: Any, model: str, version: str, reason: str) -> Iterator[None]:
    """Around moving the alias away from a version: say why, and no longer if the alias cannot be moved.

    The reason goes first: if this dies on the way, the next call does not go back to what was to be taken back.
    """
    client.set_model_version_tag(model, version, TAKEN_BACK, reason)
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # the reason for being here matters more
            if _champion(client, model) == version:
                _delete_tags(client, model, version, TAKEN_BACK)
        raise


def _registered(variant: str, root: Path) -> Registration:
    version = find(variant, root)
    if version is None:
        raise UserError(f"{variant} is not registered as it is now; run `ddpm register {variant}`")
    return version


def _versions(client: Any, model: str, root: Path) -> dict[str, Any]:
    """The versions of a registered model by their numbers."""
    found = {str(version.version): version for version in client.search_model_versions(f"name = '{model}'")}
    if not found:
        raise UserError(f"there is no registered model {model} in {store_uri(root)}")
    return found


def _check_version(client: Any, model: str, version: int, root: Path) -> None:
    known = _versions(client, model, root)
    if str(version) not in known:
        raise UserError(f"{model} has no version {version}; it has {', '.join(sorted(known, key=int))}")


def _version(mlflow: Any, model: str, version: str) -> Any:
    """A version that must be there: the champion, or one just registered.

    Raises:
        UserError: it was deleted, and an alias was left on it.
    """
    try:
        return mlflow.MlflowClient().get_model_version(model, version)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(
            f"{model} has no version {version} any more, though it is named as the champion; "
            "`ddpm promote --to VERSION --reason WHY` names another"
        ) from None


def _champion(client: Any, model: str) -> str | None:
    """The version that has the alias `champion`."""
    version = client.get_registered_model(model).aliases.get("champion")
    return None if version is None else str(version)


def _crown(client: Any, model: str, version: str, champion: str | None) -> bool:
    """Move the alias and remember from whom; False if it was not where it is said to be."""
    # The alias first: if this dies between the two, the next call finds the champion and adds the rest.
    if not _move(client, model, version, champion):
        return False
    history = champions(client, model)
    for each in (champion, version):
        if each is not None and history[-1:] != [each]:
            history.append(each)
    client.set_registered_model_tag(model, HISTORY, json.dumps(history))
    return True


def _move(client: Any, model: str, version: str, champion: str | None) -> bool:
    """Move the alias from `champion`, having looked right before and after that nobody else has."""
    if _champion(client, model) != champion:
        return False
    client.set_registered_model_alias(model, "champion", version)
    return _champion(client, model) == version


def _decide(mlflow: Any, model: str, version: str, champion: str | None, policy: PromotionConfig | None) -> Decision:
    challenger = _candidate(mlflow, model, version)
    against = _candidate(mlflow, model, champion, challenger.protocol["id"]) if champion else None
    return decide(challenger, against, policy or PromotionConfig())


def _candidate(mlflow: Any, model: str, version: str, protocol: str | None = None) -> Candidate:
    """What is known of a version, measured under this protocol if it was, else under its first."""
    found = _version(mlflow, model, version)
    figures = figures_of(mlflow, found, protocol)
    return Candidate(
        name=f"version {found.version}",
        metrics=figures.metrics,
        protocol=figures.protocol,
        parity_passed=found.tags.get("parity_passed") == "true",
        taken_back=found.tags.get(TAKEN_BACK),
    )


def _already(client: Any, model: str, version: str) -> Decision:
    """Of the champion itself: why it is, if that is known."""
    reason = client.get_model_version(model, version).tags.get(PROMOTED)
    decision = Decision(True, reason or "it is the champion already")
    if reason is None:  # somebody moved the alias in MLflow itself
        _record(client, model, version, decision)
    return decision


def _record(client: Any, model: str, version: str, decision: Decision) -> None:
    """Tag a version with a decision and its numbers.

    Why a version once became champion stays said, also when it comes again and is refused.
    """
    reason = PROMOTED if decision.promote else REFUSED
    figures = json.dumps(decision.figures, ensure_ascii=False)
    client.set_model_version_tag(model, version, _FIGURES[reason], figures)
    client.set_model_version_tag(model, version, reason, decision.reason)
    if decision.promote:
        _delete_tags(client, model, version, REFUSED, _FIGURES[REFUSED])


def _delete_tags(client: Any, model: str, version: str, *names: str) -> None:
    for name in client.get_model_version(model, version).tags.keys() & set(names):
        client.delete_model_version_tag(model, version, name)
