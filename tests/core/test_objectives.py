"""Losses and the timesteps they are taken at."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import train_with
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from ddpm.config.params import Params
from ddpm.data.loader import InMemoryImages
from ddpm.diffusion.likelihood import discretized_gaussian_log_likelihood, normal_kl, prior_terms, vlb_terms
from ddpm.diffusion.objectives import LOSSES, VLB_WEIGHT, WEIGHTINGS, Objective
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.schedules import Schedule
from ddpm.errors import Interrupted
from ddpm.nets import build
from ddpm.training.checkpoint import Checkpoints
from ddpm.training.timesteps import FLOOR, HISTORY, TIMESTEP_SAMPLERS, ImportanceTimesteps

SCHEDULE = Schedule.named("linear", 50)
SHAPE = (4, 1, 8, 8)


def tiny_network(out_channels=2):
    torch.manual_seed(0)
    options = {"kind": "unet", "width": 8, "multipliers": (1, 2), "attention_resolutions": (4,), "groups": 4}
    return build(options, image_size=8, channels=1, out_channels=out_channels)


def a_batch(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    levels = torch.randint(0, 256, SHAPE, generator=generator)
    return levels.to(dtype) / 127.5 - 1, torch.randn(SHAPE, generator=generator, dtype=dtype)


def gradients(objective, process, t):
    """Of the last layer's bias, which adds to the prediction and to the variance's word: [2]."""
    network = tiny_network()
    torch.nn.init.normal_(network.out_conv.weight, std=0.1)
    x0, noise = a_batch()
    objective.training_losses(process, network, x0, t, noise).mean().backward()
    return network.out_conv.bias.grad


def test_hybrid_moves_the_variance_by_the_bound_and_the_mean_by_the_error_alone():
    process = GaussianProcess(SCHEDULE, variance="learned_range")
    t = torch.tensor([0, 1, 20, 49])
    simple, hybrid, vlb = (gradients(Objective(loss=loss), process, t) for loss in ("simple", "hybrid", "vlb"))
    assert simple[1] == 0
    assert hybrid[0] == pytest.approx(simple[0].item(), rel=1e-5)
    assert hybrid[1] == pytest.approx(VLB_WEIGHT * vlb[1].item(), rel=1e-4)
    assert abs(vlb[0]) > 0
    assert torch.isfinite(vlb).all()


@given(st.floats(-1e3, 1e3), st.floats(-8, 2), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_a_levels_mass_is_the_normal_distributions(mean, log_scale, level):
    """Also thirty standard deviations away, in either direction, and on the open outer levels."""
    x = level / 127.5 - 1
    scale = math.exp(log_scale)
    low = -np.inf if level == 0 else (x - 1 / 255 - mean) / scale
    high = np.inf if level == 255 else (x + 1 / 255 - mean) / scale
    if low > 0:
        low, high = -high, -low
    # Both sides of a thin level differ by little: there the density at its middle says the mass to all digits.
    thin = high - low < 1e-4
    expected = (
        norm.logpdf((low + high) / 2) + np.log(high - low)
        if thin
        else norm.logcdf(high) + np.log(-np.expm1(norm.logcdf(low) - norm.logcdf(high)))
    )
    found = discretized_gaussian_log_likelihood(*torch.tensor([x, mean, log_scale], dtype=torch.float64))
    assert found.item() == pytest.approx(expected, rel=1e-3 if thin else 1e-6, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_levels_of_a_decoder_share_out_one(dtype):
    x = (torch.arange(256) / 127.5 - 1).to(dtype)
    for mean, scale in ((0.0, 0.3), (0.99, 0.01), (-3.0, 1.0), (0.2, 1e-3)):
        log_scale = torch.tensor(scale, dtype=dtype).log()
        mass = discretized_gaussian_log_likelihood(x, torch.tensor(mean, dtype=dtype), log_scale).exp()
        assert mass.sum().item() == pytest.approx(1, abs=1e-5)


def test_a_decoder_that_is_far_off_learns_to_come_nearer():
    """The papers' code stops the gradient where the mass is below 1e-12."""
    x = torch.tensor([-1.0, -0.5, 0.0, 1.0]).view(4, 1)
    mean = torch.tensor([5.0, 5.0, -5.0, -5.0]).view(4, 1).requires_grad_()
    discretized_gaussian_log_likelihood(x, mean, torch.tensor(0.01).log()).sum().backward()
    assert torch.isfinite(mean.grad).all()
    assert mean.grad.sign().flatten().tolist() == [-1, -1, 1, 1]


