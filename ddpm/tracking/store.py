"""Where MLflow keeps its records, and the library set to it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm.errors import UpstreamError, UserError
from ddpm.files import process_directory
from ddpm.tracking.database import check, is_empty, relocate
from ddpm.tracking.faults import explain

# Of MLflow itself, where the environment does not say otherwise.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Seven, its default, are four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    # Files go through the server. Else it sends its clients to its store, by a name that only it may know.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
}

# What MLFLOW_TRACKING_URI may name: a server, or a database. Folders and Databricks lack what the registry needs here.
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")

_LOCK_SECONDS = 60

# The machine's folder for temporary files, which all processes share.
_TEMPORARY = Path(tempfile.gettempdir())

# MLflow prints the traceback of a database's error before it raises it; what it raises is said in one line.
logging.getLogger("mlflow.store.db.utils").addFilter(lambda record: not record.exc_info)


def store_uri(root: Path = Path()) -> str:
    """Where MLflow keeps its records: MLFLOW_TRACKING_URI, else the project's own SQLite file.

    Raises:
        UserError: MLFLOW_TRACKING_URI is neither a server nor a database.
    """
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        _check_scheme(given)
        return given
    path = str(_own_database(root))
    if set("%?") & set(path):
        # In a URI these two have a meaning, and MLflow does not unquote them everywhere. A path from here has neither.
        path = os.path.relpath(path)
    if set("%?") & set(path):
        raise UserError(f"{path}: MLflow cannot open a database below a folder with % or ?; run this in the project")
    return f"sqlite:///{path}"


def is_local(root: Path = Path()) -> bool:
    """Whether the records are in a SQLite file, whose artifacts are files of the project."""
    return store_uri(root).startswith("sqlite:")


def database_of(root: Path = Path()) -> Path | None:
    """The SQLite file with the records; None where they are elsewhere."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return _own_database(root)
    uri = store_uri(root)
    if not uri.startswith("sqlite:///"):
        return None
    from sqlalchemy.engine import make_url

    return Path(make_url(uri).database or "").absolute()


def _own_database(root: Path) -> Path:
    return (root / "mlflow" / "mlflow.db").absolute()


def _check_scheme(uri: str) -> None:
    scheme, colon, rest = uri.partition("://")
    if not colon or scheme.partition("+")[0].lower() not in _SCHEMES or (scheme.startswith("http") and not rest):
        raise UserError(
            f"MLFLOW_TRACKING_URI: expected a server, such as http://HOST:5000, or a database, such as "
            f"sqlite:///FILE.db; found {uri!r}"
        )


def load_mlflow(root: Path = Path()) -> Any:
    """The mlflow package, set to the project's store and silent towards the outside.

    The project's own store is made if it is absent, and set right if the project was moved or copied.

    Raises:
        UserError: mlflow is not installed, or the store is not one of MLflow's.
    """
    for variable, value in _SETTINGS.items():
        os.environ.setdefault(variable, value)
    given, uri = os.environ.get("MLFLOW_TRACKING_URI"), store_uri(root)
    try:
        import mlflow

        mlflow.set_tracking_uri(uri)
        if not given:
            # MLflow has set it by now; but the user named no server.
            os.environ.pop("MLFLOW_TRACKING_URI", None)
    except (ModuleNotFoundError, AttributeError):
        # Without the library, `import mlflow` may find the project's folder of that name, which has no such function.
        raise UserError("mlflow is not installed: pip install 'ddpm[pipeline]'") from None
    if "%" in mlflow.__file__:
        _escape_migrations()
    _keep_temporaries_together()
    _prepare(root, uri)
    return mlflow


@functools.cache
def _keep_temporaries_together() -> None:
    """Have this process make its temporary files in a directory that the next one removes if this one is killed.

    MLflow copies a model into one before it logs it.
    """
    tempfile.tempdir = str(process_directory(_TEMPORARY / f"ddpm-{os.getuid()}"))


def _escape_migrations() -> None:
    """Have MLflow find the versions of its tables also where the environment is in a folder with a %.

    Alembic reads the path as a template in which that begins a variable; MLflow escapes it in the database's address
    alone.
    """
    from mlflow.store.db import utils

    original = utils._get_alembic_config
    if original.__module__ != utils.__name__:
        return  # done before
    migrations = str(Path(utils.__file__).parents[1] / "db_migrations").replace("%", "%%")
    utils._get_alembic_config = lambda db_url, alembic_dir=migrations: original(db_url, alembic_dir)


def server_environment() -> dict[str, str]:
    """Variables for a server of MLflow's in this environment: it cannot start below a folder with a %.

    Every process of it has the same current directory, by which it finds its packages under a path without one.
    """
    folder = Path(sysconfig.get_path("purelib"))
    if "%" not in str(folder) or not folder.is_relative_to(Path.cwd()):
        return {}
    return {"PYTHONPATH": f"/proc/self/cwd/{folder.relative_to(Path.cwd())}"}


def _prepare(root: Path, uri: str) -> None:
    """Refuse a file that is no store; make the project's own, or have it point to the project's own files."""
    database = database_of(root)
    if database is None:
        return
    check(database)
    if database != _own_database(root):
        return
    if is_empty(database):
        with one_at_a_time(root):
            if is_empty(database):
                _create(uri, root)
    elif relocate(database, root.absolute(), dry_run=True):
        with one_at_a_time(root):
            relocate(database, root.absolute())


def _create(uri: str, root: Path) -> None:
    """Make MLflow's tables, as its client would; but that would put experiment 0 where the process happens to be."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(uri, (root / "mlflow" / "artifacts").absolute().as_uri())


@contextlib.contextmanager
def store_answers() -> Iterator[None]:
    """Around a function: say in one line what is wrong with the store, and whether another try may help."""
    try:
        yield
    except Exception as error:
        if (explained := explain(error, store_uri)) is None:
            raise
        raise explained from None


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
    if database := database_of(root):
        database.parent.mkdir(parents=True, exist_ok=True)
        return Path(f"{database}.lock")
    digest = hashlib.sha256(store_uri(root).rstrip("/").encode()).hexdigest()[:16]
    return _TEMPORARY / f"ddpm-{os.getuid()}-{digest}.lock"


def experiment_id(mlflow: Any, name: str, root: Path) -> str:
    """The identifier of the experiment of that name, made if absent, restored if it was deleted."""
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server has its own place for files; the project's store keeps them beside its database.
        return client.create_experiment(
            name,
            artifact_location=(root / "mlflow" / "artifacts" / name).absolute().as_uri() if is_local(root) else None,
            # Else MLflow's pages take it for an experiment with language models.
            tags={"mlflow.experimentKind": "custom_model_development"},
        )
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id
