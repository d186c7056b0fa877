"""What decides the weights of a training: runs that share all of it share their checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.closure import deciding_code, digest
from ddpm.config.base import decisive
from ddpm.config.model import VariantConfig
from ddpm.files import read_json, write_json

FILE = "decisive.json"  # beside the checkpoints
# The key of `condition` that makes data decisive.
_KEYS = {"labels": "label", "captions": "prompt", "tokenizer": "prompt", "hints": "control"}


def decisive_code(stage: str = "train") -> list[str]:
    """The files that decide the weights, as paths below the package. Of the configuration the values themselves do.

    Args:
        stage: that trains, of dvc.yaml.
    """
    return [file for file in deciding_code(stage) if not file.startswith("config/")]


def decisions(
    config: VariantConfig, seed: int, data: Mapping[str, str | None], precision: str, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Everything that decides the weights beyond rounding, by what it is of and its name.

    Args:
        data: hashes of the training split, and of what a condition is made of, which decides nothing without it.
        precision: what `training.precision` comes to on this device.
    """
    stage = "train-autoencoder" if config.reconstructs else "train"
    sections = ("network", "condition", "codec", "process", "objective", "training")
    values = {f"{section}.{key}": value for section in sections for key, value in decisive(getattr(config, section))}
    return {
        "configuration": values | {"training.precision": precision, "seed": seed},
        "data": {
            name: sha for name, sha in data.items() if name not in _KEYS or getattr(config.condition, _KEYS[name])
        },
        "machine": {"device": device.type},
        "packages": {"torch": torch.__version__, "numpy": np.__version__},  # numpy shuffles the data
        "code": {f"ddpm/{file}": digest(file) for file in decisive_code(stage)},
    }


def fingerprint(decided: dict[str, dict[str, Any]]) -> str:
    """A hash of `decisions`."""
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def remember(decided: dict[str, dict[str, Any]], directory: Path) -> None:
    """Write down what decided the checkpoints in a directory, for `difference`."""
    write_json(directory / FILE, decided)


def difference(decided: dict[str, dict[str, Any]], other: Path) -> str:
    """In words, what of the decisions differs from those in another directory of checkpoints.

    Returns:
        Such as "training.learning_rate is 0.002, and was 0.001"; at most three things, and how many more.
    """
    try:
        before = read_json(other / FILE)
        found = [
            _in_words(kind, name, here.get(name), there.get(name))
            for kind, here in json.loads(json.dumps(decided)).items()
            for there in [before[kind]]
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        ]
    except (OSError, ValueError, KeyError, AttributeError):
        return "what decided it was not recorded"
    return "; ".join(found[:3]) + (f" (and {len(found) - 3} more)" if len(found) > 3 else "")


def _in_words(kind: str, name: str, now: Any, before: Any) -> str:
    if kind in ("code", "data"):
        return f"the {name if kind == 'data' else f'code of {name}'} has changed"
    return f"{name} is {now}, and was {before}"
