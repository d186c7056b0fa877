"""The likelihood by the probability-flow ODE against closed forms, in every process."""

import math

import numpy as np
import pytest
import torch
from known_data import CENTRES, MEAN, PROCESSES, STD, WEIGHTS, WIDTH, gaussian, mixture, network_of

from ddpm.diffusion.ode_likelihood import ode_likelihood
from ddpm.diffusion.schedules import Schedule


def bits_of(values, mean, std):
    """−log₂ of the density of N(mean, std²), averaged."""
    return float((0.5 * ((values - mean) / std) ** 2 + math.log(std * math.sqrt(2 * math.pi))).mean() / math.log(2))


def data(count, *shape, mean=MEAN, std=STD):
    return mean + std * torch.randn(count, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("prediction", ["v", "edm"])
@pytest.mark.parametrize("name", PROCESSES)
def test_of_a_gaussian(name, prediction):
    """In one dimension the trace is exact, and what is left is the method's own error, which falls fourfold."""
    schedule, x0 = Schedule.of(PROCESSES[name]), data(50, 1)
    least = float(np.exp(schedule.level.log_ratio[0]))  # of the noise that the data have
    exact = bits_of(x0, MEAN, math.hypot(STD, least))
    coarse, fine = (
        ode_likelihood(network_of(schedule, prediction, gaussian), schedule, prediction, [x0], steps=steps)
        for steps in (32, 128)
    )
    assert fine.bits_per_dim == pytest.approx(exact, abs=0.004)
    assert abs(coarse.bits_per_dim - exact) > 4 * abs(fine.bits_per_dim - exact) or name in ("vp", "ve")
    assert (fine.standard_error, fine.images) == (0, 50)


@pytest.mark.parametrize("name", ["vp", "edm"])
def test_of_a_mixture(name):
    schedule, x0 = Schedule.of(PROCESSES[name]), torch.linspace(-1, 1, 41, dtype=torch.float64)[:, None]
    found = ode_likelihood(network_of(schedule, "v", mixture), schedule, "v", [x0], steps=200)
    width = math.hypot(WIDTH, float(np.exp(schedule.level.log_ratio[0])))  # the data have the least noise
    density = sum(
        weight * torch.exp(-0.5 * ((x0 - centre) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        for weight, centre in zip(WEIGHTS.tolist(), CENTRES.tolist(), strict=True)
    )
    assert found.bits_per_dim == pytest.approx(float(-density.log2().mean()), abs=0.03)


def test_the_estimate_of_the_trace_is_unbiased_and_knows_its_error():
    """Of a network that mixes dimensions, whose trace random signs do not give exactly."""
    schedule = Schedule.of(PROCESSES["edm"])
    mix = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    scales = torch.linspace(0.1, 1.0, 16, dtype=torch.float64)
    covariance = mix @ torch.diag(scales**2) @ mix.T
    x0 = torch.randn(30, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * scales @ mix.T

    def best(x, signal, noise):
        gain = signal * torch.linalg.solve(signal**2 * covariance + noise**2 * torch.eye(16).double(), covariance)
        return x @ gain

    exact = -float(torch.distributions.MultivariateNormal(torch.zeros(16).double(), covariance).log_prob(x0).mean()) / (
        16 * math.log(2)
    )
    network = network_of(schedule, "v", best)
    found = [ode_likelihood(network, schedule, "v", [x0], steps=40, seed=seed) for seed in range(12)]
    estimates = np.array([each.bits_per_dim for each in found])
    stated = np.sqrt(np.mean([each.standard_error**2 for each in found]))
    assert estimates.std(ddof=1) == pytest.approx(stated, rel=0.6)
    assert estimates.mean() == pytest.approx(exact, abs=4 * stated / math.sqrt(12) + 0.01)


def test_data_on_levels_are_dequantised():
    """Where a level is narrow against the data its mass is the density times its width."""
    schedule = Schedule.of(PROCESSES["edm"])
    x0 = ((data(40, 1) + 1) * 127.5).round() / 127.5 - 1
    found = ode_likelihood(network_of(schedule, "v", gaussian), schedule, "v", [x0], steps=100, levels=256)
    assert found.bits_per_dim == pytest.approx(bits_of(x0, MEAN, STD) - math.log2(2 / 255), abs=0.02)


def test_it_does_not_depend_on_the_batches_and_needs_data():
    schedule, x0 = Schedule.of(PROCESSES["flow"]), data(6, 3, 4)
    network = network_of(schedule, "v", gaussian)
    whole, parts = (
        ode_likelihood(network, schedule, "v", x0.split(size), steps=8, levels=256, seed=5) for size in (6, 4)
    )
    assert whole.bits_per_dim == pytest.approx(parts.bits_per_dim, rel=1e-9)
    assert whole.standard_error == pytest.approx(parts.standard_error, abs=1e-9)
    with pytest.raises(ValueError, match="no images"):
        ode_likelihood(network, schedule, "v", [])
