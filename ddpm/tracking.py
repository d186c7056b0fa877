"""The one door to MLflow: runs, the model registry, and which version is the champion.

Runs and models are kept in SQLite and files under `mlflow/`, or by the server that MLFLOW_TRACKING_URI names. MLflow
is imported when a function here first needs it, so that everything else works without it.
"""

from __future__ import annotations

import atexit
import contextlib
import csv
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddpm.errors import UpstreamError, UserError
from ddpm.files import read_json, sha256_of
from ddpm.layout import DEPLOY, MODELS, PREPARED, REPORTS
from ddpm.promotion import Candidate, Decision, decide, headline

logger = logging.getLogger(__name__)

Metrics = Mapping[str, float]

# The environment variable by which MLflow itself hands a run on to a child process.
RUN_ID = "MLFLOW_RUN_ID"

# The stages whose entries in dvc.lock, together, say everything that a model version came of.
_LINEAGE = ("prepare", "train@{variant}", "evaluate@{variant}", "export@{variant}")

# What the exported model needs to sample, besides this package.
_REQUIREMENTS = ("numpy", "onnxruntime", "pandas")

_BATCH = 1000  # metrics a request, the most that MLflow takes

# Of MLflow itself, where the environment does not say otherwise.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Seven, its default, are four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}


# --- The store ------------------------------------------------------------------------------------------------------


def store_uri(root: Path = Path()) -> str:
    """Where MLflow keeps its records: MLFLOW_TRACKING_URI, else the project's own SQLite file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(root / 'mlflow' / 'mlflow.db').absolute()}"


def load_mlflow(root: Path = Path()) -> Any:
    """The mlflow package, set to the project's store and silent towards the outside.

    Raises:
        UserError: mlflow is not installed.
    """
    for variable, value in _SETTINGS.items():
        os.environ.setdefault(variable, value)
    try:
        import mlflow

        given, uri = os.environ.get("MLFLOW_TRACKING_URI"), store_uri(root)
        if uri.startswith("sqlite:"):
            (root / "mlflow").mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(uri)
        if not given:
            # MLflow has set it by now; but the user named no server.
            os.environ.pop("MLFLOW_TRACKING_URI", None)
    except (ModuleNotFoundError, AttributeError):
        # Without the library, `import mlflow` may find the project's folder of that name, which has no such function.
        raise UserError("mlflow is not installed: pip install 'ddpm[pipeline]'") from None
    return mlflow


@contextlib.contextmanager
def _store_answers() -> Iterator[None]:
    """Around a function: say in one line that the tracking server does not answer, and that another try may help."""
    try:
        yield
    except Exception as error:
        if not _is_connection_failure(error):
            raise
        raise UpstreamError(f"MLflow does not answer at {store_uri()}") from None


def _is_connection_failure(error: BaseException | None) -> bool:
    """Whether an error came of one of the network's. MLflow wraps those in its own."""
    from requests import ConnectionError, Timeout

    while error is not None:
        if isinstance(error, ConnectionError | Timeout):
            return True
        error = error.__cause__ or error.__context__
    return False


def _experiment(mlflow: Any, name: str, root: Path) -> str:
    """The identifier of the experiment of that name, made if absent, restored if it was deleted."""
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server has its own place for files; the project's store keeps them beside its database.
        local = store_uri(root).startswith("sqlite:")
        return client.create_experiment(
            name,
            artifact_location=(root / "mlflow" / "artifacts" / name).absolute().as_uri() if local else None,
            # Else MLflow's pages take it for an experiment with language models.
            tags={"mlflow.experimentKind": "custom_model_development"},
        )
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


# --- Runs -----------------------------------------------------------------------------------------------------------


@_store_answers()
def start_run(variant: str, root: Path = Path()) -> str:
    """Open a run for a training that is about to start; its identifier goes to the child as MLFLOW_RUN_ID."""
    mlflow = load_mlflow(root)
    client = mlflow.MlflowClient()
    experiment = _experiment(mlflow, model_name(root), root)
    name = f"{variant} {time.strftime('%Y-%m-%d %H:%M')}"
    return client.create_run(experiment, run_name=name, tags={"variant": variant, **_git_tags(root)}).info.run_id


