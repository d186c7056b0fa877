"""Samplers as columns of a plan's table (numpy only); `plans` says what the columns do.

All of them move scaled x from one noise level to the next, so they serve every process of `coordinates`. Straight steps
are straight in the process's own x and σ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ddpm.diffusion.heun import heun, heun_levels
from ddpm.diffusion.langevin import langevin, langevin_levels
from ddpm.diffusion.schedules import VARIANCES, Float64, Schedule
from ddpm.diffusion.steps import Choices, Columns, Steps

# --- one row a level: (the visited levels, choices) → columns in ascending t


def ancestral(visited: Schedule, choices: Choices) -> Columns:
    """Algorithm 2 of Ho et al. 2020: the posterior's mean, and noise of one of three variances.

    - `fixed_large`: β_t of the visited steps. With fewer than T it is DDIM's over-dispersed σ̂ (Song et al. 2021, §5).
    - `fixed_small`: β̃_t.
    - `learned_range`: exp(f log β_t + (1−f) log β̃_t) with f = (v+1)/2 of each pixel (Nichol & Dhariwal 2021, eq. 15),
      that is σ = (β_t β̃_t)^¼ exp(v/4 · log(β_t/β̃_t)).
    """
    variance, slope = choices.variance, np.zeros(len(visited))
    if variance == "fixed_large":
        sigma = np.sqrt(visited.betas)
    elif variance == "fixed_small":
        sigma = np.sqrt(visited.posterior_variance)
    elif variance == "learned_range":
        large, small = np.log(visited.betas), visited.posterior_log_variance_clipped
        sigma, slope = np.exp((large + small) / 4), (large - small) / 4
    else:
        raise ValueError(f"no variance {variance!r}; there are: {', '.join(VARIANCES)}")
    variances = sigma**2
    if variance != "learned_range":
        # As p_θ's variance at the last step, which has no noise but a Σ (`GaussianProcess.p_mean_variance`).
        variances[0] = np.exp(visited.posterior_log_variance_clipped[0])
    sigma[0] = 0.0  # z = 0 at the last step
    return {
        "to_x0": visited.posterior_mean_coef_x0,
        "to_x": visited.posterior_mean_coef_xt,
        "to_noise": sigma,
        "log_noise_from_out": slope,
        "mean_shift": variances,
    }


def ddim(visited: Schedule, choices: Choices) -> Columns:
    """DDIM (Song et al. 2021, eq. 12 and 16): x' = √ᾱ' x̂_0 + √(1−ᾱ'−σ²) ε̂ + σ z.

    σ = η √((1−ᾱ')/(1−ᾱ)) √(1−ᾱ/ᾱ') is η √β̃ of the respaced process: 0 is deterministic, 1 the DDPM posterior.
    """
    return _ddim(visited, choices.eta)


def _ddim(visited: Schedule, eta: float) -> Columns:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in 0..1, found {eta}")
    alpha_bar, alpha_bar_prev = visited.alphas_cumprod, visited.alphas_cumprod_prev
    sigma = eta * np.sqrt(visited.posterior_variance)
    # ε̂ = (x − √ᾱ x̂_0)/√(1−ᾱ), folded into the coefficients of x and x̂_0.
    to_x = np.sqrt(np.maximum(1 - alpha_bar_prev - sigma**2, 0)) / np.sqrt(1 - alpha_bar)
    to_x0 = np.sqrt(alpha_bar_prev) - to_x * np.sqrt(alpha_bar)
    return {"to_x0": to_x0, "to_x": to_x, "to_noise": sigma}


def dpmpp_2m(visited: Schedule, choices: Choices) -> Columns:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): DDIM on an x̂_0 extrapolated, in λ, to the middle of the step."""
    return _extrapolated(visited, _ddim(visited, 0.0))


def dpmpp_2m_sde(visited: Schedule, choices: Choices) -> Columns:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022): the same extrapolation of DDIM with η = 1, the DDPM posterior.

    With many steps it tends to ancestral sampling, not to the ODE.
    """
    return _extrapolated(visited, _ddim(visited, 1.0))


def dpmpp_2s(visited: Schedule, choices: Choices) -> Columns:
    """DPM-Solver++(2S) (Lu et al. 2022, algorithm 1): rows in pairs, a DDIM step to a point between, then the whole.

    The second row of a pair sets out again from the x of the first, x = (x_between − a x̂_0)/b when the first row was
    x_between = a x̂_0 + b x. The last row is DDIM; so is the one before it when an even count leaves it without a pair.
    """
    first_order = _ddim(visited, 0.0)
    to_x0, to_x = first_order["to_x0"], first_order["to_x"]
    row = np.arange(len(visited))
    second = ((len(visited) - 1 - row) % 2 == 1) & (row > 0)
    between = _of_row_above(to_x0)
    whole = to_x0 + to_x * between  # DDIM's coefficient of x̂_0 over both rows
    share = (1 + _step_ratios(visited)) / 2  # of the x̂_0 between, 1 when it lies halfway in λ
    return {
        **first_order,
        "to_x0": np.where(second, whole * share, to_x0),
        "to_prev": np.where(second, whole * (1 - share) - to_x * between, 0.0),
    }


def unipc(visited: Schedule, choices: Choices) -> Columns:
    """UniPC of order 2 with B(h) = e^h − 1 (Zhao et al. 2023), `bh2` in its authors' code.

    DPM-Solver++(2M) is the predictor, and each x is corrected with the x̂_0 found there before the next step is taken.
    The corrector changes no more than the weights of the three latest x̂_0 in x, so it costs one more column.
    """
    return _unipc(visited, np.ones(len(visited)))


def unipc_bh1(visited: Schedule, choices: Choices) -> Columns:
    """UniPC of order 2 with B(h) = h (Zhao et al. 2023), `bh1` in its authors' code, which has it as the default for
    unconditional CIFAR-10.
    """
    h = np.append(0.0, -np.diff(_half_log_snr(visited)))  # of the step that leaves a row
    return _unipc(visited, np.append(1.0, h[1:] / -np.expm1(-h[1:])))


def _unipc(visited: Schedule, bh: Float64) -> Columns:
    """UniPC of order 2.

    B(h) plays a part only where the weight of a difference is fixed at 1/2: in the predictor, and in the first
    correction. Elsewhere the weights are solved for, and it cancels.

    Args:
        bh: B(h) over 1 − e^−h, of the step that leaves each row, [S].
    """
    predictor = _extrapolated(visited, _ddim(visited, 0.0), bh)
    # Of the step that led to a row: its DDIM coefficient, its length in λ, and that over the length of the one before.
    arrived = _of_row_above(_ddim(visited, 0.0)["to_x0"])
    ratio = _of_row_above(_step_ratios(visited))
    h = np.append(-np.diff(_half_log_snr(visited)), 1.0)
    # φ-functions over B(h), eq. 9 of the paper for the data prediction.
    b1 = -1 / h - 1 / np.expm1(-h)
    b2 = 2 / h**2 + (2 / h - 1) / np.expm1(-h)
    older = ratio * (b1 - b2) / (1 + ratio)
    fixed = _of_row_above(bh) / 2
    newest = np.where(ratio > 0, b1 - older, fixed)
    older = np.where(ratio > 0, ratio * (older - fixed), 0.0)
    carried = predictor["to_x"] * arrived
    return {
        **predictor,
        "to_x0": predictor["to_x0"] + carried * newest,
        "to_prev": predictor["to_prev"] + carried * (older - newest),
        "to_prev2": -carried * older,
    }


def _extrapolated(visited: Schedule, first_order: Columns, weight: Float64 | float = 1.0) -> Columns:
    """A first-order solver, given the x̂_0 extrapolated from the latest two to the middle of the step, or as far as
    `weight` times that.

    The first row has nothing to extrapolate from, the last ends at λ = ∞: both stay as they are.
    """
    ahead = _step_ratios(visited) / 2 * weight
    to_x0 = first_order["to_x0"]
    return {**first_order, "to_x0": to_x0 * (1 + ahead), "to_prev": -to_x0 * ahead}


def _half_log_snr(visited: Schedule) -> Float64:
    """λ = log(√ᾱ/√(1−ᾱ)), in which the solvers' polynomials live, [S]."""
    return np.log(visited.alphas_cumprod / (1 - visited.alphas_cumprod)) / 2


def _step_ratios(visited: Schedule) -> Float64:
    """Each row's step in λ over that of the row above it, [S]; 0 in the first row and the last, which have no two."""
    steps = -np.diff(_half_log_snr(visited))
    ratios = np.zeros(len(visited))
    ratios[1:-1] = steps[:-1] / steps[1:]
    return ratios


def _of_row_above(column: Float64) -> Float64:
    """The column with every value moved one row down, 0 in the first row. (The columns ascend in t.)"""
    return np.append(column[1:], 0.0)


def euler(visited: Schedule, choices: Choices) -> Columns:
    """Euler's method for the probability-flow ODE, straight in the process's own x and σ (Karras et al. 2022; Liu et
    al. 2022). Of every process this is DDIM without noise.
    """
    return _ddim(visited, 0.0)


def euler_ancestral(visited: Schedule, choices: Choices) -> Columns:
    """Euler to σ_down, then noise σ_up (k-diffusion's name). Of every process this is DDIM with η = 1, the posterior:
    σ_up² = σ'²(σ²−σ'²)/σ² and σ_down = σ'²/σ.
    """
    return _ddim(visited, 1.0)


def euler_maruyama(visited: Schedule, choices: Choices) -> Columns:
    """The reverse SDE dx = −dσ²/dt ∇log p dt + √(dσ²/dt) dw of x at a = 1 (Song et al. 2021, eq. 6 and 9), whose
    probability-flow ODE the other samplers follow: x' = x + (σ²−σ'²) s + √(σ²−σ'²) z. No noise in the last row.
    """
    before, after = visited.alphas_cumprod, visited.alphas_cumprod_prev
    sigma = np.sqrt(after * (1 / before - 1 / after))
    sigma[0] = 0.0
    return {"to_x0": visited.posterior_mean_coef_x0, "to_x": visited.posterior_mean_coef_xt, "to_noise": sigma}


# --- all of them


class Sampler(NamedTuple):
    """A sampler.

    Attributes:
        steps: (the visited levels, choices) → rows.
        levels: how many levels are visited.
        uses: which of the choices it alone uses, with others that use them.
    """

    steps: Callable[[Schedule, Choices], Steps]
    levels: Callable[[Choices], int] = lambda choices: choices.steps
    uses: tuple[str, ...] = ()


def _a_row_each(columns: Callable[[Schedule, Choices], Columns]) -> Callable[[Schedule, Choices], Steps]:
    return lambda visited, choices: Steps(columns(visited, choices), visited, np.arange(len(visited)))


SAMPLERS: dict[str, Sampler] = {
    "ancestral": Sampler(_a_row_each(ancestral), uses=("variance",)),
    "ddim": Sampler(_a_row_each(ddim), uses=("eta",)),
    "dpmpp_2m": Sampler(_a_row_each(dpmpp_2m)),
    "dpmpp_2m_sde": Sampler(_a_row_each(dpmpp_2m_sde)),
    "dpmpp_2s": Sampler(_a_row_each(dpmpp_2s)),
    "unipc": Sampler(_a_row_each(unipc)),
    "unipc_bh1": Sampler(_a_row_each(unipc_bh1)),
    "euler": Sampler(_a_row_each(euler)),
    "euler_ancestral": Sampler(_a_row_each(euler_ancestral)),
    "euler_maruyama": Sampler(_a_row_each(euler_maruyama)),
    "heun": Sampler(heun, heun_levels, uses=("churn", "churn_interval", "churn_noise")),
    "langevin": Sampler(langevin, langevin_levels, uses=("langevin_steps", "langevin_epsilon")),
}
# Of each choice that not all samplers use, the sampler that does.
ONLY: dict[str, str] = {choice: name for name, sampler in SAMPLERS.items() for choice in sampler.uses}
