"""The tasks of the flow `retrain`: one DVC stage each, then MLflow."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import State

from ddpm import tracking
from ddpm.config.params import load_params
from ddpm.errors import UpstreamError, UserError
from ddpm.files import read_json
from ddpm.tracking import Figures, Registration
from flows import dvc, report
from flows.pipeline import OPTIONS, failed, gpu, pause_before_retry, refused, shared, stopped, turn_to_promote
from flows.processes import StoppedError


@task(task_run_name="fetch", **OPTIONS)
def fetch(accept_new_data: bool) -> State | None:
    return _run("fetch", accept_new_data=accept_new_data)


@task(task_run_name="prepare", **OPTIONS)
def prepare() -> State | None:
    return _run("prepare")


@task(name="fit-extractor", task_run_name="fit-extractor", **OPTIONS)
def fit_extractor() -> State | None:
    return _run("fit-extractor")


@task(task_run_name="train {variant}", **OPTIONS)
def train(variant: str, stage: str = "train") -> State | None:
    return _run(f"{stage}@{variant}", on_gpu=True, env=lambda: _live_curve(variant, stage))


@task(name="train-guide", task_run_name="train guide {guide}", **OPTIONS)
def train_guide(guide: str) -> State | None:
    return _run(f"train-guide@{guide}", on_gpu=True)


@task(name="record-guide", task_run_name="record guide {guide} of {variant}", **OPTIONS)
def record_guide(variant: str, guide: str) -> State | None:
    return _run(f"guide@{variant}-{guide}")


@task(name="record-judge", task_run_name="record judge {clip} of {variant}", **OPTIONS)
def record_judge(variant: str, clip: str, stage: str = "judge") -> State | None:
    return _run(f"{stage}@{variant}-{clip}")


@task(name="train-autoencoder", task_run_name="train autoencoder {autoencoder}", **OPTIONS)
def train_autoencoder(autoencoder: str) -> State | None:
    return _run(f"train-autoencoder@{autoencoder}", on_gpu=True)


@task(task_run_name="encode by {autoencoder}", **OPTIONS)
def encode(autoencoder: str) -> State | None:
    return _run(f"encode@{autoencoder}", on_gpu=True)


@task(name="train-encoder", task_run_name="train encoder {encoder}", **OPTIONS)
def train_encoder(encoder: str) -> State | None:
    return _run(f"train-encoder@{encoder}", on_gpu=True)


@task(task_run_name="embed by {encoder}", **OPTIONS)
def embed(encoder: str) -> State | None:
    return _run(f"embed@{encoder}", on_gpu=True)


@task(name="train-latent", task_run_name="train {variant}", **OPTIONS)
def train_latent(variant: str) -> State | None:
    return _run(f"train-latent@{variant}", on_gpu=True)


@task(name="train-link", task_run_name="train {link} of {cascade}", **OPTIONS)
def train_link(cascade: str, link: str, stage: str) -> State | None:
    return _run(f"{stage}@{cascade}", on_gpu=True)


@task(task_run_name="compose {cascade}", **OPTIONS)
def compose(cascade: str, stage: str) -> State | None:
    return _run(f"{stage}@{cascade}")


@task(task_run_name="evaluate {variant}", **OPTIONS)
def evaluate(variant: str, stage: str = "evaluate") -> State | None:
    return _run(f"{stage}@{variant}", on_gpu=True)


@task(task_run_name="export {variant}", **OPTIONS)
def export(variant: str, stage: str = "export") -> State | None:
    return _run(f"{stage}@{variant}")


@task(task_run_name="register {variant}", **OPTIONS)
def register(variant: str) -> Registration | State:
    pause_before_retry()
    pipeline = shared()
    with pipeline.registry:
        try:
            version = tracking.register(variant, run_id=pipeline.open_runs.get(variant))
        except (UserError, UpstreamError) as error:
            return refused(f"register {variant}", error)
    pipeline.open_runs.pop(variant, None)
    get_run_logger().info("%s", version)
    return version


@task(name="measure-champion", task_run_name="measure champion for {variant}", **OPTIONS)
def measure_champion(variant: str) -> str | State | None:
    """Have the champion's figures under the variant's protocol; returns why that cannot be, if it cannot."""
    pause_before_retry()
    step, own_plan = f"measure champion for {variant}", load_params().evaluation.sampling is None
    try:
        with gpu():
            champion = tracking.champion_to_measure(variant, own_plan=own_plan)
            if champion is None:
                return None
            figures = measure(champion.uri)
            if isinstance(figures, Figures):
                return tracking.log_measurement(champion, figures)
    except StoppedError:
        return stopped(step)
    except (UserError, UpstreamError) as error:
        return refused(step, error)
    if figures.transient:
        return failed(figures)
    get_run_logger().warning("%s", figures)
    return f"version {champion.version} could not be measured again: {figures.message}"


@task(task_run_name="promote {variant}", **OPTIONS)
def promote(variant: str, obstacle: str | None) -> Registration | State:
    pause_before_retry()
    step, policy = f"promote {variant}", load_params().promotion
    try:
        with turn_to_promote():
            decision = tracking.promote(variant, policy=policy, obstacle=obstacle)
            version = tracking.find(variant)
    except StoppedError:
        return stopped(step)
    except (UserError, UpstreamError) as error:
        return refused(step, error)
    assert version is not None
    get_run_logger().info("%s: %s", variant, decision)
    report.publish_decision(variant, decision)
    return version


@task(task_run_name="registered {variant}", cache_policy=NO_CACHE, persist_result=False)
def registered(variant: str) -> Registration | None:
    """The version that came of what dvc.lock has, if there is one."""
    try:
        return tracking.find(variant)
    except (UserError, UpstreamError):
        return None  # a stage has not run yet, or MLflow does not answer: `register` will say so


def measure(model: str) -> Figures | dvc.Failure:
    """A registered model's figures under the present protocol, by `ddpm measure` in a child process.

    Raises:
        StoppedError: the flow is being stopped.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        failure = dvc.run_ddpm(["measure", model, "--out", str(out)], shared().children, get_run_logger().info)
        return failure or Figures(**read_json(out))


def _run(
    stage: str, *, on_gpu: bool = False, env: Callable[[], dict[str, str]] = dict, accept_new_data: bool = False
) -> State | None:
    """Run a DVC stage in a child process, its output in this task's log; a failure in the command's own words.

    Args:
        env: called when the stage is about to start; variables for it.
    """
    pause_before_retry()
    logger, children = get_run_logger(), shared().children
    try:
        with gpu() if on_gpu else contextlib.nullcontext():
            failure = dvc.accept_new_data(children, logger.info) if accept_new_data else None
            failure = failure or dvc.reproduce(stage, children, logger.info, env())
    except StoppedError:
        return stopped(stage)
    return failed(failure) if failure else None


def _live_curve(variant: str, stage: str) -> dict[str, str]:
    """The environment that sends a training's curve to MLflow; empty if it will not run, or MLflow does not answer."""
    pipeline = shared()
    runs = pipeline.open_runs
    try:
        if variant not in runs and not pipeline.children.stopping.is_set() and dvc.changed_stages(f"{stage}@{variant}"):
            runs[variant] = tracking.start_run(variant)
    except Exception as error:  # training does not wait for its observer
        get_run_logger().warning("MLflow will not see this training live: %s", error)
    return {tracking.RUN_ID: runs[variant]} if variant in runs else {}
