"""The one door to MLflow: runs, the model registry, and which version is the champion.

Runs and models are kept in SQLite and files under `mlflow/`, or by the server that MLFLOW_TRACKING_URI names. MLflow
is imported when a function here first needs it, so that everything else works without it.
"""

from ddpm.tracking.champion import promote
from ddpm.tracking.outputs import lineage_of, model_name
from ddpm.tracking.registry import Registration, find, pinned, register, resolve
from ddpm.tracking.runs import RUN_ID, end_run, live_curve, log_study, run_url, start_run, ui_url
from ddpm.tracking.store import load_mlflow, store_uri

__all__ = [
    "RUN_ID",
    "Registration",
    "end_run",
    "find",
    "lineage_of",
    "live_curve",
    "load_mlflow",
    "log_study",
    "model_name",
    "pinned",
    "promote",
    "register",
    "resolve",
    "run_url",
    "start_run",
    "store_uri",
    "ui_url",
]
