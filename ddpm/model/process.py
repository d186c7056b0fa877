"""The process of a configuration, and whether it ends in noise."""

from __future__ import annotations

import warnings

import torch

from ddpm.config.model import ModelConfig
from ddpm.config.process import ProcessConfig
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.schedules import Schedule
from ddpm.errors import DdpmWarning, UserError

# ᾱ_T, the share of an image's variance that is left at the end of the process. Sampling starts as if it were 0.
SIGNAL_WORTH_A_WARNING, SIGNAL_TO_REFUSE = 0.01, 0.2


def build_process(config: ModelConfig, device: torch.device | str = "cpu", levels: int | None = 256) -> GaussianProcess:
    """The variant's process with its tables on a device, for data on so many levels, or continuous ones."""
    process = config.process
    return GaussianProcess(
        Schedule.of(process.model_dump()),
        prediction=process.prediction,
        variance=process.variance,
        device=device,
        levels=levels,
    )


def check_end(config: ModelConfig, where: str) -> None:
    """Check that the forward process ends in noise: sampling starts there from noise alone.

    Warns where ᾱ_T is above 0.01.

    Args:
        where: what the process is of, for messages.

    Raises:
        UserError: ᾱ_T is above 0.2.
    """
    left = _signal_left(config)
    if left > SIGNAL_TO_REFUSE:
        raise UserError(f"{where}: {_at_the_end(config, left)}. Use {_more_noise(config.process)}")
    warn_of_end(config, where)


def warn_of_end(config: ModelConfig, where: str) -> None:
    """What `check_end` warns of, alone; the warning names the line that calls the caller."""
    left = _signal_left(config)
    if left > SIGNAL_WORTH_A_WARNING:
        warnings.warn(f"{where}: {_at_the_end(config, left)}", DdpmWarning, stacklevel=3)


def _signal_left(config: ModelConfig) -> float:
    """ᾱ_T of the variant's process, in 0..1."""
    return float(build_process(config).signal[-1] ** 2)


def _more_noise(process: ProcessConfig) -> str:
    return "schedule cosine, or linear with more timesteps" if process.kind == "vp" else "a larger sigma_max"


def _at_the_end(config: ModelConfig, left: float) -> str:
    process = config.process
    return (
        f"{levels_of(process)} with {process.timesteps} timesteps ends at alpha_bar = {left:.2g}, where the "
        "image is still visible, but sampling starts from noise without an image"
    )


def levels_of(process: ProcessConfig) -> str:
    """In words, what decides the noise levels of a process, for errors that compare two."""
    return f"schedule {process.schedule}" if process.kind == "vp" else f"kind {process.kind}"
