"""Hold models side by side: `ddpm compare`, its page in MLflow, its figures among the flow run's artifacts.

`python -m flows.compare A B` runs it here and now; prefect.yaml has a deployment of it that waits to be asked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.states import Completed, Failed, State

from ddpm import tracking
from ddpm.config.params import load_params
from ddpm.errors import UpstreamError, UserError
from ddpm.layout import COMPARISON, COMPARISON_PAGE
from flows import dvc, report
from flows.pipeline import (
    OPTIONS,
    failed,
    gpu,
    pause_before_retry,
    refused,
    shared,
    shared_state,
    start_own_server,
    stopped,
)
from flows.processes import StoppedError


@flow
def compare(
    models: list[str] | None = None, steps: list[int] | None = None, rank: bool = False, out: str = str(COMPARISON)
) -> State:
    """Draw from models with the same noise, measure them over the number of steps, and show all that is known of them.

    Args:
        models: models of params.yaml, model directories, deploy directories, or URIs such as
            `models:/ddpm-digits@champion`; default: champion and challenger.
        steps: evaluations of the network an image at which they are measured; default: 5, 10, 20, 50 and 100.
        rank: the best model first; refused where they were measured under different protocols.
        out: where the page goes.
    """
    try:
        named = models or [f"models:/{load_params().model_name}@{alias}" for alias in ("champion", "challenger")]
    except UserError as error:
        return Failed(message=str(error))
    with shared_state():
        drawn = draw.submit(named, steps, rank, out)
        logged = log.submit(out, wait_for=[drawn])
        states = [each.wait() or each.state for each in (drawn, logged)]
        if failures := [state.message or "" for state in states if state.is_failed() or state.is_crashed()]:
            return Failed(message="; ".join(failures))
        run_id = logged.result()
        report.publish_comparison(Path(out), run_id)
    return Completed(message=f"{Path(out) / COMPARISON_PAGE}, {tracking.run_url(run_id)}", data=run_id)


@task(name="compare", task_run_name="compare", **OPTIONS)
def draw(models: list[str], steps: list[int] | None, rank: bool, out: str) -> State | None:
    """`ddpm compare` in a child process."""
    pause_before_retry()
    options = ["--steps", ",".join(map(str, steps))] if steps else []
    arguments = ["compare", *models, "--out", out, *options, *(["--rank"] if rank else [])]
    try:
        with gpu():
            failure = dvc.run_ddpm(arguments, shared().children, get_run_logger().info)
    except StoppedError:
        return stopped("compare")
    return failed(failure) if failure else None


@task(name="log-comparison", task_run_name="log", **OPTIONS)
def log(out: str) -> str | State:
    """The page in MLflow; the run's identifier."""
    pause_before_retry()
    try:
        return tracking.log_comparison(Path(out))
    except (UserError, UpstreamError) as error:
        return refused("log", error)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.compare", description=compare.description)
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="as `ddpm compare --help` says (default: champion and challenger)"
    )
    parser.add_argument("--steps", nargs="+", type=int, help="evaluations of the network (default: 5 10 20 50 100)")
    parser.add_argument("--rank", action="store_true", help="the best model first")
    parser.add_argument("--out", default=str(COMPARISON), help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        start_own_server()
        state = compare(options.models, options.steps, options.rank, options.out, return_state=True)
    except (UserError, UpstreamError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    print(f"\n{state.message}", file=sys.stdout if state.is_completed() else sys.stderr)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