def end_run(run_id: str, status: str, root: Path = Path()) -> None:
    """Close a run that ended before its model was registered: `FAILED` or `KILLED`."""
    load_mlflow(root).MlflowClient().set_terminated(run_id, status=status)


@_store_answers()
def log_study(
    name: str,
    parameters: Mapping[str, Any],
    points: Iterable[tuple[int, Metrics]],
    files: Iterable[Path],
    root: Path = Path(),
) -> str:
    """Record a finished study of many models as one run, in an experiment of its own.

    Args:
        name: the experiment's, as `ddpm-<name>`.
        parameters: nested; logged flat.
        points: (step, metrics).
        files: artifacts.

    Returns:
        The run's identifier.
    """
    mlflow = load_mlflow(root)
    from mlflow.entities import Param

    client = mlflow.MlflowClient()
    experiment = _experiment(mlflow, f"ddpm-{name}", root)
    run_name = f"{name} {time.strftime('%Y-%m-%d %H:%M')}"
    run_id = client.create_run(experiment, run_name=run_name, tags=_git_tags(root)).info.run_id
    client.log_batch(run_id, params=[Param(key, value) for key, value in _flatten(dict(parameters))])
    now = _now()
    _log_metrics(client, run_id, [(now, step, metrics) for step, metrics in points])
    for file in files:
        client.log_artifact(run_id, str(file))
    client.set_terminated(run_id)
    return run_id


def run_url(run_id: str, root: Path = Path()) -> str:
    """The page of a run: on the tracking server, or on the one that `make serve` starts."""
    experiment = load_mlflow(root).MlflowClient().get_run(run_id).info.experiment_id
    return f"{ui_url(root)}/#/experiments/{experiment}/runs/{run_id}"


def ui_url(root: Path = Path()) -> str:
    """The address of MLflow's pages: the tracking server's, or that of the one that `make serve` starts.

    MLFLOW_UI_URL wins: a browser may know the server by another name than a client inside a container network.
    """
    if pages := os.environ.get("MLFLOW_UI_URL"):
        return pages.rstrip("/")
    uri = store_uri(root)
    return uri.rstrip("/") if uri.startswith("http") else f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT', 5000)}"


@contextlib.contextmanager
def live_curve(root: Path = Path()) -> Iterator[Callable[[int, Metrics], None]]:
    """Within the block, the function yielded adds a step's metrics to the run that MLFLOW_RUN_ID names.

    It returns at once and never fails: a training does not wait for its observer. The speed, in steps a second, and
    the machine's load are logged beside. Without MLFLOW_RUN_ID the function does nothing; what a server missed is
    logged when the model is registered.
    """
    run_id = os.environ.get(RUN_ID)
    if not run_id:
        yield lambda step, metrics: None
        return
    # A server that does not answer is given up soon.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    points: queue.SimpleQueue[tuple[int, int, Metrics] | None] = queue.SimpleQueue()
    sender = threading.Thread(target=_send, args=(run_id, points, root), name="live-curve", daemon=True)
    sender.start()
    try:
        yield lambda step, metrics: points.put((_now(), step, dict(metrics)))
    finally:
        points.put(None)
        sender.join(timeout=20)


def _send(run_id: str, points: queue.SimpleQueue[tuple[int, int, Metrics] | None], root: Path) -> None:
    """Log points until there comes None."""
    try:
        client = load_mlflow(root).MlflowClient()
        client.update_run(run_id, status="RUNNING")
        with _machine_load(run_id):
            before: tuple[int, int] | None = None
            while point := points.get():
                moment, step, metrics = point
                if before and moment > before[0]:
                    metrics = {**metrics, "steps_per_second": 1000 * (step - before[1]) / (moment - before[0])}
                _log_metrics(client, run_id, [(moment, step, metrics)])
                before = moment, step
    except Exception as error:  # whatever it is, it is not the training's affair
        first_line = str(error).partition("\n")[0]
        logger.warning("the curve cannot be sent to MLflow (%s); training goes on without", first_line)


