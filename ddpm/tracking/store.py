"""Where MLflow keeps its records, and the library set to it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm.errors import UpstreamError, UserError

# Of MLflow itself, where the environment does not say otherwise.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Seven, its default, are four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    # Files go through the server. Else a server sends its clients to its store, by a name that may be known to it alone.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
}

_LOCK_SECONDS = 60


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
def store_answers() -> Iterator[None]:
    """Around a function: say in one line that the tracking server does not answer, and that another try may help."""
    try:
        yield
    except Exception as error:
        if not may_pass(error):
            raise
        raise UpstreamError(f"MLflow does not answer at {store_uri()}") from None


def may_pass(error: BaseException | None) -> bool:
    """Whether an error came of the network's, which MLflow wraps in its own, or of a database that is busy."""
    from requests import ConnectionError, Timeout
    from requests.exceptions import RetryError

    while error is not None:
        if isinstance(error, ConnectionError | Timeout | RetryError):
            return True
        if getattr(error, "error_code", None) == "TEMPORARILY_UNAVAILABLE":
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def one_at_a_time(root: Path = Path()) -> Iterator[None]:
    """Within the block, no other process on this machine is in such a block for the same store.

    MLflow cannot move an alias on condition of where it is. Between machines that share a server the flow takes turns
    by a limit of Prefect's.

    Raises:
        UpstreamError: another process has been in it for a minute.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(_lock_file(root))
    try:
        lock.acquire(timeout=_LOCK_SECONDS)
    except Timeout:
        raise UpstreamError(f"another process has held {lock.lock_file} for {_LOCK_SECONDS} s") from None
    try:
        yield
    finally:
        lock.release()


def _lock_file(root: Path) -> Path:
    """Beside the database; of a server, in the machine's folder for temporary files."""
    uri = store_uri(root)
    if uri.startswith("sqlite:///"):
        return Path(uri.removeprefix("sqlite:///").partition("?")[0] + ".lock")
    digest = hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"ddpm-{os.getuid()}-{digest}.lock"


def experiment_id(mlflow: Any, name: str, root: Path) -> str:
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
