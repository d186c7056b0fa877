"""The model registry: one version for each model that came of something new."""

from __future__ import annotations

import atexit
import contextlib
import importlib.metadata
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ddpm.conditioning.columns import NAMES, PICTURE_NAMES
from ddpm.deploy.integrity import Fingerprint
from ddpm.errors import UserError
from ddpm.figures.figure import extractor_name
from ddpm.files import sha256_of
from ddpm.layout import DEPLOY, REPORTS
from ddpm.tracking.faults import first_line, may_pass
from ddpm.tracking.names import PROTOCOL, evaluation, grouped
from ddpm.tracking.notes import NOTE, run_note
from ddpm.tracking.runs import log_metrics, milliseconds, start_run
from ddpm.tracking.stage_outputs import Outputs, credit_tag, lineage_of, model_name
from ddpm.tracking.store import is_local, load_mlflow, store_answers, store_uri

# The artifact with what the exported model drew from fixed noise.
FINGERPRINT = "fingerprint.npy"

# Tags of a version: why it became champion, why at last it did not, and why it no longer is.
PROMOTED, REFUSED, TAKEN_BACK = "promotion_reason", "refusal_reason", "taken_back"

# The tag of a registered model with the versions that were champion, oldest first.
HISTORY = "champions"

# By which MLflow says that a name, a version, an alias or a file of a model is not there.
_NO_SUCH_MODEL = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")

# What the exported model needs to sample, besides this package.
_REQUIREMENTS = ("PIL", "numpy", "onnxruntime", "pandas")


@dataclass(frozen=True)
class Registration:
    """A version of a registered model."""

    model: str
    version: int
    run_id: str
    aliases: tuple[str, ...]
    reason: str | None
    """Why it was or was not made champion, or why it no longer is; None until that was decided."""
    created: bool = False
    """Whether this call made it; False where a version with the same lineage was there."""

    @property
    def uri(self) -> str:
        return f"models:/{self.model}/{self.version}"

    def __str__(self) -> str:
        state = "registered" if self.created else "already registered, nothing has changed since"
        aliases = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return f"{self.uri}{aliases}: {state}"


@store_answers()
def find(variant: str, root: Path = Path()) -> Registration | None:
    """The version that came of exactly what dvc.lock has for the variant, or None.

    Raises:
        UserError: a stage of the variant has not run.
    """
    lineage = lineage_of(variant, root)
    client = load_mlflow(root).MlflowClient()
    name = model_name(root)
    for version in client.search_model_versions(f"name = '{name}' and tags.lineage = '{lineage}'"):
        return describe(client, version)
    return None


def describe(client: Any, version: Any) -> Registration:
    """What is known of a version that MLflow answered with."""
    # The search leaves the aliases out of its answers.
    version = client.get_model_version(version.name, version.version)
    return Registration(
        model=version.name,
        version=int(version.version),
        run_id=version.run_id,
        aliases=tuple(sorted(version.aliases)),
        reason=_reason(client, version),
    )


def _reason(client: Any, version: Any) -> str | None:
    tags = version.tags
    if "champion" in version.aliases:
        return tags.get(PROMOTED)
    if TAKEN_BACK in tags:
        return f"taken back: {tags[TAKEN_BACK]}"
    if REFUSED in tags:
        return tags[REFUSED]
    # The reason of a promotion is written before the alias is moved, which somebody may have kept from happening.
    return tags.get(PROMOTED) if str(version.version) in champions(client, version.name) else None


def champions(client: Any, model: str) -> list[str]:
    """The versions that were champion, oldest first; the last is the present one, unless the alias was moved by hand in
    MLflow itself.
    """
    return json.loads(client.get_registered_model(model).tags.get(HISTORY, "[]"))


@store_answers()
def register(variant: str, root: Path = Path(), run_id: str | None = None) -> Registration:
    """Log a variant's model and all that is known of it, as a new version with the alias `challenger`.

    Where a version of the same lineage is there already, that one has the alias and is returned; nothing is logged.

    Args:
        variant: a model that was trained, evaluated and exported.
        root: the project's folder.
        run_id: the run that its training was logged to; None: a new one.

    Raises:
        UserError: a stage has not run, or the exported model is not the trained one.
        UpstreamError: the server does not answer.
    """
    outputs = Outputs.read(variant, root)
    mlflow = load_mlflow(root)
    client = mlflow.MlflowClient()
    if found := find(variant, root):
        if "challenger" in found.aliases:
            return found
        # An earlier call ended between making the version and its alias; or the project is back where it was then.
        client.set_registered_model_alias(found.model, "challenger", str(found.version))
        return replace(found, aliases=tuple(sorted({*found.aliases, "challenger"})))
    fingerprint = Fingerprint.of(root / DEPLOY / variant)
    with mlflow.start_run(run_id=run_id or start_run(variant, root)) as run:
        model_id = _log_model(mlflow, outputs)
        _log_outputs(mlflow, client, run.info.run_id, outputs, model_id)
        _log_samples(mlflow, fingerprint)
    tags = {**_version_tags(outputs), "files": json.dumps(fingerprint.files), "runtime": fingerprint.runtime}
    made = mlflow.register_model(f"models:/{model_id}", model_name(root), tags=tags)
    note = _note(outputs, run.info.run_id)
    client.update_model_version(made.name, made.version, description=note)
    client.set_registered_model_alias(made.name, "challenger", made.version)
    return replace(describe(client, made), run_id=run.info.run_id, created=True)


