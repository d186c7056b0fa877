"""What is registered, at a glance. The project's own store is read without MLflow, whose import alone takes seconds."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm.tracking.database import check, connected, is_empty
from ddpm.tracking.names import evaluation_among
from ddpm.tracking.store import database_of, load_mlflow, store_answers


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model, with the figures of its registration."""

    model: str
    version: int
    variant: str | None
    aliases: tuple[str, ...]
    metrics: Mapping[str, float]
    extractor: str | None
    """Kind of the extractor that they were measured with."""
    experiment_id: str | None
    """Of the run that it came of."""

    @property
    def uri(self) -> str:
        return f"models:/{self.model}/{self.version}"


@store_answers()
def registered_versions(root: Path = Path()) -> list[RegisteredVersion]:
    """All versions of all registered models, the newest of a model first; nothing is written, nor a store made.

    Raises:
        UserError: the store is damaged, or not one of MLflow's.
        UpstreamError: the server does not answer.
    """
    database = database_of(root)
    if database is None:
        found = _of_server(load_mlflow(root).MlflowClient())
    else:
        check(database)
        found = [] if is_empty(database) else _of_file(database)
    return sorted(found, key=lambda version: (version.model, -version.version))


def _of_server(client: Any) -> list[RegisteredVersion]:
    found = []
    for model in client.search_registered_models():
        aliases = defaultdict(list)
        for alias, version in model.aliases.items():
            aliases[str(version)].append(alias)
        for version in client.search_model_versions(f"name = '{model.name}'"):
            run = client.get_run(version.run_id) if version.run_id else None
            found.append(
                RegisteredVersion(
                    model.name,
                    int(version.version),
                    version.tags.get("variant"),
                    tuple(sorted(aliases[str(version.version)])),
                    evaluation_among(run.data.metrics) if run else {},
                    run.data.params.get("protocol.extractor") if run else None,
                    run.info.experiment_id if run else None,
                )
            )
    return found


def _of_file(database: Path) -> list[RegisteredVersion]:
    with connected(database) as connection:
        aliases = defaultdict(list)
        for name, alias, version in connection.execute("SELECT name, alias, version FROM registered_model_aliases"):
            aliases[name, int(version)].append(alias)
        variants = connection.execute("SELECT name, version, value FROM model_version_tags WHERE key = 'variant'")
        variant = {(name, int(version)): value for name, version, value in variants}
        versions = connection.execute(
            "SELECT v.name, v.version, v.run_id, runs.experiment_id FROM model_versions v "
            "LEFT JOIN runs ON runs.run_uuid = v.run_id "
            "WHERE v.current_stage IS NOT 'Deleted_Internal'"
        ).fetchall()
        return [
            RegisteredVersion(
                name,
                int(version),
                variant.get((name, int(version))),
                tuple(sorted(aliases[name, int(version)])),
                evaluation_among(_of_run(connection, "SELECT key, value FROM latest_metrics WHERE run_uuid = ?", run)),
                _of_run(connection, "SELECT key, value FROM params WHERE run_uuid = ?", run).get("protocol.extractor"),
                None if experiment is None else str(experiment),
            )
            for name, version, run, experiment in versions
        ]


def _of_run(connection: sqlite3.Connection, query: str, run_id: str | None) -> dict[str, Any]:
    return dict(connection.execute(query, (run_id,)).fetchall())
