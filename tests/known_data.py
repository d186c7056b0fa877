"""Data whose best denoiser is known, in every process."""

from __future__ import annotations

import math

import numpy as np

from ddpm.diffusion.coordinates import Level, preconditioning

PROCESSES = {
    "vp": {"schedule": "linear", "timesteps": 1000},
    "ve": {"kind": "ve", "timesteps": 300, "sigma_min": 0.01, "sigma_max": 20.0},
    "edm": {"kind": "edm", "timesteps": 1000},
    "flow": {"kind": "flow", "timesteps": 1000},
}
MEAN, STD = 0.3, 0.5


def level_at(schedule, t):
    """The noise level that a network is told of, as √ᾱ and √(1−ᾱ)."""
    if not schedule.coordinates.continuous:
        return schedule.level.signal[int(t)], schedule.level.noise[int(t)]
    if schedule.coordinates.kind == "edm":
        ratio = math.exp(4 * t)
        return 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)
    share = t / 1000
    return (1 - share) / math.hypot(share, 1 - share), share / math.hypot(share, 1 - share)


def network_of(schedule, prediction, best):
    """The network whose x̂_0 is best(x, signal, noise) of scaled x."""

    def network(seen, t):
        signal, noise = level_at(schedule, float(t[0]))
        level = Level(signal, noise, math.log(noise / signal) if signal else math.inf)
        told = preconditioning(prediction, level, schedule.coordinates)
        x = seen / told.input_scale
        return (best(x, signal, noise) - told.x0_from_x * x) / told.x0_from_out

    return network


def gaussian(x, signal, noise):
    return MEAN + signal * STD**2 / (signal**2 * STD**2 + noise**2) * (x - signal * MEAN)


WEIGHTS, CENTRES, WIDTH = np.array([0.3, 0.7]), np.array([-0.6, 0.5]), 0.1


def mixture(x, signal, noise):
    """E[x_0 | x] for two Gaussians."""
    variance = signal**2 * WIDTH**2 + noise**2
    apart = [x - signal * centre for centre in CENTRES]
    logs = [math.log(weight) - each**2 / (2 * variance) for weight, each in zip(WEIGHTS, apart, strict=True)]
    share = 1 / (1 + math.e ** (logs[1] - logs[0]).clip(-500, 500))
    means = [c + signal * WIDTH**2 / variance * each for c, each in zip(CENTRES, apart, strict=True)]
    return share * means[0] + (1 - share) * means[1]