@given(*[st.floats(-3, 3)] * 4)
@settings(deadline=None)
def test_kl_is_torchs(mean1, log_variance1, mean2, log_variance2):
    values = [torch.tensor(value).double() for value in (mean1, log_variance1, mean2, log_variance2)]
    ours = normal_kl(*values)
    first, second = (Normal(mean, (log_variance / 2).exp()) for mean, log_variance in (values[:2], values[2:]))
    assert ours.item() == pytest.approx(kl_divergence(first, second).item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_a_perfect_prediction_costs_only_its_variance(prediction, variance):
    process = GaussianProcess(SCHEDULE, prediction=prediction, variance=variance, dtype=torch.float64)
    x0, noise = a_batch(torch.float64)
    t = torch.tensor([1, 5, 20, 49])
    out = process.target(x0, t, noise)
    if variance == "learned_range":
        out = torch.cat([out, -torch.ones_like(out)], dim=1)  # the posterior's own variance
    terms = vlb_terms(process, out, x0, process.q_sample(x0, t, noise), t, clip=False)
    assert terms.shape == (4,)
    if variance == "fixed_large":
        assert bool((terms > 0).all())
    else:
        torch.testing.assert_close(terms, torch.zeros(4).double(), rtol=0, atol=1e-9)


def test_a_learned_variance_lies_in_its_range():
    process = GaussianProcess(SCHEDULE, variance="learned_range", dtype=torch.float64)
    xt, _ = a_batch(torch.float64)
    t = torch.tensor([0, 1, 20, 49])
    for word, expected in ((1.0, np.log(SCHEDULE.betas)), (-1.0, SCHEDULE.posterior_log_variance_clipped)):
        out = torch.cat([xt, torch.full_like(xt, word)], dim=1)
        mean, log_variance, _ = process.p_mean_variance(out, xt, t)
        assert mean.shape == log_variance.shape == SHAPE
        np.testing.assert_allclose(log_variance[:, 0, 0, 0], expected[t.numpy()])


def test_the_large_variance_starts_at_the_posteriors():
    """At t = 0, where β_1 is too wide for a decoder, β̃ of the step after stands in (Ho et al.'s code)."""
    process = GaussianProcess(SCHEDULE, variance="fixed_large", dtype=torch.float64)
    xt, _ = a_batch(torch.float64)
    _, log_variance, _ = process.p_mean_variance(xt, xt, torch.tensor([0, 1, 20, 49]))
    expected = [SCHEDULE.posterior_variance[1], *SCHEDULE.betas[[1, 20, 49]]]
    np.testing.assert_allclose(log_variance.flatten().exp(), expected)


def test_the_prior_term_is_the_divergence_of_the_last_step_from_noise():
    """Of a process so short that most of x_0 is left at its end."""
    schedule = Schedule.named("scaled_linear", 5)
    x0, _ = a_batch(torch.float64)
    left = schedule.alphas_cumprod[-1]
    last, noise = Normal(left**0.5 * x0, (1 - left) ** 0.5), Normal(torch.zeros_like(x0), torch.ones_like(x0))
    expected = kl_divergence(last, noise).flatten(1).mean(1) / math.log(2)
    assert expected.min() > 1
    torch.testing.assert_close(prior_terms(GaussianProcess(schedule, dtype=torch.float64), x0), expected)


def test_names_that_do_not_exist():
    with pytest.raises(ValueError, match="no loss 'l1'; there are: simple, vlb, hybrid"):
        Objective(loss="l1")
    with pytest.raises(ValueError, match="no weighting 'p2'; there are: none, min_snr"):
        Objective(weighting="p2")
    with pytest.raises(ValueError, match="no variance 'learned'; there are"):
        GaussianProcess(SCHEDULE, variance="learned")


# --- importance sampling


def test_timesteps_are_uniform_until_each_has_its_losses_and_then_follow_them():
    sampler = ImportanceTimesteps(4)
    t = torch.arange(4)
    for _ in range(HISTORY - 1):
        sampler.update(t, torch.tensor([1.0, 2.0, 3.0, 100.0]))
    assert sampler.probabilities().tolist() == [0.25] * 4
    # More than a history of them at once, as a large batch has: the last ten count.
    sampler.update(torch.tensor([3] * 15), torch.tensor([100.0] * 5 + [4.0] * 10))
    assert sampler.probabilities().tolist() == [0.25] * 4
    sampler.update(t[:3], torch.tensor([1.0, 2.0, 3.0]))
    expected = (1 - FLOOR) * torch.tensor([0.1, 0.2, 0.3, 0.4]).double() + FLOOR / 4
    torch.testing.assert_close(sampler.probabilities(), expected)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=30))
