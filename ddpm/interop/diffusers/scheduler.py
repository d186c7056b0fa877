"""The configuration of diffusers' schedulers, theirs to ours and ours to theirs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, Field, model_validator

from ddpm.config import Fraction, Positive, Prediction, ProcessConfig, SamplingConfig, ScheduleName, Variance
from ddpm.diffusion.plans import NO_CLIP
from ddpm.diffusion.schedules import Float64, Schedule
from ddpm.errors import UserError

_PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
_SCHEDULE_NAMES: dict[ScheduleName, str] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
}
_VARIANCES: dict[str, Variance] = {
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


class SchedulerConfig(BaseModel, frozen=True):
    """What decides the process in their scheduler_config.json, with the schedulers' defaults and as far as ours has a
    counterpart; other keys are passed over."""

    class_name: Literal["DDPMScheduler", "DDIMScheduler"] = Field(alias="_class_name")
    num_train_timesteps: Positive = 1000
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    beta_start: Fraction = 1e-4
    beta_end: Fraction = 0.02
    trained_betas: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    rescale_betas_zero_snr: Literal[False] = False
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range"] = (
        "fixed_small"
    )
    clip_sample: bool = True
    clip_sample_range: Annotated[float, Field(ge=1, le=1)] = 1
    thresholding: bool = False
    dynamic_thresholding_ratio: Annotated[float, Field(gt=0, le=1)] = 0.995
    sample_max_value: float = 1.0
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: Literal[0] = 0
    set_alpha_to_one: Literal[True] = True

    @model_validator(mode="after")
    def _a_threshold_has_no_bound(self) -> SchedulerConfig:
        if self.thresholding and self.sample_max_value < NO_CLIP:
            raise ValueError(
                f"sample_max_value is {self.sample_max_value}: ddpm has no bound of a dynamic threshold; expected "
                f"{NO_CLIP}"
            )
        return self


def process_config(theirs: SchedulerConfig, where: str) -> tuple[ProcessConfig, SamplingConfig]:
    """The process and the sampling plan of their scheduler.

    Args:
        where: what errors call it.

    Raises:
        UserError: its betas are of no schedule of ours.
    """
    process = ProcessConfig(
        timesteps=theirs.num_train_timesteps,
        schedule=_schedule(theirs, where),
        prediction=_PREDICTIONS[theirs.prediction_type],
        variance=_VARIANCES[theirs.variance_type],
    )
    sampler, steps = _SAMPLERS[theirs.class_name]
    sampling = SamplingConfig(
        sampler=sampler,
        steps=min(steps, theirs.num_train_timesteps),
        spacing=theirs.timestep_spacing,
        clip=theirs.clip_sample,
        dynamic_threshold=theirs.dynamic_thresholding_ratio if theirs.thresholding else None,
    )
    return process, sampling


def _schedule(theirs: SchedulerConfig, where: str) -> ScheduleName:
    """The name of the schedule that has their betas."""
    start, end, timesteps = theirs.beta_start, theirs.beta_end, theirs.num_train_timesteps
    betas: Float64
    if theirs.trained_betas is not None:
        betas = np.array(theirs.trained_betas)
    elif theirs.beta_schedule == "linear":
        betas = np.linspace(start, end, timesteps)
    elif theirs.beta_schedule == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, timesteps) ** 2
    else:
        return "cosine"
    for name in get_args(ScheduleName):
        ours = Schedule.named(name, timesteps).betas
        if betas.shape == ours.shape and np.allclose(betas, ours, rtol=1e-5, atol=0):
            return name
    raise UserError(f"{where}: the betas, from {betas[0]} to {betas[-1]}, are of no schedule that ddpm has")


def their_scheduler(process: ProcessConfig, sampling: SamplingConfig) -> dict[str, Any]:
    """Their scheduler_config.json of our process and, of our sampling, of what it says: the variance, the strides and
    how x̂_0 is held. The sampler is Algorithm 2, and the number of steps the pipeline's to say.

    Raises:
        UserError: the sampling is of a choice that theirs lacks; the message names the key.
    """
    if sampling.spacing == "quadratic":
        raise UserError("sampling.spacing is quadratic, which diffusers' DDPMScheduler does not have")
    variance = sampling.variance or process.variance
    if process.variance == "learned_range" and variance != "learned_range":
        raise UserError(
            f"sampling.variance is {variance}, which diffusers' DDPMScheduler does not have of a network that learned "
            "its variance"
        )
    threshold = sampling.dynamic_threshold
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
        "variance_type": variance,
        "prediction_type": predictions[process.prediction],
        "clip_sample": sampling.clip,
        "thresholding": threshold is not None,
        "dynamic_thresholding_ratio": threshold or 0.995,  # without thresholding: their default, and without meaning
        "sample_max_value": NO_CLIP,
        "timestep_spacing": sampling.spacing,
    }
