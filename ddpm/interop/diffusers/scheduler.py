"""The configuration of diffusers' schedulers, theirs to ours and ours to theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ddpm.config import ProcessConfig, SamplingConfig, validate
from ddpm.diffusion.schedules import SCHEDULES, Float64, Schedule
from ddpm.errors import UserError

_PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
_SCHEDULE_NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
_VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned_range": "learned_range",
}
_SAMPLERS: dict[str, tuple[Literal["ancestral", "ddim"], int]] = {
    "DDPMScheduler": ("ancestral", 1000),
    "DDIMScheduler": ("ddim", 50),
}


def process_config(config: Mapping[str, Any], where: str) -> tuple[ProcessConfig, SamplingConfig]:
    """The process and the sampling plan of a scheduler's configuration."""
    name = config.get("_class_name")
    if name not in _SAMPLERS:
        raise UserError(f"{where}: the scheduler is {name}; expected {' or '.join(_SAMPLERS)}")
    supported: dict[str, tuple[Any, ...]] = {
        "rescale_betas_zero_snr": (False,),
        "set_alpha_to_one": (True,),
        "steps_offset": (0,),
        "thresholding": (False,),
        "clip_sample_range": (1,),
        "prediction_type": tuple(_PREDICTIONS),
        "variance_type": tuple(_VARIANCES),
    }
    for key, values in supported.items():
        if config.get(key, values[0]) not in values:
            raise UserError(f"{where}: the scheduler's {key} is {config[key]}, which ddpm does not have")
    timesteps = config.get("num_train_timesteps", 1000)
    process = {
        "timesteps": timesteps,
        "schedule": _schedule(config, timesteps, where),
        "prediction": _PREDICTIONS[config.get("prediction_type", "epsilon")],
        "variance": _VARIANCES[config.get("variance_type", "fixed_small")],
    }
    sampler, steps = _SAMPLERS[name]
    sampling = {
        "sampler": sampler,
        "steps": min(steps, timesteps),
        "spacing": config.get("timestep_spacing", "leading"),
        "clip": config.get("clip_sample", True),
    }
    return validate(ProcessConfig, process, where), validate(SamplingConfig, sampling, where)


def _schedule(config: Mapping[str, Any], timesteps: int, where: str) -> str:
    """The name of the schedule that has the configuration's betas."""
    kind, start, end = (
        config.get("beta_schedule", "linear"),
        config.get("beta_start", 1e-4),
        config.get("beta_end", 0.02),
    )
    betas: Float64
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], dtype=np.float64)
    elif kind == "linear":
        betas = np.linspace(start, end, timesteps)
    elif kind == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, timesteps) ** 2
    elif kind == "squaredcos_cap_v2":
        return "cosine"
    else:
        raise UserError(f"{where}: the scheduler's beta_schedule is {kind}, which ddpm does not have")
    for name in SCHEDULES:
        ours = Schedule.named(name, timesteps).betas
        if betas.shape == ours.shape and np.allclose(betas, ours, rtol=1e-5, atol=0):
            return name
    raise UserError(f"{where}: the scheduler's betas, from {betas[0]} to {betas[-1]}, are of no schedule that ddpm has")


def their_scheduler(process: ProcessConfig, sampling: SamplingConfig) -> dict[str, Any]:
    betas = Schedule.named(process.schedule, process.timesteps).betas
    # A short linear schedule is held below 1, which its two ends cannot say, and of the sigmoid they have no name.
    named = process.schedule in _SCHEDULE_NAMES and not (process.schedule == "linear" and betas[-1] >= 0.999)
    predictions = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": process.timesteps,
        "beta_schedule": _SCHEDULE_NAMES.get(process.schedule, "linear"),
        "beta_start": float(betas[0]),
        "beta_end": float(betas[-1]),
        "trained_betas": None if named else betas.tolist(),
        "variance_type": process.variance,
        "prediction_type": predictions[process.prediction],
        "clip_sample": sampling.clip,
        "timestep_spacing": "leading" if sampling.spacing == "quadratic" else sampling.spacing,
    }
