"""What decides the weights of a training: runs that share all of it share their checkpoints."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.closure import closure, digest
from ddpm.config import VariantConfig, decisive
from ddpm.files import read_json, write_json

FILE = "decisive.json"  # beside the checkpoints

# Where the search for code that decides the weights stops: what watches, names, saves or samples.
_BESIDE = (
    "__init__.py",
    "closure.py",
    "config.py",  # its values are hashed, with the defaults filled in
    "data/__init__.py",
    "diffusion/__init__.py",
    "diffusion/noise.py",
    "diffusion/plans.py",
    "diffusion/sampling.py",
    "errors.py",
    "files.py",
    "layout.py",
    "stages/__init__.py",
    "stages/fingerprint.py",
    "stages/memory.py",
    "stages/progress.py",
    "stages/watch.py",
    "tracking/",
    "training/__init__.py",
)


def decisive_code() -> list[str]:
    """The files of this package that decide the weights, as paths below it."""
    return closure("stages/train.py", without=_BESIDE)


def decisions(
    config: VariantConfig, seed: int, data_sha256: str, precision: str, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Everything that decides the weights beyond rounding, by what it is of and its name.

    Args:
        data_sha256: of the training split.
        precision: what `training.precision` comes to on this device.
    """
    sections = ("network", "process", "objective", "training")
    values = {f"{section}.{key}": value for section in sections for key, value in decisive(getattr(config, section))}
    return {
        "configuration": values | {"training.precision": precision, "seed": seed},
        "data": {"training split": data_sha256},
        "machine": {"device": device.type},
        "packages": {"torch": torch.__version__, "numpy": np.__version__},  # numpy shuffles the data
        "code": {f"ddpm/{file}": digest(file) for file in decisive_code()},
    }


def fingerprint(decided: dict[str, dict[str, Any]]) -> str:
    """A hash of `decisions`."""
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def remember(decided: dict[str, dict[str, Any]], directory: Path) -> None:
    """Write down what decided the checkpoints in a directory, so that `difference` can be told later."""
    write_json(directory / FILE, decided)


def difference(decided: dict[str, dict[str, Any]], other: Path) -> str:
    """In words, what of the decisions differs from those in another directory of checkpoints.

    Returns:
        Such as "training.learning_rate is 0.002, and was 0.001"; at most three things, and how many more.
    """
    try:
        before = read_json(other / FILE)
        told = [
            _told(kind, name, here.get(name), there.get(name))
            for kind, here in json.loads(json.dumps(decided)).items()
            for there in [before[kind]]
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        ]
    except (OSError, ValueError, KeyError, AttributeError):
        return "what decided it was not recorded"
    return "; ".join(told[:3]) + (f" (and {len(told) - 3} more)" if len(told) > 3 else "")


def _told(kind: str, name: str, now: Any, before: Any) -> str:
    if kind in ("code", "data"):
        return f"the {name if kind == 'data' else f'code of {name}'} has changed"
    return f"{name} is {now}, and was {before}"