@settings(max_examples=30, deadline=None)
def test_weighted_draws_estimate_the_uniform_mean(scales):
    """E_p[L_t / (T p_t)] is the mean of L_t; with constant losses every draw gives it almost exactly."""
    sampler = ImportanceTimesteps(len(scales))
    losses = torch.tensor(scales)
    for _ in range(HISTORY):
        sampler.update(torch.arange(len(scales)), losses)
    p = sampler.probabilities()
    assert p.sum().item() == pytest.approx(1)
    t, weights = sampler.draw(1000, torch.device("cpu"))
    torch.testing.assert_close(weights, (1 / (len(scales) * p[t])).float())
    exact = (p * losses.double() / (len(scales) * p)).sum().item()
    assert exact == pytest.approx(losses.mean().item(), rel=1e-5)
    assert (losses[t] * weights).mean().item() == pytest.approx(exact, rel=0.05)


def test_a_loss_that_is_no_number_is_not_remembered():
    sampler = ImportanceTimesteps(1)
    for _ in range(HISTORY):
        sampler.update(torch.tensor([0, 0]), torch.tensor([math.nan, 2.0]))
    assert sampler.counts.tolist() == [HISTORY]
    assert sampler.draw(3, torch.device("cpu"))[0].tolist() == [0, 0, 0]


# --- in the loop


def a_run(checkpoints=None, stop_at=sys.maxsize, **options):
    network = tiny_network()
    seen = []
    images = InMemoryImages(np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), dtype=np.uint8))
    train_with(
        network,
        GaussianProcess(Schedule.named("linear", 4), variance="learned_range"),
        images,
        seed=0,
        steps=30,
        batch_size=16,
        warmup_steps=2,
        learning_rate=1e-3,
        log_every=5,
        checkpoints=checkpoints,
        on_step=seen.append,
        should_stop=lambda: len(seen) + 1 == stop_at,
        **options,
    )
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("loss", ["vlb", "hybrid"])
def test_a_continued_run_remembers_its_losses(tmp_path, loss):
    """Stopped after importance sampling has set in, it goes on to the same bits."""
    options = {"objective": Objective(loss=loss), "timestep_sampler": "importance"}
    whole = a_run(**options)
    checkpoints = Checkpoints(tmp_path / "states")
    with pytest.raises(Interrupted):
        a_run(checkpoints, stop_at=20, **options)
    assert checkpoints.latest()[0]["timesteps.counts"].min() >= HISTORY
    assert torch.equal(a_run(checkpoints, **options), whole)
    assert not torch.equal(a_run(objective=Objective(loss=loss)), whole)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"process": {"variance": "learned_range"}}, "which objective.loss simple does not train"),
        ({"objective": {"loss": "hybrid"}}, "set process.variance to learned_range"),
        ({"objective": {"loss": "vlb", "weighting": "min_snr"}}, "`loss: vlb` has none of"),
        ({"sampling": {"variance": "learned_range"}}, "sampling.variance is learned_range, but process.variance is"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(model, words):
    with pytest.raises(ValueError, match=words):
        Params.model_validate({"models": {"ddpm": model}})


def test_the_configuration_knows_every_objective():
    params = Params.model_validate({"models": {"ddpm": {}}})
    assert params.models["ddpm"].objective.model_dump() == {
        "loss": "simple",
        "reconstruction_weight": 1.0,
        "weighting": "none",
        "gamma": 5.0,
        "timestep_sampler": "uniform",
        "dropping": "together",
        "reconstruction": None,
        "noised": False,
    }
    schema = type(params.models["ddpm"].objective).model_json_schema()["properties"]
    assert set(schema["loss"]["enum"]) == {
        *LOSSES,
        "elbo",
        "cross_entropy",
        "reconstruction",
        "contrastive",
    }  # the last are tasks
    assert set(schema["weighting"]["enum"]) == set(WEIGHTINGS)
    assert set(schema["timestep_sampler"]["enum"]) == set(TIMESTEP_SAMPLERS)