@contextlib.contextmanager
def _machine_load(run_id: str) -> Iterator[None]:
    """Log the load of CPU, memory, disk and GPU to a run, every ten seconds."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def _log_metrics(client: Any, run_id: str, points: list[tuple[int, int, Metrics]]) -> None:
    """Log (milliseconds since 1970, step, metrics) points; a value that is no number is left out."""
    from mlflow.entities import Metric

    batch = [
        Metric(key, float(value), moment, step)
        for moment, step, metrics in points
        for key, value in metrics.items()
        if math.isfinite(value)
    ]
    for first in range(0, len(batch), _BATCH):
        client.log_batch(run_id, metrics=batch[first : first + _BATCH])


def _now() -> int:
    return int(time.time() * 1000)


def _git_tags(root: Path) -> dict[str, str]:
    """The commit, and whether the tracked files differ from it; empty outside a git repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"mlflow.source.name": "ddpm", "mlflow.source.git.commit": commit, "git_dirty": str(dirty).lower()}


# --- What the stages left -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outputs:
    """A variant's finished stages, as far as MLflow shall know of them."""

    variant: str
    root: Path
    card: dict[str, Any]
    manifest: dict[str, Any]
    metrics: dict[str, float]
    protocol: dict[str, Any]
    sampling: dict[str, Any]
    parity: dict[str, Any]
    lineage: str

    @classmethod
    def read(cls, variant: str, root: Path) -> Outputs:
        """Read what train, evaluate and export wrote.

        Raises:
            UserError: a stage has not run, or the exported model is not the trained one.
        """
        reports, deploy = root / REPORTS / variant, root / DEPLOY / variant
        metrics = _read(reports / "metrics.json", f"evaluate@{variant}")
        outputs = cls(
            variant=variant,
            root=root,
            card=_read(root / MODELS / variant / "model.json", f"train@{variant}"),
            manifest=_read(root / PREPARED / "manifest.json", "prepare"),
            metrics={key: value for key, value in metrics.items() if isinstance(value, int | float)},
            protocol=_read(reports / "protocol.json", f"evaluate@{variant}"),
            sampling=_read(deploy / "sampler.json", f"export@{variant}")["sampling"],
            parity=_read(deploy / "parity.json", f"export@{variant}"),
            lineage=lineage_of(variant, root),
        )
        if not outputs.parity["passed"]:
            raise UserError(
                f"{deploy / 'parity.json'}: the exported model differs from the trained one by "
                f"{outputs.parity['max_abs_difference']}, more than {outputs.parity['tolerance']}; it is not registered"
            )
        return outputs

    def parameters(self) -> dict[str, str]:
        """Every knob that made the model and its figures, flat: `training.learning_rate`, `protocol.steps`, …"""
        card = self.card
        trained = {key: card["training"][key] for key in ("seed", "precision", "device", "torch", "images_seen")}
        parts = {"data": card["data"], "trained": trained, "parameters": card["parameters"], "protocol": self.protocol}
        # The card's own sampling options are those of the time of training.
        return dict(_flatten({**card["config"], "sampling": self.sampling, **parts}))

    def curve(self) -> list[tuple[int, Metrics]]:
        """The loss curve: a step and its metrics a row."""
        with (self.root / MODELS / self.variant / "loss.csv").open(newline="", encoding="utf-8") as stream:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]
        return [(int(row.pop("step")), row) for row in rows]


def _read(path: Path, stage: str) -> dict[str, Any]:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `dvc repro {stage}`") from None
    except ValueError:
        raise UserError(f"{path}: damaged; run `dvc repro --force --single-item {stage}`") from None


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested dictionaries under dotted names, as MLflow's parameters want them."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


