"""Annealed Langevin dynamics as rows of a plan, and how NCSNv2 chooses its numbers (numpy only)."""

from __future__ import annotations

import math

import numpy as np

from ddpm.diffusion.schedules import Float64, Schedule
from ddpm.diffusion.steps import MOST_LANGEVIN_STEPS, Choices, Steps


def langevin(visited: Schedule, choices: Choices) -> Steps:
    """Annealed Langevin dynamics (Song & Ermon 2019, algorithm 1): at each level `langevin_steps` rows of
    x + α s + √(2α) z with α = ε σ²/σ_L², and at the end, at σ_L, a row without noise, x + σ_L² s (Song & Ermon 2020,
    algorithm 1, which calls it denoising). If the rows do not divide among the levels, the noisiest has fewer.

    x and σ are those at a = 1. The share α/σ² of the way to x̂_0 that x goes is the same at every level.

    Raises:
        ValueError: a number is out of its range.
    """
    each, ratios, signal = choices.langevin_steps, np.exp(visited.level.log_ratio), visited.level.signal
    share = _langevin_share(ratios, choices)
    number = np.append(0, np.repeat(np.arange(len(visited)), each)[: choices.steps - 1])  # of the level, last row first
    arrives = np.append(0, number[:-1])
    factor = signal[arrives] / signal[number]
    columns = {
        "to_x0": share * signal[arrives],
        "to_x": (1 - share) * factor,
        "to_noise": np.sqrt(2 * share) * ratios[number] * signal[arrives],
    }
    last = {"to_x0": 1.0, "to_x": 0.0, "to_noise": 0.0}
    for name, values in columns.items():
        values[0] = last[name]
    return Steps(columns, visited, number)


def _langevin_share(ratios: Float64, choices: Choices) -> float:
    """ε/σ_L²."""
    if not 1 <= choices.langevin_steps <= MOST_LANGEVIN_STEPS:
        raise ValueError(f"langevin_steps must be in 1..{MOST_LANGEVIN_STEPS}, found {choices.langevin_steps}")
    if choices.langevin_epsilon is None:
        growth = (ratios[-1] / ratios[0]) ** (1 / max(len(ratios) - 1, 1))
        return langevin_share(growth, choices.langevin_steps)
    share = choices.langevin_epsilon / ratios[0] ** 2
    if not 0 < share <= 1:
        raise ValueError(
            f"langevin_epsilon must be above 0 and at most the smallest sigma squared, {ratios[0] ** 2:.3g}; "
            f"found {choices.langevin_epsilon}"
        )
    return share


def langevin_share(growth: float, steps: int) -> float:
    """ε/σ_L² by NCSNv2's technique 4 (Song & Ermon 2020, §3.4): the value for which x has most nearly the variance of a
    level after `steps` rows that began with the variance of the level before it.

    Args:
        growth: γ, σ of a level over that of the next, above 1.
    """
    share = np.geomspace(1e-6, 1, 20_001)
    limit = 2 / (2 - share)
    variance = (1 - share) ** (2 * steps) * (growth**2 - limit) + limit
    return float(share[np.abs(variance - 1).argmin()])


def langevin_levels(choices: Choices) -> int:
    """One row denoises at the end; the others are divided among the levels."""
    return max(1, -(-(choices.steps - 1) // max(choices.langevin_steps, 1)))


def level_growth(dimensions: int) -> float:
    """The largest σ of a level over that of the next with which neighbouring levels overlap by half: γ of NCSNv2's
    technique 2 (Song & Ermon 2020, §3.2), Φ(√(2D) (γ−1) + 3γ) − Φ(√(2D) (γ−1) − 3γ) = 1/2. At most 2.
    """
    low, high = 1.0, 2.0
    for _ in range(60):
        growth = (low + high) / 2
        shift = math.sqrt(2 * dimensions) * (growth - 1)
        overlap = (math.erf((shift + 3 * growth) / math.sqrt(2)) - math.erf((shift - 3 * growth) / math.sqrt(2))) / 2
        low, high = (growth, high) if overlap > 0.5 else (low, growth)
    return low


def enough_levels(dimensions: int, sigma_min: float, sigma_max: float) -> int:
    """The fewest geometric levels from sigma_min to sigma_max that technique 2 allows."""
    return 1 + math.ceil(math.log(sigma_max / sigma_min) / math.log(level_growth(dimensions)))
