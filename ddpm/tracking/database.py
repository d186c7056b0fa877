"""The SQLite file of an MLflow store: whether it is one, and where it says that its files are.

MLflow writes absolute addresses into its tables. A project that is moved, renamed or copied takes its store along, so
the addresses are set right when the store is opened.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ddpm.errors import UserError
from ddpm.files import atomic_directory

# The columns with addresses of files: `artifact_uri` of runs, `artifact_location` of experiments and logged models,
# `storage_location` and `source` of model versions, and whatever a later MLflow calls alike.
_ADDRESSES = re.compile(r".*(artifact|storage|archival).*(uri|location|root)|source")

_BUSY_SECONDS = 20


@contextlib.contextmanager
def connected(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection that begins no transaction by itself."""
    connection = sqlite3.connect(database, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def is_empty(database: Path) -> bool:
    """Whether the file is absent, or its making was interrupted: MLflow's default experiment comes last."""
    if not database.exists():
        return True
    with connected(database) as connection:
        return (
            "experiments" not in _tables(connection)
            or not connection.execute("SELECT 1 FROM experiments LIMIT 1").fetchone()
        )


def check(database: Path) -> None:
    """Refuse what is there and is not a database of MLflow's: MLflow itself would try for minutes, or add its tables.

    Raises:
        UserError: the file is damaged, of something else, or cannot be read.
    """
    if not database.exists():
        return
    try:
        with database.open("rb"):
            pass
        with connected(database) as connection:
            tables = _tables(connection)
    except OSError as error:
        raise UserError(f"{database}: {error.strerror}; expected MLflow's database") from None
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return  # MLflow waits longer
        raise UserError(f"{database}: cannot be opened: {error}") from None
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{database}: damaged, or not an SQLite database ({error}); restore it from a backup, or move it away "
            "for a new one to be made"
        ) from None
    if tables and "experiments" not in tables:
        raise UserError(f"{database}: a database of something else than MLflow; move it away for a new one to be made")


def relocate(database: Path, root: Path, *, dry_run: bool = False) -> bool:
    """Have the store's addresses of files point into the project that the store is in. Returns whether they did not.

    Args:
        database: `mlflow/mlflow.db` of the project.
        root: the project's folder, absolute.
        dry_run: only look.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with connected(database) as connection:
            if not (moved := _moved(connection, root)) or dry_run:
                return bool(moved)
            connection.execute("BEGIN IMMEDIATE")
            for old, new in _moved(connection, root).items():  # another process may just have done it
                for one, other in ((old.as_uri(), new.as_uri()), (str(old), str(new))):
                    _replace(connection, one, other)
            with_runs = connection.execute("SELECT 1 FROM runs LIMIT 1").fetchone()
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise UserError(f"{database}: was moved here and cannot be set right: {error}") from None
    if with_runs:
        olds = sorted({str(old.parents[2]) for old in moved if old.parts[-3] == "mlflow"})
        print(f"{database}: moved or copied from {', '.join(olds)}; its files are now those beside it", file=sys.stderr)
    return True


def _moved(connection: sqlite3.Connection, root: Path) -> dict[Path, Path]:
    """The experiments' folders of artifacts, as the store names them, that came with the project from elsewhere; each
    with where it is now.
    """
    own = {"artifacts": root / "mlflow" / "artifacts", "mlruns": root / "mlruns"}
    found = {}
    for identifier, name, address in connection.execute(
        "SELECT experiment_id, name, artifact_location FROM experiments"
    ):
        old = _path(address)
        if old is None or old.name not in (name, str(identifier)):
            continue  # somebody has put it elsewhere
        base = old.parent
        if base.parts[-2:] != ("mlflow", "artifacts") and (base.name, identifier) != ("mlruns", 0):
            continue
        new = own[base.name] / old.name
        project = base.parents[1] if base.name == "artifacts" else base.parent
        linked = project.exists() and project.samefile(root)
        # Files that are at the old address alone belong to another project that uses this store. One that was copied
        # has brought its files along.
        if old != new and not linked and (new.exists() or not old.exists()):
            found[old] = new
    return found


def _path(address: str | None) -> Path | None:
    """The path of a file's address; None of another address."""
    if not address:
        return None
    if address.startswith("file:"):
        return Path(url2pathname(urlsplit(address).path))
    return Path(address) if address.startswith("/") else None


def _replace(connection: sqlite3.Connection, old: str, new: str) -> None:
    """Replace the beginning of every address. Files that are at the old address alone are copied to the new one: before
    addresses were set right, a copied project wrote to where it had been copied from.
    """
    for table in sorted(_tables(connection)):
        for _, column, kind, *_ in connection.execute(f'PRAGMA table_info("{table}")').fetchall():
            if not (_ADDRESSES.fullmatch(column) and kind.upper().startswith(("VARCHAR", "TEXT"))):
                continue
            below = f'"{column}" = ? OR substr("{column}", 1, ?) = ?'
            given = (old, len(old) + 1, f"{old}/")
            for (address,) in connection.execute(f'SELECT DISTINCT "{column}" FROM "{table}" WHERE {below}', given):
                _bring(_path(address), _path(new + address.removeprefix(old)))
            connection.execute(
                f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) WHERE {below}',
                (new, len(old) + 1, *given),
            )


def _bring(old: Path | None, new: Path | None) -> None:
    if old and new and old.is_dir() and not new.exists():
        with atomic_directory(new) as temporary:
            shutil.copytree(old, temporary, dirs_exist_ok=True)