def lineage_of(variant: str, root: Path = Path()) -> str:
    """A hash of everything a variant came of: the entries of its stages in dvc.lock.

    An imported model came of no stage; it is told by its own files, its figures' and its export's.

    Raises:
        UserError: dvc.lock lacks a stage.
    """
    import yaml

    card = root / MODELS / variant / "model.json"
    if card.is_file() and _read(card, f"train@{variant}")["training"].get("weights") == "imported":
        folders = (root / folder / variant for folder in (MODELS, REPORTS, DEPLOY))
        files = [path for folder in folders for path in sorted(folder.iterdir())]
        hashes = {path.relative_to(root).as_posix(): sha256_of(path) for path in files}
        return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
    path = root / "dvc.lock"
    stages = (yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}).get("stages", {})
    names = [name.format(variant=variant) for name in _LINEAGE]
    for name in names:
        if name not in stages:
            raise UserError(f"{path}: no entry for {name}; run `dvc repro {name}`")
    canonical = json.dumps({name: stages[name] for name in names}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def model_name(root: Path = Path()) -> str:
    """The registered model's name, and the experiment's: `ddpm-<dataset>`."""
    return f"ddpm-{_read(root / PREPARED / 'manifest.json', 'prepare')['name']}"


# --- The registry ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Registration:
    """A version of a registered model."""

    model: str
    version: int
    run_id: str
    aliases: tuple[str, ...]
    reason: str | None
    """Why it was or was not made champion; None until that was decided."""
    created: bool = False
    """Whether this call made it; False where a version with the same lineage was there."""

    @property
    def uri(self) -> str:
        return f"models:/{self.model}/{self.version}"

    def __str__(self) -> str:
        state = "registered" if self.created else "already registered, nothing has changed since"
        aliases = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return f"{self.uri}{aliases}: {state}"


@_store_answers()
def find(variant: str, root: Path = Path()) -> Registration | None:
    """The version that came of exactly what dvc.lock has for the variant, or None.

    Raises:
        UserError: a stage of the variant has not run.
    """
    lineage = lineage_of(variant, root)
    client = load_mlflow(root).MlflowClient()
    name = model_name(root)
    for version in client.search_model_versions(f"name = '{name}' and tags.lineage = '{lineage}'"):
        return _describe(client, version)
    return None


def _describe(client: Any, version: Any) -> Registration:
    # The search leaves the aliases out of its answers.
    version = client.get_model_version(version.name, version.version)
    return Registration(
        model=version.name,
        version=int(version.version),
        run_id=version.run_id,
        aliases=tuple(sorted(version.aliases)),
        reason=version.tags.get("promotion_reason"),
    )


@_store_answers()
def register(variant: str, root: Path = Path(), run_id: str | None = None) -> Registration:
    """Log a variant's model and all that is known of it, as a new version with the alias `challenger`.

    Where a version of the same lineage is there already, that one is returned and nothing is logged.

    Args:
        variant: a model that was trained, evaluated and exported.
        root: the project's folder.
        run_id: the run that its training was logged to; None: a new one.

    Raises:
        UserError: a stage has not run, or the exported model is not the trained one.
        UpstreamError: the server does not answer.
    """
    outputs = Outputs.read(variant, root)
    if found := find(variant, root):
        return found
    mlflow = load_mlflow(root)
    client = mlflow.MlflowClient()
    with mlflow.start_run(run_id=run_id or start_run(variant, root)) as run:
        model_id = _log_model(mlflow, outputs)
        _log_outputs(mlflow, client, run.info.run_id, outputs, model_id)
    made = mlflow.register_model(f"models:/{model_id}", model_name(root), tags=_version_tags(outputs))
    client.set_registered_model_alias(made.name, "challenger", made.version)
    return replace(_describe(client, made), run_id=run.info.run_id, created=True)


def _log_model(mlflow: Any, outputs: Outputs) -> str:
    """Log the deploy directory as a pyfunc model written as code; returns its identifier."""
    import numpy as np
    import pandas as pd  # type: ignore[import-untyped]
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema, TensorSpec

    import ddpm

    package = Path(ddpm.__file__).parent
    request = [
        ColSpec("long", "n"),
        ColSpec("long", "seed", required=False),
        ColSpec("string", "sampler", required=False),
        ColSpec("long", "steps", required=False),
        ColSpec("double", "eta", required=False),
    ]
    dtype = np.uint8 if outputs.manifest.get("kind", "images") == "images" else np.float32
    images = TensorSpec(np.dtype(dtype), (-1, *outputs.manifest["shape"]))
    return mlflow.pyfunc.log_model(
        name=outputs.variant,
        python_model=str(package / "deploy" / "pyfunc.py"),
        artifacts={"deploy": str(outputs.root / DEPLOY / outputs.variant)},
        code_paths=[str(package)],
        signature=ModelSignature(inputs=Schema(request), outputs=Schema([images])),
        input_example=pd.DataFrame({"n": [4], "seed": [0]}),
        pip_requirements=_pinned(_REQUIREMENTS),
    ).model_id


def _pinned(modules: tuple[str, ...]) -> list[str]:
    """The installed versions of what provides these modules, as requirements."""
    providers = importlib.metadata.packages_distributions()
    distributions = [providers[module][0] for module in modules]
    return [f"{name}=={importlib.metadata.version(name)}" for name in distributions]


def _log_outputs(mlflow: Any, client: Any, run_id: str, outputs: Outputs, model_id: str) -> None:
    """Log parameters, figures, the curve, pictures and the data of the active run."""
    mlflow.log_params(outputs.parameters())
    mlflow.log_metrics(outputs.metrics, model_id=model_id)
    mlflow.log_metrics({"parity_max_abs_difference": outputs.parity["max_abs_difference"]}, model_id=model_id)
    mlflow.set_tags(_version_tags(outputs))
    lock = outputs.root / "dvc.lock"
    if lock.is_file():  # else the model was imported, and its stages run by hand
        mlflow.set_tag("dvc.lock", sha256_of(lock))
        mlflow.log_artifact(str(lock))
    logged = {metric.step for metric in client.get_metric_history(run_id, "loss")}
    now = _now()
    _log_metrics(client, run_id, [(now, step, row) for step, row in outputs.curve() if step not in logged])
    reports = outputs.root / REPORTS / outputs.variant
    for name in ("samples.png", "denoising.png", "protocol.json"):
        mlflow.log_artifact(str(reports / name))
    _log_data(mlflow, outputs)


def _log_data(mlflow: Any, outputs: Outputs) -> None:
    """Name the training data, and its hash, as the run's input."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    split = outputs.manifest["splits"]["train"]
    source = CodeDatasetSource(tags={"source": outputs.manifest["source"], "train_sha256": split["sha256"]})
    # MLflow's digests have at most 36 characters; the tag above has all of them.
    dataset = MetaDataset(source, name=outputs.manifest["name"], digest=split["sha256"][:16])
    mlflow.log_input(dataset, context="training")


def _version_tags(outputs: Outputs) -> dict[str, str]:
    return {
        "variant": outputs.variant,
        "lineage": outputs.lineage,
        "protocol": outputs.protocol["id"],
        "data_sha256": outputs.manifest["splits"]["train"]["sha256"],
        "parity_passed": str(outputs.parity["passed"]).lower(),
    }


@_store_answers()
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
    champion = _champion(client, challenger.model)
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


def _champion(client: Any, model: str) -> str | None:
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


@_store_answers()
def resolve(uri: str, root: Path = Path()) -> Path:
    """The deploy directory within a logged model: `models:/ddpm-digits@champion`, `models:/ddpm-digits/3`, …

    From a server the model is downloaded to a directory that lasts as long as this process.

    Raises:
        UserError: no such model, or not one of this project's.
        UpstreamError: the server does not answer.
    """
    mlflow = load_mlflow(root)
    destination = None
    if not store_uri(root).startswith("sqlite:"):
        destination = tempfile.mkdtemp(prefix="ddpm-model-")
        atexit.register(shutil.rmtree, destination, ignore_errors=True)
    try:
        directory = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=destination))
        flavor = mlflow.models.Model.load(str(directory)).flavors["python_function"]
        return directory / flavor["artifacts"]["deploy"]["path"]
    except (mlflow.MlflowException, OSError) as error:
        if _is_connection_failure(error):
            raise
        first_line = str(error).partition("\n")[0]
        raise UserError(f"{uri}: no such model in {store_uri(root)}: {first_line}") from None
    except KeyError:
        raise UserError(f"{uri}: not a model that `ddpm register` made") from None
