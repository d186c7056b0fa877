"""Heun's method with and without churn, as rows of a plan (numpy only)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddpm.diffusion.coordinates import KINDS, Level
from ddpm.diffusion.schedules import Float64, Schedule
from ddpm.diffusion.steps import Choices, Steps


def heun(visited: Schedule, choices: Choices) -> Steps:
    """Heun's method (Karras et al. 2022, algorithm 1 and 2): rows in pairs, Euler to the next level, then half of the
    difference that the network's word there makes. The last level has Euler alone; so has the one before it where the
    count of rows is even.

    From σ to σ' Euler gives x' = x + (σ'−σ) d with d = (x−x̂_0)/σ, and since d = (x'−x̂_0)/σ' too, Heun's correction is
    x' + (σ−σ')/(2σ') (x̂_0' − x̂_0).

    With churn the noise that raises σ to σ̂ is added by the row that arrives at σ, so that it costs no row; the first
    level is begun at its σ̂.

    Raises:
        ValueError: churn is out of its range, or asked of a process whose levels are numbered.
    """
    count, plain = len(visited), visited.level
    ratios = np.exp(plain.log_ratio)
    raised = ratios * (1 + _churn(visited, ratios, choices))
    levels, arrived, begun = _levels(visited, ratios, raised)
    paired = np.arange(count) >= 2 * count - choices.steps
    # Of the step that leaves each level: where it begins, and where it arrives, after the last at x_0 itself.
    hat = Level(*(column[begun] for column in levels.level))
    signal, noise = np.append(1.0, plain.signal[:-1]), np.append(0.0, plain.noise[:-1])
    by_factor, by_noise = _raise(ratios, raised, choices.churn_noise)
    factor, churn = np.append(1.0, by_factor[:-1]), np.append(0.0, by_noise[:-1])
    euler = {"to_x": noise / hat.noise, "to_x0": signal - noise / hat.noise * hat.signal, "to_prev": np.zeros(count)}
    scale = KINDS[visited.coordinates.kind].own_scale
    own = np.append(1.0, scale(plain)[:-1])
    half = (hat.noise * scale(hat) / (noise * own) - 1) / 2 / own
    correction = {"to_x": np.ones(count), "to_x0": half, "to_prev": -half}
    # The row that ends a step adds the churn: the correction, or Euler's where there is none.
    ends = np.where(paired, 1.0, factor), np.where(paired, 0.0, churn)
    rows = np.argsort(np.append(2 * np.flatnonzero(paired), 2 * np.arange(count) + 1))  # corrections first: upwards

    def both(of_correction: Float64, of_euler: Float64) -> Float64:
        return np.append(of_correction[paired], of_euler)[rows]

    columns = {name: both(correction[name] * factor, euler[name] * ends[0]) for name in euler}
    at = np.append(arrived[np.flatnonzero(paired) - 1], begun)[rows]
    return Steps({**columns, "to_noise": both(churn, ends[1])}, levels, at)


def _churn(visited: Schedule, ratios: Float64, choices: Choices) -> Float64:
    """γ of each level: σ̂ = σ (1 + γ), [N]."""
    if not (choices.churn >= 0 and choices.churn_noise > 0):
        raise ValueError(f"churn must be 0 or more and churn_noise above 0, found {choices.churn}")
    low, high = choices.churn_interval or (0.0, np.inf)
    if choices.churn and not visited.coordinates.continuous:
        raise ValueError(f"churn needs noise between the levels, which process kind {visited.coordinates.kind} has not")
    within = (ratios >= low) & (ratios <= high) & np.isfinite(ratios)
    return np.where(within, min(choices.churn / len(ratios), np.sqrt(2) - 1), 0.0)


def _levels(
    visited: Schedule, ratios: Float64, raised: Float64
) -> tuple[Schedule, NDArray[np.int64], NDArray[np.int64]]:
    """The levels and the raised ones as one schedule, and where in it each of both is, [N] each."""
    if np.array_equal(ratios, raised):
        return visited, np.arange(len(ratios)), np.arange(len(ratios))
    together, where = np.unique(np.append(ratios, raised), return_inverse=True)
    return Schedule.at_ratios(together, visited.coordinates), where[: len(ratios)], where[len(ratios) :]


def _raise(ratios: Float64, raised: Float64, share: float) -> tuple[Float64, Float64]:
    """By what x at each σ/a becomes x at the raised one: a factor, and noise."""
    signal = 1 / np.sqrt(1 + raised**2)
    changed = raised > ratios
    noise = signal * np.sqrt(np.maximum(raised**2 - ratios**2, 0)) * share
    return np.where(changed, signal * np.sqrt(1 + ratios**2), 1.0), np.where(changed, noise, 0.0)


def heun_levels(choices: Choices) -> int:
    """N levels take 2 N − 1 rows, or one less."""
    return choices.steps // 2 + 1
