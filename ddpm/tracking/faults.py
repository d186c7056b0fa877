"""What MLflow's errors, and those of what it stands on, mean to the user."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ddpm.errors import UpstreamError, UserError

# The packages whose errors come of the store, and not of this code.
_OF_THE_STORE = {"mlflow", "sqlalchemy", "alembic", "requests", "urllib3", "sqlite3"}

# Of SQLite's operational errors those that pass. The others are a table that is missing, a file that cannot be written.
_PASSING = ("locked", "busy", "disk is full", "disk I/O")


def explain(error: Exception, where: Callable[[], str]) -> UserError | UpstreamError | None:
    """An error of the store as one of ours, in one line; None of any other error.

    Args:
        where: tells the store's address.
    """
    if may_pass(error):
        return UpstreamError(f"MLflow does not answer at {where()}")
    if type(error).__module__.partition(".")[0] not in _OF_THE_STORE:
        return None
    text = first_line(error)
    if "out-of-date database schema" in text or "Can't locate revision" in text:
        return UserError(_schema(text, where()))
    if "malformed" in text or "not a database" in text:
        return UserError(f"{where()}: damaged ({text}); restore it from a backup")
    return UserError(f"MLflow at {where()}: {text}")


def first_line(error: BaseException) -> str:
    """The beginning of an error's message: MLflow's go on with SQL, or the body of an answer."""
    text = str(getattr(error, "message", None) or error).strip()
    return re.split(r"\n|\(Background on this error", text, maxsplit=1)[0].strip() or type(error).__name__


def may_pass(error: BaseException | None) -> bool:
    """Whether an error came of the network's, which MLflow wraps in its own, or of a database that is busy."""
    from requests import ConnectionError, Timeout
    from requests.exceptions import RetryError

    while error is not None:
        if isinstance(error, ConnectionError | Timeout | RetryError):
            return True
        if getattr(error, "error_code", None) == "TEMPORARILY_UNAVAILABLE" or _is_operational(error):
            text = str(error)
            of_sqlite = "sqlite3." in text or type(error).__module__ == "sqlite3"
            return not of_sqlite or any(words in text for words in _PASSING)
        error = error.__cause__ or error.__context__
    return False


def _is_operational(error: BaseException) -> bool:
    """SQLAlchemy's, or SQLite's own where this package opens the file itself."""
    return type(error).__module__.partition(".")[0] in ("sqlalchemy", "sqlite3") and (
        type(error).__name__ == "OperationalError"
    )


def _schema(text: str, where: str) -> str:
    """Which of the two is older, the store or the MLflow that is installed, and what to do."""
    import mlflow

    found = re.search(r"found version (\w+)", text) or re.search(r"revision identified by '(\w+)'", text)
    if found and _is_known(found[1]):
        return f"{where} is a store of an older MLflow: make a copy of it, then run `mlflow db upgrade {where}`"
    return f"{where} is a store of a newer MLflow than {mlflow.__version__}, which is installed here: install that one"


def _is_known(revision: str) -> bool:
    """Whether the installed MLflow knows this version of its tables."""
    from mlflow.store.db import utils

    try:
        config: Any = utils._get_alembic_config("")
        return utils.ScriptDirectory.from_config(config).get_revision(revision) is not None
    except Exception:  # alembic's, or a MLflow that has these elsewhere
        return revision.lower() == "none"
