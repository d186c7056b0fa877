"""Heun's method with and without churn, as rows of a plan (numpy only)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddpm.diffusion.coordinates import KINDS
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
    levels, where = _levels(visited, ratios, raised)
    hat = levels.level
    own = KINDS[visited.coordinates.kind].own_scale(plain), KINDS[visited.coordinates.kind].own_scale(hat)
    rows: dict[str, list[float]] = {name: [] for name in ("to_x0", "to_x", "to_prev", "to_noise", "index")}

    def add(index: int, **row: float) -> None:
        for name, values in rows.items():
            values.append(row.get(name, float(index) if name == "index" else 0.0))

    for number in range(count):  # the last row first
        start, last = where[count + number], number == 0
        signal, noise = (1.0, 0.0) if last else (plain.signal[number - 1], plain.noise[number - 1])
        to_x = noise / hat.noise[start]
        step = {"to_x": to_x, "to_x0": signal - to_x * hat.signal[start]}
        churned = {} if last else _raised(ratios[number - 1], raised[number - 1], choices.churn_noise)
        if number < 2 * count - choices.steps:
            add(start, **_then(step, churned))
            continue
        sigma, sigma_next = hat.noise[start] * own[1][start], noise * own[0][number - 1]
        half = (sigma - sigma_next) / (2 * sigma_next) / own[0][number - 1]
        add(where[number - 1], **_then({"to_x": 1.0, "to_x0": half, "to_prev": -half}, churned))
        add(start, **step)
    index = np.array(rows.pop("index"), np.int64)
    return Steps({name: np.array(values) for name, values in rows.items()}, levels, index)


def _churn(visited: Schedule, ratios: Float64, choices: Choices) -> Float64:
    """γ of each level: σ̂ = σ (1 + γ), [N]."""
    if not (choices.churn >= 0 and choices.churn_noise > 0):
        raise ValueError(f"churn must be 0 or more and churn_noise above 0, found {choices.churn}")
    low, high = choices.churn_interval or (0.0, np.inf)
    if choices.churn and not visited.coordinates.continuous:
        raise ValueError(f"churn needs noise between the levels, which process kind {visited.coordinates.kind} has not")
    within = (ratios >= low) & (ratios <= high) & np.isfinite(ratios)
    return np.where(within, min(choices.churn / len(ratios), np.sqrt(2) - 1), 0.0)


def _levels(visited: Schedule, ratios: Float64, raised: Float64) -> tuple[Schedule, NDArray[np.int64]]:
    """The levels and the raised ones as one schedule, and where in it each of both is, [2 N]."""
    if np.array_equal(ratios, raised):
        return visited, np.tile(np.arange(len(ratios)), 2)
    together, where = np.unique(np.append(ratios, raised), return_inverse=True)
    return Schedule.at_ratios(together, visited.coordinates), where


def _raised(ratio: float, raised: float, share: float) -> dict[str, float]:
    """By what x at one σ/a becomes x at a larger one: a factor, and noise."""
    signal = 1 / np.sqrt(1 + raised**2)
    return {"factor": signal * np.sqrt(1 + ratio**2), "to_noise": signal * np.sqrt(raised**2 - ratio**2) * share}


def _then(step: dict[str, float], churned: dict[str, float]) -> dict[str, float]:
    """A row with the noise of the next level's churn."""
    if not churned.get("to_noise"):
        return step
    return {name: value * churned["factor"] for name, value in step.items()} | {"to_noise": churned["to_noise"]}


def heun_levels(choices: Choices) -> int:
    """N levels take 2 N − 1 rows, or one less."""
    return choices.steps // 2 + 1
