"""The proof that the exported files are the trained model: all draw from the same noise over a whole sampling run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.deploy.runtime import CPU, Precision, Sampler
from ddpm.diffusion import sampling
from ddpm.diffusion.noise import ImageNoise
from ddpm.files import sha256_of
from ddpm.model import Model

GUIDANCE = 2.0  # of the run, where a model can be guided


def measure_parity(
    model: Model, directory: Path, *, samples: int, steps: int, tolerances: dict[Precision, float]
) -> dict[str, Any]:
    """Hold every exported file against the trained model on the same noise over a full run: by DDIM, or where the
    network has a variance to be wrong about, by the ancestral sampler.

    Args:
        tolerances: largest absolute difference allowed, in [−1, 1], of each precision that was exported.

    Returns:
        What parity.json says: `files`, of each the largest absolute difference and whether it is allowed; `passed`,
        whether all are; and the float32 files' difference and tolerance by themselves.
    """
    # CPU against CPU: what is compared is the export, not two devices' arithmetic.
    model = Model(copy.deepcopy(model.network).to("cpu").eval(), model.card)
    learned = model.card.config.process.variance == "learned_range"
    choices: dict[str, Any] = {"sampler": "ddim", "eta": 0.0}
    if learned:
        choices = {"sampler": "ancestral", "variance": "learned_range"}
    if model.guidable:
        # Rows with guidance and rows without, which take other ways through the graph.
        choices |= {"guidance_scale": GUIDANCE, "guidance_interval": (0.0, 0.5)}
    plan, given = model.plan(steps=steps, **choices), model.given(samples)

    def noise() -> ImageNoise:
        return ImageNoise(0, samples, model.codec.network_shape)

    draw = noise().draw
    x = torch.from_numpy(draw())
    trained = sampling.sample(model.denoiser(given), plan, x, lambda: torch.from_numpy(draw())).numpy()
    files: dict[str, dict[str, Any]] = {}
    for precision, tolerance in tolerances.items():
        for in_graph in (False, True):
            exported = Sampler(directory, providers=[CPU], precision=precision, in_graph=in_graph)
            draw = noise().draw
            difference = float(np.abs(trained - exported.run(plan, draw(), draw, given)).max())
            files[exported.file.name] = {
                "max_abs_difference": difference,
                "tolerance": tolerance,
                "passed": difference <= tolerance,
                "sha256": sha256_of(exported.file),
            }
    return {
        "max_abs_difference": max(files[name]["max_abs_difference"] for name in ("denoiser.onnx", "sampler.onnx")),
        "tolerance": tolerances["fp32"],
        "passed": all(file["passed"] for file in files.values()),
        "samples": samples,
        "sampler": choices["sampler"],
        "steps": steps,
        "files": files,
    }
