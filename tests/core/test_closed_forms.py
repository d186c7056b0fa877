"""Data whose best denoiser is known: a Gaussian, for which E[x_0 | x_t] is linear and p(x_{t−1} | x_t) is Gaussian."""

import numpy as np
import pytest
import torch

from ddpm.diffusion.likelihood import LikelihoodBound, likelihood_bound, likelihood_bounds, strata
from ddpm.diffusion.plans import SAMPLERS, inversion_plan, sampling_plan
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.sampling import sample
from ddpm.diffusion.schedules import Schedule

MEAN = torch.tensor([0.3, -0.2, 0.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.30, 0.12, 0.0], [0.12, 0.20, -0.05], [0.0, -0.05, 0.10]], dtype=torch.float64)
COUNT = 10_000
STOCHASTIC = {"euler_ancestral", "euler_maruyama", "langevin"}


def best_prediction(schedule, prediction, mean, covariance):
    """E[target | x_t] for data N(mean, covariance), x [N, D]."""
    alpha_bar = torch.from_numpy(schedule.alphas_cumprod)
    eye = torch.eye(len(mean), dtype=torch.float64)

    def denoise(x, t):
        a = alpha_bar[t[0]]
        gain = a.sqrt() * torch.linalg.solve(a * covariance + (1 - a) * eye, covariance)
        x0 = mean + (x - a.sqrt() * mean) @ gain
        eps = (x - a.sqrt() * x0) / (1 - a).sqrt()
        return {"epsilon": eps, "x0": x0, "v": a.sqrt() * eps - (1 - a).sqrt() * x0}[prediction]

    return denoise


def best_with_variance(schedule, mean, std):
    """For independent dimensions, the true reverse variance too: Var[x_{t−1} | x_t] = β̃ + c² Var[x_0 | x_t], said as
    the network says it. `schedule` holds only the steps that are visited."""
    a = schedule.alphas_cumprod
    posterior = (1 - a) * std**2 / (a * std**2 + 1 - a)
    true = schedule.posterior_variance + schedule.posterior_mean_coef_x0**2 * posterior
    small, large = schedule.posterior_log_variance_clipped, np.log(schedule.betas)
    told = torch.from_numpy(2 * (np.log(true) - small) / (large - small) - 1)
    row = {int(t): i for i, t in enumerate(schedule.timesteps)}
    alpha_bar = torch.from_numpy(a)

    def denoise(x, t):
        i = row[int(t[0])]
        eps = (1 - alpha_bar[i]).sqrt() * (x - alpha_bar[i].sqrt() * mean) / (alpha_bar[i] * std**2 + 1 - alpha_bar[i])
        return torch.cat([eps, told[i].expand_as(x)], dim=1)

    return denoise


def draw_with(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("name", "prediction"), [("linear", "epsilon"), ("cosine", "v"), ("cosine", "x0")])
@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "ancestral", "steps": 1000, "variance": "fixed_small"},
        {"sampler": "ancestral", "steps": 1000, "variance": "fixed_large"},
        {"sampler": "ddim", "steps": 200, "eta": 0.0},
        {"sampler": "ddim", "steps": 200, "eta": 0.5},
        {"sampler": "ddim", "steps": 200, "eta": 1.0},
        {"sampler": "dpmpp_2m", "steps": 40},
        {"sampler": "dpmpp_2m_sde", "steps": 80},
        {"sampler": "dpmpp_2s", "steps": 80},
        {"sampler": "unipc", "steps": 40},
        {"sampler": "unipc_bh1", "steps": 40},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_every_sampler_gives_the_mean_and_covariance_back(options, name, prediction):
    schedule = Schedule.named(name, 1000)
    plan = sampling_plan(schedule, **{"variance": "fixed_small", "prediction": prediction, "clip": False, **options})
    draw = draw_with(0, COUNT, 3)
    images = sample(best_prediction(schedule, prediction, MEAN, COVARIANCE), plan, draw(), draw)
    # Three standard errors of 10,000 draws are 0.016 and 0.013; the rest is the samplers' own discretisation.
    torch.testing.assert_close(images.mean(0), MEAN, rtol=0, atol=0.025)
    torch.testing.assert_close(images.T.cov(), COVARIANCE, rtol=0, atol=0.025)


@pytest.mark.parametrize("steps", [2, 5, 50])
def test_with_the_true_variance_ancestral_sampling_is_exact_in_any_number_of_steps(steps):
    """Analytic-DPM's observation (Bao et al. 2022): the error of few steps is all in the fixed variance."""
    mean, std = 0.2, 0.4
    schedule = Schedule.named("linear", 1000)
    options = {"steps": steps, "prediction": "epsilon", "clip": False, "sampler": "ancestral"}
    plan = sampling_plan(schedule, variance="learned_range", **options)
    denoise = best_with_variance(schedule.respaced(plan.timesteps[::-1].copy()), mean, std)
    draw = draw_with(1, 100_000, 1)
    images = sample(denoise, plan, draw(), draw)
    assert images.mean().item() == pytest.approx(mean, abs=0.006)
    # The last step adds no noise: what is missing is the variance of x_0 given the last x_t.
    a = schedule.alphas_cumprod[plan.timesteps[-1]]
    missing = (1 - a) * std**2 / (a * std**2 + 1 - a)
    assert images.var().item() == pytest.approx(std**2 - missing, abs=0.003)


