"""Processes beside DDPM's against `diffusers`: the same images from the same noise, in float64.

diffusers computes in float32 by name; here the name means float64, so that the formulas are compared and not rounding.
"""

import itertools
import sys

import numpy as np
import pytest
import torch
from diffusers import (
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)
from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler

from ddpm.diffusion.plans import sampling_plan
from ddpm.diffusion.sampling import sample
from ddpm.diffusion.schedules import Schedule

SHAPE = (3, 2, 4, 4)
ATOL = 1e-6
VP = {"schedule": "scaled_linear", "timesteps": 1000}
EDM = {"kind": "edm", "timesteps": 1000}
FLOW = {"kind": "flow", "timesteps": 1000}


PEERS = (
    "edm_euler",
    "edm_dpmsolver_multistep",
    "euler_discrete",
    "euler_ancestral_discrete",
    "heun_discrete",
    "flow_match_euler_discrete",
    "flow_match_heun_discrete",
)


class _InFloat64:
    """A library in which float32 is float64."""

    def __init__(self, library):
        self._library = library

    def __getattr__(self, name):
        return getattr(self._library, "float64" if name == "float32" else name)


@pytest.fixture(autouse=True)
def _in_float64(monkeypatch):
    for name in PEERS:
        module = sys.modules[f"diffusers.schedulers.scheduling_{name}"]
        monkeypatch.setattr(module, "torch", _InFloat64(torch))
        monkeypatch.setattr(module, "np", _InFloat64(np), raising=False)


def network(x, t):
    """Any smooth function of x and t will do."""
    t = t.to(x.dtype).view(-1, 1, 1, 1)
    return torch.tanh(0.7 * x.roll(1, -1) - 0.4 * x + torch.cos(0.01 * t))


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def ours(process, draw, x=None, **options):
    options = {"variance": "fixed_small", "clip": False, **options}
    return sample(network, sampling_plan(Schedule.of(process), **options), draw() if x is None else x, draw)


def theirs(scheduler, x, **options):
    """Their pipelines' loop, from x in their coordinates."""
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(seen, t.expand(len(x))), t, x, **options).prev_sample
    return x


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("steps", [2, 7, 18])
@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_edm_euler(steps, spacing):
    scheduler = EDMEulerScheduler(sigma_schedule=spacing)
    scheduler.set_timesteps(steps)
    x = draws()()
    found = ours(EDM, None, x, sampler="euler", steps=steps, spacing=spacing, prediction="edm")
    close(found, theirs(scheduler, x * scheduler.sigmas[0].square().add(1).sqrt()))


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_edm_dpm_solver(steps):
    scheduler = EDMDPMSolverMultistepScheduler()
    scheduler.set_timesteps(steps)
    x = draws()()
    found = ours(EDM, None, x, sampler="dpmpp_2m", steps=steps, spacing="native", prediction="edm")
    close(found, theirs(scheduler, x * scheduler.sigmas[0].square().add(1).sqrt()))


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_euler_and_euler_ancestral(steps, prediction):
    options = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "timestep_spacing": "trailing",
    }
    options["prediction_type"] = {"epsilon": "epsilon", "v": "v_prediction"}[prediction]
    for name, kind in (("euler", EulerDiscreteScheduler), ("euler_ancestral", EulerAncestralDiscreteScheduler)):
        scheduler = kind(**options)
        scheduler.set_timesteps(steps)
        draw = draws()
        x = draw() * scheduler.sigmas[0].square().add(1).sqrt()
        noise = {"generator": _generator_after_one_draw()} if name == "euler_ancestral" else {}
        found = ours(VP, draws(), sampler=name, steps=steps, spacing="trailing", prediction=prediction)
        close(found, theirs(scheduler, x, **noise))


def _generator_after_one_draw():
    generator = torch.Generator().manual_seed(0)
    torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    return generator


@pytest.mark.parametrize("steps", [1, 4, 15])
def test_heun_of_ddpms_process(steps):
    options = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler = HeunDiscreteScheduler(**options, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    x = draws()()
    found = ours(VP, None, x, sampler="heun", steps=2 * steps - 1, spacing="trailing", prediction="epsilon")
    close(found, theirs(scheduler, x * scheduler.sigmas[0].square().add(1).sqrt()))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_flow_euler(steps, shift):
    """Their levels are shifted once more, but for the first; so is their last one, from a smaller t."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    least = shift * 0.001 / (1 + (shift - 1) * 0.001)
    x = draws()()
    process = {**FLOW, "shift": shift, "sigma_min": least}
    close(
        ours(process, None, x, sampler="euler", steps=steps, spacing="native", prediction="velocity"),
        theirs(scheduler, x),
    )


@pytest.mark.parametrize("steps", [2, 4, 15])
def test_flow_heun(steps):
    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(steps)
    x = draws()()
    found = ours(FLOW, None, x, sampler="heun", steps=2 * steps - 1, spacing="native", prediction="velocity")
    close(found, theirs(scheduler, x))


@pytest.mark.parametrize("churn", [0.0, 10.0, 80.0])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_heun_with_churn(steps, churn):
    """KarrasVe, which begins at σ_0 and adds the first churn itself; ours begins at the raised level."""
    scheduler = KarrasVeScheduler(s_churn=churn, s_min=0.05, s_max=50, s_noise=1.003, sigma_min=0.02, sigma_max=100)
    scheduler.set_timesteps(steps)
    schedule = [float(sigma) for sigma in np.geomspace(100**2, 0.02**2, steps)] if steps > 1 else [100.0**2]
    sigmas = [value**0.5 for value in schedule] + [0.0]
    scheduler.schedule = torch.tensor(sigmas[:-1], dtype=torch.float64)
    process = {**EDM, "sigma_min": 0.02, "sigma_max": 100.0}
    # Both begin above s_max, where there is no churn.
    noise = draws()
    x = noise()
    found = ours(
        process, noise, x, sampler="heun", steps=2 * steps - 1, spacing="exponential", prediction="score", churn=churn,
        churn_interval=(0.05, 50), churn_noise=1.003,
    )  # fmt: skip

    def word(x, sigma):
        seen = x / np.sqrt(sigma**2 + 0.25)
        return network(seen, torch.full((len(x),), np.log(sigma) / 4, dtype=torch.float64))

    noise = draws()
    x = noise() * np.sqrt(1 + sigmas[0] ** 2)
    for sigma, after in itertools.pairwise(sigmas):
        gamma = min(churn / steps, 2**0.5 - 1) if 0.05 <= sigma <= 50 else 0.0
        hat = sigma + gamma * sigma
        x_hat = x + (hat**2 - sigma**2) ** 0.5 * 1.003 * noise() if gamma else x
        out = word(x_hat, hat)
        step = scheduler.step(out, hat, after, x_hat)
        if after:
            again = word(step.prev_sample, after)
            step = scheduler.step_correct(again, hat, after, x_hat, step.prev_sample, step.derivative)
        x = step.prev_sample
    close(found, x)
