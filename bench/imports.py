"""How near imported models are to the originals: docs/imports.md.

    python -m bench.imports

It runs the tests that hold imported networks against their published implementations, with random weights, and writes
down the largest relative difference that each of them found, and the numbers of parameters of the published sizes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.page import table
from ddpm.files import write_bytes

PAGE = Path("docs/imports.md")
RECORD = "DDPM_RECORD"  # as of tests/recorded.py
TESTS = (
    "tests/interop/test_stable_diffusion.py",
    "tests/interop/test_unet_condition.py",
    "tests/interop/test_controlnet.py",
    "tests/conditioning/test_clip_text.py",
    "tests/core/test_autoencoder.py",
    "tests/core/test_spatial_transformer.py",
    "tests/core/test_controlled.py",
)
# What is compared: with what it is held against.
ROWS = {
    "U-Net": "diffusers' UNet2DConditionModel, its output",
    "autoencoder": "diffusers' AutoencoderKL: mean, log variance and decoded pictures",
    "text encoder": "CLIP's text encoder of torch's own transformer layers, all tokens",
    "control": "diffusers' ControlNetModel, all its residuals",
    "U-Net with a control": "diffusers' UNet2DConditionModel with the residuals of its ControlNetModel",
    "pipeline, DDIM": "the loop of StableDiffusionPipeline with guidance, DDIMScheduler, from the same noise",
    "pipeline, DPM-Solver++(2M)": "the same with DPMSolverMultistepScheduler",
    "original file": "diffusers' conversion of files with the original names, all weights",
    "pipeline, out and in again": "the published weights, after `ddpm import` and `ddpm export-diffusers`",
}


def recorded() -> list[dict[str, Any]]:
    """What the tests found, in their order.

    Raises:
        CalledProcessError: one of them failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
        subprocess.run(command, check=True, env={**os.environ, RECORD: str(path)})
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def rows(found: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Of each comparison: what, against what, the largest relative difference, how many times it was compared, and the
    parameters."""
    differences: dict[str, list[float]] = {what: [] for what in ROWS}
    parameters: dict[str, list[int]] = {what: [] for what in ROWS}
    for each in found:
        if "parameters" in each:
            parameters[each["what"]].append(each["parameters"])
        else:
            differences[each["what"]].append(each["difference"])
    return [
        [
            what,
            against,
            _number(max(differences[what])),
            str(len(differences[what])),
            " and ".join(f"{count:,}" for count in sorted({*parameters[what]})),
        ]
        for what, against in ROWS.items()
    ]


def _number(difference: float) -> str:
    return "0: equal to the bit" if difference == 0 else f"{difference:.1e}"


def markdown(found: Iterable[Mapping[str, Any]]) -> str:
    """The page."""
    head = ["imported", "held against", "largest relative difference", "comparisons", "parameters"]
    return "\n\n".join(
        (
            "# How near imported models are to the originals",
            "`python -m bench.imports` runs the tests that compare them, and writes this page. The networks are small, "
            "and their weights are random: published weights cannot be had where the tests run. Both sides compute in "
            "float32 on the CPU. A relative difference is the norm of the difference over the norm of the original's "
            "answer. The parameters are those of the published sizes: of Stable Diffusion 1 and 2, of which the tests "
            "build the networks without memory for their weights.",
            table(head, rows(found)),
        )
    )


def main() -> None:
    write_bytes(PAGE, (markdown(recorded()) + "\n").encode())


if __name__ == "__main__":
    main()
