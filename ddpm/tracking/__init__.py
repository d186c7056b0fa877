"""The one door to MLflow: runs, the model registry, and which version is the champion.

Runs and models are kept in SQLite and files under `mlflow/`, or by the server that MLFLOW_TRACKING_URI names. MLflow
is imported when a function here first needs it, so that everything else works without it.
"""

from ddpm.tracking.champion import champion_to_measure, find_champion, promote, promote_by_hand, rollback
from ddpm.tracking.comparisons import Evaluation, evaluation_of, log_comparison
from ddpm.tracking.notes import comparison_note
from ddpm.tracking.overview import RegisteredVersion, registered_versions
from ddpm.tracking.registry import Registration, find, pinned, register, resolve
from ddpm.tracking.runs import RUN_ID, end_run, live_curve, log_study, run_url, start_run, ui_url
from ddpm.tracking.stage_outputs import lineage_of, model_name
from ddpm.tracking.store import load_mlflow, server_environment, store_uri
from ddpm.tracking.version_records import Figures, log_measurement, recorded_figures, recorded_fingerprint

__all__ = [
    "RUN_ID",
    "Evaluation",
    "Figures",
    "RegisteredVersion",
    "Registration",
    "champion_to_measure",
    "comparison_note",
    "end_run",
    "evaluation_of",
    "find",
    "find_champion",
    "lineage_of",
    "live_curve",
    "load_mlflow",
    "log_comparison",
    "log_measurement",
    "log_study",
    "model_name",
    "pinned",
    "promote",
    "promote_by_hand",
    "recorded_figures",
    "recorded_fingerprint",
    "register",
    "registered_versions",
    "resolve",
    "rollback",
    "run_url",
    "server_environment",
    "start_run",
    "store_uri",
    "ui_url",
]