def test_the_solvers_are_of_second_order():
    """Held against the ODE's own solution: four times the steps, about a sixteenth of the error; DDIM a quarter."""
    schedule = Schedule.named("linear", 1000)
    denoise = best_prediction(schedule, "epsilon", MEAN, COVARIANCE)
    x = draw_with(2, 100, 3)()
    a = schedule.alphas_cumprod[-1]
    values, vectors = torch.linalg.eigh(COVARIANCE)
    scale = (values / (a * values + 1 - a)).sqrt()
    exact = MEAN + (x - a**0.5 * MEAN) @ vectors @ scale.diag() @ vectors.T

    def error(sampler, steps):
        options = {"prediction": "epsilon", "variance": "fixed_small", "clip": False}
        plan = sampling_plan(schedule, sampler=sampler, steps=steps, **options)
        return float((sample(denoise, plan, x, lambda: x) - exact).abs().max())

    assert error("unipc", 20) < error("dpmpp_2m", 20) < error("dpmpp_2s", 20) < error("ddim", 20)
    deterministic = SAMPLERS.keys() - {"ancestral", "dpmpp_2m_sde", "euler", "heun", *STOCHASTIC}
    falls = {sampler: error(sampler, 40) / error(sampler, 160) for sampler in deterministic}
    assert 3.5 < falls.pop("ddim") < 4.5
    assert all(fall > 8 for fall in falls.values()), falls


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_inversion_finds_the_noise_that_an_image_comes_of(spacing, prediction):
    """The ODE moves each quantile of q(x_0) to the same quantile of q(x_T)."""
    mean, std = 0.3, 0.5
    schedule = Schedule.named("linear", 1000)
    denoise = best_prediction(schedule, prediction, torch.tensor([mean]).double(), torch.tensor([[std**2]]).double())
    x0 = torch.linspace(-1, 1.5, 50, dtype=torch.float64)[:, None]
    options = {"steps": 500, "prediction": prediction, "spacing": spacing}
    plan = inversion_plan(schedule, **options)
    latent = sample(denoise, plan, x0, lambda: x0)
    a = schedule.alphas_cumprod[plan.timesteps[-1]]
    expected = a**0.5 * mean + (a * std**2 + 1 - a) ** 0.5 * (x0 - mean) / std
    torch.testing.assert_close(latent, expected, rtol=0, atol=0.01)
    back = sampling_plan(schedule, sampler="ddim", variance="fixed_small", clip=False, **options)
    torch.testing.assert_close(sample(denoise, back, latent, lambda: x0), x0, rtol=0, atol=0.01)


