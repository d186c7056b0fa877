"""How metrics and files are called in MLflow, whose pages gather charts by what stands before the slash."""

from __future__ import annotations

from collections.abc import Mapping

TRAIN, EVAL, EXPORT = "train", "eval", "export"

# The artifact with the fields of the protocol; reports/V/protocol.json.
PROTOCOL = "eval_protocol.json"


def grouped(group: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under the names that MLflow has for them: `fid` of the group `eval` is `eval/fid`."""
    return {f"{group}/{name}": value for name, value in metrics.items()}


def figures_among(metrics: Mapping[str, float]) -> dict[str, float]:
    """The figures among a run's metrics, as metrics.json calls them.

    A run from before there were groups has them under these names.
    """
    return {
        name.removeprefix(f"{EVAL}/"): value
        for name, value in metrics.items()
        if "/" not in name or name.startswith(f"{EVAL}/")
    }
