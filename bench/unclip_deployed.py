"""What `bench.unclip` measures of an exported cascade: the size of its files, how far they are from the trained models,
and how long an image takes.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.rounds import median_ratio, paired_times
from ddpm.deploy.runtime import CPU, open_exported
from ddpm.drawer import Drawer
from ddpm.files import read_json


def deployed(trained: Drawer, directory: Path, *, prompt: str, count: int, rounds: int) -> dict[str, Any]:
    """The files of a deploy directory, and the CPU time of its images beside that of the trained model's, as JSON.

    Args:
        prompt: what all images are asked for.
        count: images of a batch.
    """
    torch.set_num_threads(1)
    exported = open_exported(directory, providers=[CPU], threads=1)
    contestants = {
        name: partial(drawer.sample, count, prompt=prompt)
        for name, drawer in {"torch": trained, "ONNX": exported}.items()
    }
    times = paired_times(contestants, rounds, time.process_time)
    return {
        "files": [
            {
                "name": name,
                "megabytes": round((directory / name).stat().st_size / 1e6, 2),
                "difference": found["max_abs_difference"],
            }
            for name, found in read_json(directory / "parity.json")["files"].items()
        ],
        "times": {
            "images": count,
            "rounds": rounds,
            "seconds_per_image": {name: round(statistics.median(own) / count, 4) for name, own in times.items()},
            "ratio": round(median_ratio(times["ONNX"], times["torch"]), 3),
        },
    }