def on_levels(images):
    return ((images + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def exact_bits(x, mean, std):
    """−log₂ of the mass of each x's level under N(mean, std²), averaged."""
    normal = torch.distributions.Normal(torch.tensor(mean).double(), torch.tensor(std).double())
    upper = torch.where(x > 0.999, 1.0, normal.cdf(x + 1 / 255))
    lower = torch.where(x < -0.999, 0.0, normal.cdf(x - 1 / 255))
    return float(-(upper - lower).log2().mean())


@pytest.mark.parametrize(("name", "timesteps"), [("linear", 100), ("linear", 400), ("cosine", 100)])
def test_the_bound_is_the_likelihood_where_the_model_is_exact(name, timesteps):
    mean, std = 0.1, 0.3
    schedule = Schedule.named(name, timesteps)
    x0 = on_levels(mean + std * draw_with(3, 400, 1, 4, 4)())
    exact = exact_bits(x0, mean, std)
    process = GaussianProcess(schedule, variance="learned_range", dtype=torch.float64)
    bound = likelihood_bound(best_with_variance(schedule, mean, std), process, x0.split(150), clip=False)
    assert bound.images == 400
    assert bound.bits_per_dim == pytest.approx(exact, rel=0.01)
    assert bound.bits_per_dim == pytest.approx(bound.prior + float(bound.terms.sum()))
    assert bool((bound.terms[1:] >= 0).all())


@pytest.mark.parametrize(
    ("std", "better", "worse"), [(1.0, "fixed_large", "fixed_small"), (1e-3, "fixed_small", "fixed_large")]
)
def test_each_fixed_variance_is_the_right_one_for_its_extreme(std, better, worse):
    """β_t for x_0 ~ N(0, I), β̃_t for x_0 a single point (Ho et al. 2020, §3.2)."""
    schedule = Schedule.named("linear", 100)
    # Held off the outermost levels, which are open.
    x0 = on_levels((std * draw_with(3, 500, 1, 4, 4)()).clamp(-0.9, 0.9))
    denoise = best_with_variance(schedule, 0.0, std)

    def bits(variance):
        process = GaussianProcess(schedule, variance=variance, dtype=torch.float64)
        return likelihood_bound(lambda x, t: denoise(x, t)[:, :1], process, [x0], clip=False).bits_per_dim

    assert bits(better) < bits(worse)


def test_groups_are_bounded_together_as_each_alone():
    schedule = Schedule.named("cosine", 20)
    process = GaussianProcess(schedule)
    denoise = lambda x, t: 0.1 * x  # noqa: E731
    many, few = on_levels(draw_with(4, 10, 2, 3)().clamp(-1, 1)).float().split([7, 3])
    both = likelihood_bounds(denoise, process, many.split(2), few.split(2), seed=7)
    for found, images in zip(both, (many, few), strict=True):
        alone = likelihood_bound(denoise, process, [images], seed=7)
        assert found.images == len(images)
        torch.testing.assert_close(found.terms, alone.terms)
        assert found.prior == pytest.approx(alone.prior)
    with pytest.raises(ValueError, match="no images"):
        likelihood_bounds(denoise, process, [many], [], seed=7)


def test_the_bound_does_not_depend_on_the_batches():
    schedule = Schedule.named("cosine", 20)
    x0 = on_levels(draw_with(4, 10, 2, 3)().clamp(-1, 1)).float()
    process = GaussianProcess(schedule)
    denoise = lambda x, t: 0.1 * x  # noqa: E731
    whole, parts = (likelihood_bound(denoise, process, x0.split(n), seed=7) for n in (10, 3))
    torch.testing.assert_close(whole.terms, parts.terms)
    assert whole.prior == pytest.approx(parts.prior)
    other = likelihood_bound(denoise, process, [x0], seed=8)
    assert other.bits_per_dim != whole.bits_per_dim
    with pytest.raises(ValueError, match="no images"):
        likelihood_bound(denoise, process, [])


@pytest.mark.parametrize(("timesteps", "count"), [(1000, 100), (1000, 4), (4000, 37), (12, 11), (5, 4), (200, 199)])
def test_the_strata_part_all_timesteps_and_as_many_are_chosen_as_asked_for(timesteps, count):
    parted = strata(timesteps, count, seed=3)
    first = 0
    for size, chosen in parted:
        assert len(chosen) == (1 if size == 1 else 2)
        assert sorted(set(chosen)) == list(chosen)
        assert first <= chosen[0] <= chosen[-1] < first + size
        first += size
    assert first == timesteps
    assert sum(len(stratum.chosen) for stratum in parted) == count
    assert strata(timesteps, count, seed=3) == parted
    assert timesteps - count < 10 or strata(timesteps, count, seed=4) != parted


@pytest.mark.parametrize("count", [None, 50, 60])
def test_all_timesteps_are_chosen_where_so_many_are_asked_for(count):
    assert [(size, chosen) for size, chosen in strata(50, count, seed=0)] == [(1, (t,)) for t in range(50)]
    with pytest.raises(ValueError, match="at least 4 timesteps"):
        strata(50, 3, seed=0)


def test_a_bound_of_some_timesteps_is_unbiased_and_knows_its_error():
    """Over many draws of timesteps its mean is the exact bound, and its spread is the standard error that it states."""
    terms = 1.7 / (1 + torch.arange(1000, dtype=torch.float64)) ** 1.5

    def drawn(count, seed):
        parted = tuple(strata(1000, count, seed))
        return LikelihoodBound(terms[[t for stratum in parted for t in stratum.chosen]], 0.01, 1, parted)

    exact = drawn(None, 0)
    assert exact.standard_error == 0
    assert exact.bits_per_dim == pytest.approx(0.01 + float(terms.sum()))
    bounds = [drawn(40, seed) for seed in range(2000)]
    estimates = torch.tensor([bound.bits_per_dim for bound in bounds])
    errors = torch.tensor([bound.standard_error for bound in bounds])
    assert float(estimates.std()) == pytest.approx(float(errors.square().mean().sqrt()), rel=0.05)
    assert float(estimates.mean()) == pytest.approx(exact.bits_per_dim, abs=4 * float(estimates.std()) / 2000**0.5)
    assert float(estimates.std()) < 0.01 * exact.bits_per_dim


def test_a_bound_of_some_timesteps_has_the_terms_of_the_process():
    """For x_0 ~ N(0, I) the exact denoiser's terms do not depend on the noise, so they are those of the full bound."""
    process = GaussianProcess(Schedule.named("linear", 100), variance="fixed_large", dtype=torch.float64)
    x0 = on_levels(draw_with(3, 50, 1, 4, 4)().clamp(-1, 1)).double()
    denoise = lambda x, t: process.noise[t].view(-1, 1, 1, 1) * x  # noqa: E731
    (full,), (some,) = (likelihood_bounds(denoise, process, [x0], timesteps=count) for count in (None, 20))
    assert len(some.terms) == 20
    assert len(full.terms) == 100
    torch.testing.assert_close(some.terms, full.terms[some.timesteps], rtol=0.2, atol=0.01)
    assert abs(some.bits_per_dim - full.bits_per_dim) < 4 * some.standard_error + 0.05
