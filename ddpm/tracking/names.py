"""How metrics and files are called in MLflow, whose pages gather charts by what stands before the last slash."""

from __future__ import annotations

from collections.abc import Mapping

from ddpm.figures.figure import FIGURES

# The artifact with the fields of the protocol; reports/V/protocol.json.
PROTOCOL = "eval_protocol.json"

_EVAL, _DETAIL = "eval/", "eval/detail/"


def grouped(group: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics as a group of charts: `loss` of the group `train` is `train/loss`."""
    return {f"{group}/{name}": value for name, value in metrics.items()}


def evaluation(metrics: Mapping[str, float]) -> dict[str, float]:
    """The numbers of metrics.json: figures as `eval/fid`, what belongs to them as `eval/detail/fid_floor`."""
    return {f"{_EVAL if name in FIGURES else _DETAIL}{name}": value for name, value in metrics.items()}


def evaluation_among(metrics: Mapping[str, float]) -> dict[str, float]:
    """Of all metrics of a run the numbers of metrics.json, as it calls them.

    A run from before there were groups has them under these names.
    """
    return {
        name.removeprefix(_DETAIL).removeprefix(_EVAL): value
        for name, value in metrics.items()
        if "/" not in name or name.startswith(_EVAL)
    }
