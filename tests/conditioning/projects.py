"""The tiny project with a model that learns a condition in seconds."""

from __future__ import annotations

import contextlib
import copy
import shutil
from pathlib import Path
from typing import Any

import yaml

from ddpm.cli.main import main


def trained_with(condition: dict[str, Any], template: Path, folder: Path, codec: dict[str, Any] | None = None) -> Path:
    """A copy of the prepared template, with its model trained for 60 steps to predict x_0 under this condition."""
    directory = folder / "project"
    shutil.copytree(template, directory)
    params = yaml.safe_load((directory / "params.yaml").read_text())
    tiny = params["models"]["tiny"]
    tiny |= {"condition": condition, "codec": codec or {}}
    if codec:  # what is measured has the side of the data
        params |= {"variants": ["other"]}
        params["models"]["other"] = copy.deepcopy({**tiny, "codec": {}})
    tiny["process"] |= {"prediction": "x0", "schedule": "cosine"}
    tiny["training"] |= {"steps": 60, "batch_size": 32, "learning_rate": 5e-3, "sample_every": 60}
    (directory / "params.yaml").write_text(yaml.safe_dump(params))
    with contextlib.chdir(directory):
        assert main(["train", "tiny"]) == 0
    return directory
