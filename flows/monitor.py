"""Watch the champion: is it still the model that was registered, and does it still score what it scored then?

The deployment in prefect.yaml runs it every day; flows/automations.yaml has an automation for its alarms.
"""

from __future__ import annotations

from prefect import flow, task
from prefect.events import emit_event
from prefect.states import Completed, Failed, State

from ddpm import tracking
from ddpm.config.params import load_params
from ddpm.deploy.integrity import find_fault
from ddpm.errors import UpstreamError, UserError
from ddpm.figures.drift import drifts
from ddpm.figures.protocol import differing_fields
from ddpm.tracking import Figures, Registration
from flows.pipeline import OPTIONS, failed, gpu, pause_before_retry, refused, shared_state, stopped
from flows.processes import StoppedError
from flows.tasks import measure


@flow
def monitor(model: str | None = None, figures: bool = True, tolerance: float = 0.05) -> State:
    """Hold the champion against what is on record of it; where it is not the same any more, send an event and fail.

    Args:
        model: the registered model; default: that of params.yaml's data.
        figures: measure it too, for which prepared/ and extractor/ are needed; else its files and a few samples are
            compared, for which numpy and onnxruntime are enough.
        tolerance: how far outside its interval on record a figure may be, as a share of it.
    """
    try:
        name = model or load_params().model_name
    except UserError as error:
        return Failed(message=str(error))
    with shared_state():
        found = find_champion(name, return_state=True)
        if not found.is_completed():
            return Failed(message=found.message)
        champion = found.result()
        if champion is None:
            return Completed(name="NoChampion", message=f"{name} has no champion: there is nothing to watch yet")
        states = [check_files(champion, return_state=True)]
        if figures and states[0].is_completed():
            states.append(check_figures(champion, tolerance, return_state=True))
    if not states[-1].is_completed():
        return Failed(message=states[-1].message)
    return Completed(message=f"{champion.uri}: {'; '.join(state.result() for state in states)}")


@task(name="find-champion", task_run_name="champion of {model}", **OPTIONS)
def find_champion(model: str) -> Registration | State | None:
    pause_before_retry()
    try:
        return tracking.find_champion(model)
    except (UserError, UpstreamError) as error:
        return refused(f"champion of {model}", error)


@task(name="check-files", task_run_name="files of version {champion.version}", **OPTIONS)
def check_files(champion: Registration) -> str | State:
    """Whether the files are those that were registered, and draw what they drew then."""
    pause_before_retry()
    try:
        deploy = tracking.resolve(champion.uri)
        recorded = tracking.recorded_fingerprint(champion)
    except UpstreamError as error:
        return refused(champion.uri, error)
    except UserError as error:
        return _alarm("damaged", champion, str(error))
    if recorded and (fault := find_fault(deploy, recorded)):
        return _alarm("damaged", champion, fault)
    if recorded is None:
        return "no fingerprint on record, it was registered before they were taken"
    return "files and samples are those on record"


@task(name="check-figures", task_run_name="figures of version {champion.version}", **OPTIONS)
def check_figures(champion: Registration, tolerance: float) -> str | State:
    """Whether it scores what it scored under the same protocol; without a record of that, nothing is compared."""
    pause_before_retry()
    try:
        with gpu():
            measured = measure(champion.uri)
        if not isinstance(measured, Figures):
            return failed(measured)
        recorded = tracking.recorded_figures(champion, measured.protocol["id"])
    except StoppedError:
        return stopped(champion.uri)
    except (UserError, UpstreamError) as error:
        return refused(champion.uri, error)
    if differences := list(differing_fields(recorded.protocol, measured.protocol)):
        return f"figures not compared, those on record have another protocol: {'; '.join(differences)}"
    if gone := list(drifts(recorded.metrics, measured.metrics, tolerance, recorded.protocol)):
        return _alarm("drifted", champion, "; ".join(gone))
    return "figures are those on record"


def _alarm(what: str, champion: Registration, reason: str) -> State:
    """Send the event `ddpm.champion.damaged` or `ddpm.champion.drifted`, and fail with the reason."""
    emit_event(
        event=f"ddpm.champion.{what}",
        resource={"prefect.resource.id": f"ddpm.model.{champion.model}", "prefect.resource.name": champion.model},
        payload={"version": champion.version, "reason": reason},
    )
    return Failed(message=f"{champion.uri} {what}: {reason}")
