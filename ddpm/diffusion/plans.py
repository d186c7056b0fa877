"""Sampling plans: a sampler is a table (numpy only).

Every sampler here is linear in what the network says, the current x and a fresh Gaussian z, so it is fully described
by one row of numbers a step. The executors run the same rows: torch (`diffusion.sampling`), numpy around onnxruntime
(`deploy.runtime`), and whatever else can multiply. A row says, with `out` the network's output at `timestep`:

    x0 = clamp(x0_from_x · x + x0_from_out · out, −clip, clip)
    x  = to_x0 · x0 + to_x · x + to_prev · x0_before + to_noise · z

where `x0_before` is the x0 of the row above (multistep samplers). ε̂ needs no column: it is the combination of x and x0
that the two satisfy together, already folded into `to_x` and `to_x0`, and so it follows a clipped x0 as it should.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.diffusion.schedules import Float64, Schedule, spaced_timesteps

COLUMNS = ("x0_from_x", "x0_from_out", "clip", "to_x0", "to_x", "to_prev", "to_noise")
# What JSON and onnxruntime can both say; every image lies far inside it.
NO_CLIP = 1e30


@dataclass(frozen=True)
class SamplingPlan:
    """A sampler as a table.

    Attributes:
        timesteps: [S] int64, what the network is told, first row first (descending noise).
        table: [S, len(COLUMNS)] float64.
    """

    timesteps: NDArray[np.int64]
    table: Float64

    def __post_init__(self) -> None:
        if self.table.shape != (len(self.timesteps), len(COLUMNS)):
            raise ValueError(f"a plan of {len(self.timesteps)} steps needs a table of that many rows and {COLUMNS}")

    def __len__(self) -> int:
        return len(self.timesteps)

    def column(self, name: str) -> Float64:
        """One named column, [S]."""
        return self.table[:, COLUMNS.index(name)]


def x0_coefficients(prediction: str, alpha_bar: Float64) -> tuple[Float64, Float64]:
    """Coefficients (of x_t, of the network's output) that give x̂_0, for each ᾱ.

    ε: x_0 = (x_t − √(1−ᾱ) ε)/√ᾱ.  v = √ᾱ ε − √(1−ᾱ) x_0 (Salimans & Ho 2022): x_0 = √ᾱ x_t − √(1−ᾱ) v.
    """
    signal, noise = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    if prediction == "epsilon":
        return 1 / signal, -noise / signal
    if prediction == "x0":
        return np.zeros_like(signal), np.ones_like(signal)
    if prediction == "v":
        return signal, -noise
    raise ValueError(f"no prediction {prediction!r}; there are: epsilon, x0, v")


def ancestral(visited: Schedule, variance: str, eta: float) -> dict[str, Float64]:
    """Algorithm 2 of Ho et al. 2020: the posterior's mean, and σ² = β_t (`fixed_large`) or β̃_t (`fixed_small`)."""
    if variance not in ("fixed_large", "fixed_small"):
        raise ValueError(f"no variance {variance!r}; there are: fixed_large, fixed_small")
    sigma = np.sqrt(visited.betas if variance == "fixed_large" else visited.posterior_variance)
    sigma[0] = 0.0  # z = 0 at the last step
    return {"to_x0": visited.posterior_mean_coef_x0, "to_x": visited.posterior_mean_coef_xt, "to_noise": sigma}


def ddim(visited: Schedule, variance: str, eta: float) -> dict[str, Float64]:
    """DDIM (Song et al. 2021, eq. 12 and 16): x' = √ᾱ' x̂_0 + √(1−ᾱ'−σ²) ε̂ + σ z.

    σ = η √((1−ᾱ')/(1−ᾱ)) √(1−ᾱ/ᾱ') is η √β̃ of the respaced process: 0 is deterministic, 1 the DDPM posterior.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in 0..1, found {eta}")
    alpha_bar, alpha_bar_prev = visited.alphas_cumprod, visited.alphas_cumprod_prev
    sigma = eta * np.sqrt(visited.posterior_variance)
    # ε̂ = (x − √ᾱ x̂_0)/√(1−ᾱ), folded into the coefficients of x and x̂_0.
    to_x = np.sqrt(np.maximum(1 - alpha_bar_prev - sigma**2, 0)) / np.sqrt(1 - alpha_bar)
    to_x0 = np.sqrt(alpha_bar_prev) - to_x * np.sqrt(alpha_bar)
    return {"to_x0": to_x0, "to_x": to_x, "to_noise": sigma}


# A sampler: (the visited steps as a schedule, variance, eta) → its columns in ascending t; those it leaves out are 0.
Sampler = Callable[[Schedule, str, float], dict[str, Float64]]
SAMPLERS: dict[str, Sampler] = {"ancestral": ancestral, "ddim": ddim}


def sampling_plan(
    schedule: Schedule,
    *,
    sampler: str,
    steps: int,
    prediction: str,
    variance: str,
    spacing: str = "trailing",
    eta: float = 0.0,
    clip: bool = True,
) -> SamplingPlan:
    """The table of a named sampler on `steps` of the schedule's T timesteps.

    Args:
        prediction: what the network outputs: `epsilon`, `x0` or `v`.
        variance: of the ancestral sampler: `fixed_large` or `fixed_small`.
        spacing: which timesteps are visited, see `schedules.SPACINGS`.
        eta: DDIM's share of noise, 0..1.
        clip: hold x̂_0 in [−1, 1].

    Raises:
        ValueError: a name is unknown, or a number out of its range.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"no sampler {sampler!r}; there are: {', '.join(SAMPLERS)}")
    visited = schedule.respaced(spaced_timesteps(len(schedule), steps, spacing))
    x0_from_x, x0_from_out = x0_coefficients(prediction, visited.alphas_cumprod)
    columns = {
        "x0_from_x": x0_from_x,
        "x0_from_out": x0_from_out,
        "clip": np.full(steps, 1.0 if clip else NO_CLIP),
        **SAMPLERS[sampler](visited, variance, eta),
    }
    ascending = np.stack([columns.get(name, np.zeros(steps)) for name in COLUMNS], axis=1)
    return SamplingPlan(visited.timesteps[::-1].copy(), ascending[::-1].copy())


def plan_for(process: Mapping[str, Any], sampling: Mapping[str, Any], **overrides: Any) -> SamplingPlan:
    """The plan of a model's configuration, with the overrides that are not None in place of its own choices.

    Args:
        process: `schedule`, `timesteps`, `prediction` and `variance`, as in params.yaml.
        sampling: the other arguments of `sampling_plan`, as in params.yaml.
    """
    chosen = {**sampling, **{key: value for key, value in overrides.items() if value is not None}}
    schedule = Schedule.named(process["schedule"], process["timesteps"])
    return sampling_plan(schedule, prediction=process["prediction"], variance=process["variance"], **chosen)
