"""Figures that are in MLflow: how a model was evaluated, and how several compared."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm.errors import UserError
from ddpm.files import read_json
from ddpm.layout import COMPARISON_PAGE, COMPARISON_PICTURE, COMPARISON_RECORD
from ddpm.tracking.names import grouped
from ddpm.tracking.notes import NOTE, artifact, comparison_note
from ddpm.tracking.registry import find, named, pinned
from ddpm.tracking.runs import git_tags, log_metrics, milliseconds
from ddpm.tracking.stage_outputs import model_name
from ddpm.tracking.store import experiment_id, load_mlflow, store_answers
from ddpm.tracking.version_records import Figures, figures_of, figures_of_run, measured_protocols


@dataclass(frozen=True)
class Evaluation:
    """What MLflow has of a model's evaluation."""

    figures: Figures
    likelihood: str | None
    """nll.csv, if it has one under that protocol."""
    version: str | None
    """Such as `models:/ddpm-digits/3`; None where the URI names no registered model."""
    protocols: tuple[str, ...] = ()
    """Identifiers of all protocols that it has figures under, that of its registration first."""


@store_answers()
def evaluation_of(uri: str, root: Path = Path(), protocol: str | None = None) -> Evaluation:
    """The figures of a model that `resolve` finds.

    Args:
        protocol: identifier of the protocol whose figures to read; those of its registration where this is None, or
            the model was not measured under it.

    Raises:
        UserError: no such model, or no figures of it.
        UpstreamError: the server does not answer.
    """
    mlflow = load_mlflow(root)
    client = mlflow.MlflowClient()
    with named(uri, mlflow, root):
        run_id, version = _origin(client, pinned(uri, root))
    figures = figures_of(mlflow, version, protocol) if version else figures_of_run(mlflow, run_id, uri)
    # The likelihood takes the trained network: it was bounded once, under the protocol of the registration.
    first = version is None or figures.protocol["id"] == version.tags.get("protocol")
    files = {file.path for file in client.list_artifacts(run_id)} if first else set()
    return Evaluation(
        figures=figures,
        likelihood=mlflow.artifacts.load_text(f"runs:/{run_id}/nll.csv") if "nll.csv" in files else None,
        version=f"models:/{version.name}/{version.version}" if version else None,
        protocols=measured_protocols(version.tags) if version else (figures.protocol["id"],),
    )


def _origin(client: Any, uri: str) -> tuple[str, Any | None]:
    """The run that a model came of, and its version in MLflow; of a URI that names neither alias nor `latest`."""
    scheme, _, name = uri.partition(":/")
    if scheme == "runs":
        return name.strip("/").partition("/")[0], None
    if match := re.fullmatch(r"(?P<model>[^/]+)/(?P<version>\d+)", name):
        version = client.get_model_version(match["model"], match["version"])
        return version.run_id, version
    return client.get_logged_model(name).source_run_id, None


@store_answers()
def log_comparison(directory: Path, root: Path = Path()) -> str:
    """Log what `ddpm compare` wrote as a run: the page, its numbers, the curves over the steps. Returns its identifier.

    The tags `compared`, `versions` and `protocols` say what was compared.
    """
    record = read_json(directory / COMPARISON_RECORD)
    client = load_mlflow(root).MlflowClient()
    experiment = experiment_id(load_mlflow(root), model_name(root), root)
    names = [model["name"] for model in record["models"]]
    tags = {
        "compared": ", ".join(names),
        "versions": ", ".join(filter(None, (_version(model, root) for model in record["models"]))),
        "protocols": ", ".join(record["protocols"]),
        **git_tags(root),
    }
    run_id = client.create_run(experiment, run_name=f"compare {', '.join(names)}", tags=tags).info.run_id
    try:
        _log(client, run_id, experiment, directory, record)
    except BaseException:
        with contextlib.suppress(Exception):  # the reason for being here matters more
            client.set_terminated(run_id, status="FAILED")
        raise
    client.set_terminated(run_id)
    return run_id


def _log(client: Any, run_id: str, experiment: str, directory: Path, record: Mapping[str, Any]) -> None:
    measured, now = record["over_steps"], milliseconds()
    points = [
        (now, int(steps), grouped(f"{measured['figure']}_over_steps", {_plain(name): value}))
        for name, curve in measured["curves"].items()
        for steps, value in curve
    ]
    log_metrics(client, run_id, points)
    client.log_artifacts(run_id, str(directory))
    page = f"#/experiments/{experiment}/runs/{run_id}/artifacts/{COMPARISON_PAGE}"
    client.set_tag(run_id, NOTE, comparison_note(record, page=page, picture=artifact(COMPARISON_PICTURE, run_id)))


def _version(model: Mapping[str, Any], root: Path) -> str | None:
    """The registered version that was compared, also where it was named by its variant."""
    if model["version"]:
        return model["version"]
    with contextlib.suppress(UserError):  # it is no variant, or a stage of it has not run
        found = find(model["model"], root)
        return found.uri if found else None
    return None


def _plain(name: str) -> str:
    """A name without what MLflow refuses in its keys, such as the @ of an alias."""
    return re.sub(r"[^-\w. /]", "_", name)