def _note(outputs: Outputs, run_id: str) -> str:
    """What stands at the top of the run's and the version's page."""
    return run_note(outputs.metrics, outputs.protocol, run_id, outputs.trained.data.get("attribution"))


def _log_model(mlflow: Any, outputs: Outputs) -> str:
    """Log the deploy directory as a pyfunc model written as code; returns its identifier."""
    import pandas as pd  # type: ignore[import-untyped]
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema, TensorSpec

    package = Path(__file__).parents[1]
    # Of `long` columns MLflow's server makes integers in silence, 1 of 1.5 and −1 of 2⁶⁴−1, and 1.0 of true in a
    # `double`; the model itself refuses.
    request = [
        ColSpec(AnyType(), "n"),
        ColSpec(AnyType(), "seed", required=False),
        ColSpec("string", "sampler", required=False),
        ColSpec(AnyType(), "steps", required=False),
        ColSpec(AnyType(), "eta", required=False),
    ]
    # Also of an unconditional model: MLflow leaves out other columns in silence, and the model itself refuses.
    inputs = [*NAMES, *PICTURE_NAMES, "guidance_scale", "guidance_interval", "inpainting", "resamples", "jump"]
    request += [ColSpec(AnyType(), name, required=False) for name in inputs]
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
    mlflow.log_metrics(evaluation(outputs.metrics), model_id=model_id)
    parity = {"parity_max_abs_difference": outputs.parity["max_abs_difference"]}
    mlflow.log_metrics(grouped("export", parity), model_id=model_id)
    mlflow.set_tags({**_version_tags(outputs), NOTE: _note(outputs, run_id)})
    lock = outputs.root / "dvc.lock"
    if lock.is_file():  # else the model was imported, and its stages run by hand
        mlflow.set_tag("dvc.lock", sha256_of(lock))
        mlflow.log_artifact(str(lock))
    logged = {metric.step for metric in client.get_metric_history(run_id, "train/loss")}
    now = milliseconds()
    curve = [(now, step, grouped("train", row)) for step, row in outputs.curve() if step not in logged]
    log_metrics(client, run_id, curve)
    mlflow.log_dict(outputs.protocol, PROTOCOL)
    for file in sorted((outputs.root / REPORTS / outputs.variant).iterdir()):
        if file.name != "protocol.json":
            mlflow.log_artifact(str(file))
    _log_data(mlflow, outputs)


def _log_samples(mlflow: Any, fingerprint: Fingerprint) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FINGERPRINT
        np.save(path, fingerprint.samples)
        mlflow.log_artifact(str(path))


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
        "extractor": extractor_name(outputs.protocol),
        "data_sha256": outputs.manifest["splits"]["train"]["sha256"],
        "parity_passed": str(outputs.parity["passed"]).lower(),
        **({"links": outputs.trained.links} if outputs.trained.links else {}),
        **credit_tag(outputs.trained.data),
    }


@store_answers()
def resolve(uri: str, root: Path = Path(), *, into: Path | None = None) -> Path:
    """The deploy directory within a logged model: `models:/ddpm-digits@champion`, `models:/ddpm-digits/3`, …

    Args:
        uri: what names the model.
        root: the project's folder.
        into: an empty folder, where a model of a server is downloaded to; None: one that lasts as long as this process.

    Raises:
        UserError: no such model, or not one of this project's.
        UpstreamError: the server does not answer.
    """
    import yaml

    mlflow = load_mlflow(root)
    if is_local(root):
        into = None
    elif into is None:
        into = Path(tempfile.mkdtemp(prefix="ddpm-model-"))
        atexit.register(shutil.rmtree, into, ignore_errors=True)
    with named(uri, mlflow, root):
        directory = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=into and str(into)))
    try:
        # Not by MLflow's own function, which would unquote the path.
        described = yaml.safe_load((directory / "MLmodel").read_text(encoding="utf-8"))
        return directory / described["flavors"]["python_function"]["artifacts"]["deploy"]["path"]
    except Exception:  # what a damaged file leads to depends on the damage
        raise UserError(f"{uri}: not made by `ddpm register`, or its file MLmodel is lost or damaged") from None


@store_answers()
def pinned(uri: str, root: Path = Path()) -> str:
    """`models:/NAME@ALIAS` and `models:/NAME/latest` as `models:/NAME/VERSION`, by what they mean now.

    Any other URI is returned as it is.

    Raises:
        UserError: no such model, none with this alias, or no version of it.
        UpstreamError: the server does not answer.
    """
    match = re.fullmatch(r"models:/(?P<name>[^/@]+)(@(?P<alias>.+)|/latest)", uri)
    if match is None:
        return uri
    mlflow = load_mlflow(root)
    client, name, alias = mlflow.MlflowClient(), match["name"], match["alias"]
    with named(uri, mlflow, root):
        if alias:
            return f"models:/{name}/{client.get_model_version_by_alias(name, alias).version}"
        versions = [int(version.version) for version in client.search_model_versions(f"name = '{name}'")]
    if not versions:
        raise UserError(f"{uri}: no such model in {store_uri(root)}")
    return f"models:/{name}/{max(versions)}"


@contextlib.contextmanager
def named(uri: str, mlflow: Any, root: Path) -> Iterator[None]:
    """Around what asks for a model: say in one line that there is none."""
    try:
        yield
    except (mlflow.MlflowException, OSError) as error:
        # Of others the store's door says what is wrong.
        refused = isinstance(error, mlflow.MlflowException) and error.error_code not in _NO_SUCH_MODEL
        if refused or may_pass(error):
            raise
        raise UserError(f"{uri}: no such model in {store_uri(root)}: {first_line(error)}") from None
