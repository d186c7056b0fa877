"""What is recorded of a model version: its figures under each protocol, and what it drew when it was registered."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm.deploy.integrity import Fingerprint
from ddpm.errors import UserError
from ddpm.figures.figure import OTHER_LINKS
from ddpm.figures.protocol import other_links
from ddpm.tracking.faults import first_line, may_pass
from ddpm.tracking.names import PROTOCOL, evaluation, evaluation_among
from ddpm.tracking.registry import FINGERPRINT, Registration
from ddpm.tracking.runs import log_metrics, milliseconds
from ddpm.tracking.store import load_mlflow, store_answers

_MEASURED = "measured."
_OF_A_STEP = ("sampler", "guide", "guidance_scale", "guidance_interval")  # of a protocol: what decides a step's cost


@dataclass(frozen=True)
class Figures:
    """The figures of a model version, and the protocol they were measured under."""

    metrics: Mapping[str, float]
    protocol: Mapping[str, Any]


@store_answers()
def recorded_figures(version: Registration, protocol: str, root: Path = Path()) -> Figures:
    """A version's figures under the protocol with this identifier; those of its registration where there are none."""
    mlflow = load_mlflow(root)
    return figures_of(mlflow, mlflow.MlflowClient().get_model_version(version.model, str(version.version)), protocol)


def figures_of(mlflow: Any, version: Any, protocol: str | None = None) -> Figures:
    """`recorded_figures` of a version as MLflow answers with it.

    Raises:
        UserError: it has none; somebody else than `register` made it.
    """
    run_id = version.tags.get(_measured_under(protocol), version.run_id)
    return figures_of_run(mlflow, run_id, f"models:/{version.name}/{version.version}")


def figures_of_run(mlflow: Any, run_id: str | None, name: str) -> Figures:
    """The figures that a run logged, and their protocol.

    Args:
        name: what messages call the model.

    Raises:
        UserError: there are none.
    """
    client = mlflow.MlflowClient()
    try:
        files = {file.path for file in client.list_artifacts(run_id)} if run_id else set()
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(f"{name} has no recorded figures any more: its run {run_id} was deleted") from None
    # Before its file had a name of its own here, it had that of reports/.
    named = next((file for file in (PROTOCOL, "protocol.json") if file in files), None)
    if run_id is None or named is None:
        raise UserError(f"{name} has no recorded figures")
    return Figures(
        metrics=evaluation_among(client.get_run(run_id).data.metrics),
        protocol=mlflow.artifacts.load_dict(f"runs:/{run_id}/{named}"),
    )


@store_answers()
def log_measurement(version: Registration, figures: Figures, root: Path = Path()) -> None:
    """Log a version's figures under another protocol than at its registration, as a run below its own.

    What an image costs, which takes the trained network to count, is carried over where it follows from the steps.
    """
    mlflow = load_mlflow(root)
    client = mlflow.MlflowClient()
    own = client.get_run(version.run_id).info
    protocol = figures.protocol["id"]
    run_id = client.create_run(
        own.experiment_id,
        run_name=f"version {version.version} measured under {protocol}",
        tags={"mlflow.parentRunId": own.run_id, "protocol": protocol, "model_version": version.uri},
    ).info.run_id
    metrics = {**_cost(figures_of_run(mlflow, version.run_id, version.uri), figures.protocol), **figures.metrics}
    log_metrics(client, run_id, [(milliseconds(), 0, evaluation(metrics))])
    client.log_dict(run_id, dict(figures.protocol), PROTOCOL)
    client.set_terminated(run_id)
    client.set_model_version_tag(version.model, str(version.version), _measured_under(protocol), run_id)


def _cost(recorded: Figures, protocol: Mapping[str, Any]) -> dict[str, float]:
    """GFLOP an image under another protocol: a step costs what it did, and so do the links of a cascade that have plans
    of their own. Nothing where that is not known, or where a step costs something else by its sampler or guidance.
    """
    cost, steps = recorded.metrics.get("gflops_per_image"), recorded.protocol.get("steps")
    others = recorded.metrics.get(OTHER_LINKS, None if other_links(recorded.protocol) else 0.0)
    alike = all(recorded.protocol.get(name) == protocol.get(name) for name in _OF_A_STEP)
    if cost is None or steps is None or others is None or not alike:
        return {}
    carried = {"gflops_per_image": others + (cost - others) * protocol["steps"] / steps}
    return {**carried, OTHER_LINKS: others} if others else carried


def _measured_under(protocol: str | None) -> str:
    """The tag that names the run with a version's figures under a protocol that is not its first."""
    return f"{_MEASURED}{protocol}"


def measured_protocols(tags: Mapping[str, str]) -> tuple[str, ...]:
    """The protocols that a version with these tags has figures under, that of its registration first."""
    again = sorted(name.removeprefix(_MEASURED) for name in tags if name.startswith(_MEASURED))
    return (*([tags["protocol"]] if "protocol" in tags else []), *again)


@store_answers()
def recorded_fingerprint(version: Registration, root: Path = Path()) -> Fingerprint | None:
    """What a version was when it was registered; None where that was before fingerprints were taken.

    Raises:
        UserError: its samples of then are lost or damaged.
        UpstreamError: the server does not answer.
    """
    mlflow = load_mlflow(root)
    tags = mlflow.MlflowClient().get_model_version(version.model, str(version.version)).tags
    if "files" not in tags:
        return None
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = mlflow.artifacts.download_artifacts(f"runs:/{version.run_id}/{FINGERPRINT}", dst_path=folder)
            samples = np.load(path)
    except Exception as error:  # what a damaged file leads to depends on the damage
        if may_pass(error):
            raise
        raise UserError(
            f"{FINGERPRINT}, what it drew at its registration, cannot be read: {first_line(error)}"
        ) from None
    return Fingerprint(json.loads(tags["files"]), samples, tags["runtime"])
