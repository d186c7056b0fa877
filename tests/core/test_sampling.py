"""Plans against the formulas they fold; the noise and the process beside them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.objectives import Objective
from ddpm.diffusion.plans import COLUMNS, sampling_plan
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.sampling import trajectory
from ddpm.diffusion.schedules import SCHEDULES, SPACINGS, Schedule

SCHEDULE = Schedule.named("linear", 1000)
BASIC = {"prediction": "epsilon", "variance": "fixed_small", "spacing": "linspace"}


def draw_with(seed: int, shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float64)


@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.sampled_from(sorted(SPACINGS)),
    st.integers(2, 200),
    st.floats(0, 1),
    st.data(),
)
@settings(deadline=None)
def test_ddim_rows_are_the_papers_formula(name, spacing, timesteps, eta, data):
    """Eq. 12 and 16 of Song et al. 2021, written out with an unfolded ε̂."""
    schedule = Schedule.named(name, timesteps)
    steps = data.draw(st.integers(1, timesteps))
    plan = sampling_plan(
        schedule, sampler="ddim", steps=steps, prediction="epsilon", variance="fixed_small", spacing=spacing, eta=eta
    )
    visited = plan.timesteps[::-1]
    for row, t in zip(plan.table, plan.timesteps, strict=True):
        values = dict(zip(COLUMNS, row, strict=True))
        index = int(np.searchsorted(visited, t))
        a = schedule.alphas_cumprod[t]
        a_next = schedule.alphas_cumprod[visited[index - 1]] if index else 1.0
        sigma = eta * np.sqrt((1 - a_next) / (1 - a)) * np.sqrt(max(1 - a / a_next, 0))
        x, out = 0.7, -0.4
        x0 = np.clip((x - np.sqrt(1 - a) * out) / np.sqrt(a), -1, 1)
        eps = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
        expected = np.sqrt(a_next) * x0 + np.sqrt(max(1 - a_next - sigma**2, 0)) * eps
        table_x0 = np.clip(values["x0_from_x"] * x + values["x0_from_out"] * out, -values["clip"], values["clip"])
        assert values["to_x0"] * table_x0 + values["to_x"] * x == pytest.approx(expected, abs=1e-8)
        assert values["to_noise"] == pytest.approx(sigma, abs=1e-7)


def test_full_ddim_with_eta_one_is_ancestral_small():
    ancestral = sampling_plan(SCHEDULE, sampler="ancestral", steps=1000, **BASIC)
    ddim = sampling_plan(SCHEDULE, sampler="ddim", steps=1000, eta=1.0, **BASIC)
    np.testing.assert_allclose(ancestral.table, ddim.table, atol=1e-7)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_the_last_row_adds_no_noise(sampler):
    plan = sampling_plan(SCHEDULE, sampler=sampler, steps=20, eta=1.0, **BASIC)
    assert plan.column("to_noise")[-1] == 0
    assert np.all(plan.column("to_noise")[:-1] > 0)


def test_ancestral_mean_is_equation_11():
    """μ_θ = (x_t − β_t/√(1−ᾱ_t) ε_θ)/√α_t (Ho et al. 2020) where nothing is clipped."""
    plan = sampling_plan(SCHEDULE, sampler="ancestral", steps=1000, clip=False, **BASIC)
    x, out = 0.2, -0.8
    x0 = plan.column("x0_from_x") * x + plan.column("x0_from_out") * out
    mean = plan.column("to_x0") * x0 + plan.column("to_x") * x
    betas, alpha_bar = SCHEDULE.betas[::-1], SCHEDULE.alphas_cumprod[::-1]
    np.testing.assert_allclose(mean, (x - betas / np.sqrt(1 - alpha_bar) * out) / np.sqrt(1 - betas), atol=1e-9)


def test_clipping_holds_x0():
    plan = sampling_plan(SCHEDULE, sampler="ddim", steps=10, **BASIC)
    draw = draw_with(0, (4, 1, 2, 2))
    states = list(trajectory(lambda x, t: -5 * torch.ones_like(x), plan, draw(), draw))
    assert all(x0.abs().max() <= 1 for _, x0 in states)
    torch.testing.assert_close(states[-1][0], states[-1][1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "rk4", "steps": 5}, "no sampler 'rk4'; there are: ancestral, ddim"),
        ({"sampler": "ddim", "steps": 5, "eta": 1.5}, "eta must be in 0..1, found 1.5"),
        ({"sampler": "ancestral", "steps": 5, "variance": "learned"}, "no variance 'learned'"),
        ({"sampler": "ddim", "steps": 5, "prediction": "noise"}, "no prediction 'noise'"),
        ({"sampler": "ddim", "steps": 1001}, r"1\.\.1000"),
    ],
)
def test_impossible_plans(options, words):
    with pytest.raises(ValueError, match=words):
        sampling_plan(SCHEDULE, **{**BASIC, **options})


@given(st.integers(0, 2**64 - 1), st.integers(1, 6), st.integers(0, 5))
def test_noise_belongs_to_the_image(seed, count, first):
    together = ImageNoise(seed, first + count, (1, 2, 3))
    apart = ImageNoise(seed, count, (1, 2, 3), first=first)
    for _ in range(3):
        np.testing.assert_array_equal(together.draw()[first:], apart.draw())


def test_noise_is_standard_normal_and_differs_between_seeds_and_images():
    draws = ImageNoise(1, 64, (3, 32, 32)).draw()
    assert draws.mean() == pytest.approx(0, abs=0.01)
    assert draws.std() == pytest.approx(1, abs=0.01)
    flat = draws.reshape(64, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(64)).max() < 0.1
    assert not np.array_equal(draws, ImageNoise(2, 64, (3, 32, 32)).draw())


def test_noise_refuses_a_negative_seed():
    with pytest.raises(ValueError, match="seed must be"):
        ImageNoise(-1, 1, (1, 1, 1))


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_the_target_is_what_predict_x0_inverts(prediction):
    process = GaussianProcess(SCHEDULE, prediction=prediction, dtype=torch.float64)
    draw = draw_with(3, (5, 2, 4, 4))
    x0, noise = draw(), draw()
    t = torch.tensor([0, 1, 500, 900, 999])
    xt = process.q_sample(x0, t, noise)
    torch.testing.assert_close(process.predict_x0(process.target(x0, t, noise), xt, t), x0, rtol=0, atol=1e-9)
    losses = Objective().training_losses(process, lambda x, t: process.target(x0, t, noise), x0, t, noise)
    assert losses.shape == (5,)
    assert losses.abs().max() < 1e-12


def test_q_sample_has_the_forward_moments():
    process = GaussianProcess(SCHEDULE, dtype=torch.float64)
    draw = draw_with(5, (50_000, 1))
    x0 = torch.full((50_000, 1), 0.5, dtype=torch.float64)
    t = torch.full((50_000,), 300)
    xt = process.q_sample(x0, t, draw())
    assert xt.mean().item() == pytest.approx(0.5 * SCHEDULE.alphas_cumprod[300] ** 0.5, abs=0.02)
    assert xt.var().item() == pytest.approx(1 - SCHEDULE.alphas_cumprod[300], abs=0.02)


def test_p_mean_variance_meets_the_posterior_for_a_perfect_network():
    process = GaussianProcess(SCHEDULE, variance="fixed_small", dtype=torch.float64)
    draw = draw_with(6, (3, 1, 2, 2))
    x0, noise, t = draw().clamp(-1, 1), draw(), torch.tensor([1, 400, 999])
    xt = process.q_sample(x0, t, noise)
    mean, log_variance, predicted = process.p_mean_variance(noise, xt, t)
    true_mean, _, true_log_variance = process.q_posterior(x0, xt, t)
    torch.testing.assert_close(predicted, x0)
    torch.testing.assert_close(mean, true_mean)
    torch.testing.assert_close(log_variance, true_log_variance)
