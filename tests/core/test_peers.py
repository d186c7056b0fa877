"""The same numbers as the published implementations, `diffusers` and `denoising_diffusion_pytorch`.

Both keep their tables in float32. Where a peer lets its tables be replaced it gets ours in float64, so that what is
compared is the formulas, to 1e-10; elsewhere the tolerance is float32's. Where a peer differs by definition, the test
says so and compares like with like.
"""

import math

import numpy as np
import pytest
import torch
from denoising_diffusion_pytorch.denoising_diffusion_pytorch import (
    GaussianDiffusion,
    cosine_beta_schedule,
    linear_beta_schedule,
)
from denoising_diffusion_pytorch.learned_gaussian_diffusion import LearnedGaussianDiffusion
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ddpm.diffusion.objectives import VLB_WEIGHT, Objective
from ddpm.diffusion.plans import NO_CLIP, inversion_plan, sampling_plan
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.sampling import sample
from ddpm.diffusion.schedules import Schedule, spaced_timesteps

T = 1000
SHAPE = (3, 2, 4, 4)
SCHEDULES = {name: Schedule.named(name, T) for name in ("linear", "cosine", "scaled_linear")}
THEIR_SCHEDULE = {"linear": "linear", "cosine": "squaredcos_cap_v2", "scaled_linear": "scaled_linear"}
THEIR_PREDICTION = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
LUCID_PREDICTION = {"epsilon": "pred_noise", "x0": "pred_x0", "v": "pred_v"}


def network(x, t):
    """Any smooth function of x and t will do."""
    t = t.to(x.dtype).view(-1, 1, 1, 1)
    return torch.tanh(0.7 * x.roll(1, -1) - 0.4 * x + torch.cos(0.01 * t))


def network_with_variance(x, t):
    return torch.cat([network(x, t), torch.sin(3 * x)], dim=1)


def randn(generator):
    return lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ours(denoise, schedule, **options):
    draw = randn(seeded())
    plan = sampling_plan(schedule, **{"prediction": "epsilon", "variance": "fixed_small", **options})
    return sample(denoise, plan, draw(), draw)


def theirs(denoise, scheduler, **options):
    """The peer's loop as its pipelines run it, on the noise that `ours` draws."""
    generator = seeded()
    x = randn(generator)()
    if "generator" in scheduler.step.__code__.co_varnames:
        options["generator"] = generator
    for t in scheduler.timesteps:
        x = scheduler.step(denoise(x, t.expand(len(x))), t, x, **options).prev_sample
    return x


def with_our_tables(scheduler, schedule):
    scheduler.alphas_cumprod = torch.from_numpy(schedule.alphas_cumprod)
    return scheduler


def solver_on_our_steps(scheduler, schedule, steps, spacing):
    """The solvers choose other timesteps by the same names (linspace and leading leave 0 out); they are given ours."""
    visited = schedule.respaced(spaced_timesteps(T, steps, spacing))
    scheduler.set_timesteps(steps)
    scheduler.timesteps = torch.from_numpy(visited.timesteps[::-1].copy())
    alpha_bar = np.append(visited.alphas_cumprod[::-1], 1.0)
    scheduler.sigmas = torch.from_numpy(np.sqrt((1 - alpha_bar) / alpha_bar))
    return scheduler


@pytest.mark.parametrize("name", SCHEDULES)
def test_betas_are_diffusers(name):
    ends = {"scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012}}.get(name, {})
    peer = DDPMScheduler(T, beta_schedule=THEIR_SCHEDULE[name], **ends)
    np.testing.assert_allclose(SCHEDULES[name].betas, peer.betas.double(), rtol=0, atol=1e-6)


@given(st.integers(2, 4000))
@settings(deadline=None)
def test_betas_are_lucidrains_in_float64(timesteps):
    np.testing.assert_allclose(Schedule.named("cosine", timesteps).betas, cosine_beta_schedule(timesteps), atol=1e-10)
    # Below T = 20 ours is held at 0.999, where the scaled end would pass 1.
    expected = linear_beta_schedule(timesteps).clamp(max=0.999)
    np.testing.assert_allclose(Schedule.named("linear", timesteps).betas, expected, atol=1e-10)


@given(st.sampled_from(["leading", "trailing", "linspace"]), st.integers(1, T))
@settings(deadline=None)
@example("leading", 1)
@example("trailing", 48)
@example("trailing", 61)
def test_spacings_are_diffusers(spacing, steps):
    assume((spacing, steps) != ("linspace", 1))  # of which theirs tells pure noise that it is t = 0
    peer = DDIMScheduler(T, timestep_spacing=spacing, steps_offset=0)
    peer.set_timesteps(steps)
    found, mine = peer.timesteps.numpy()[::-1], spaced_timesteps(T, steps, spacing)
    found = found[-steps:] if found[0] == -1 else found  # their float arithmetic sometimes goes on below 0
    # They count trailing steps down from T, we count up to it: a stride that ends on .5 rounds the other way.
    tied = (spacing == "trailing") & (2 * T * np.arange(1, steps + 1) % (2 * steps) == steps)
    np.testing.assert_array_equal(mine[~tied], found[~tied])
    np.testing.assert_allclose(mine, found, atol=1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_q_sample_is_diffusers(name):
    schedule = SCHEDULES[name]
    peer = with_our_tables(DDPMScheduler(T), schedule)
    draw = randn(seeded())
    x0, noise, t = draw(), draw(), torch.tensor([0, 400, T - 1])
    mine = GaussianProcess(schedule, dtype=torch.float64).q_sample(x0, t, noise)
    torch.testing.assert_close(mine, peer.add_noise(x0, noise, t), rtol=0, atol=1e-10)


@pytest.mark.parametrize("prediction", THEIR_PREDICTION)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize(("name", "steps"), [("linear", T), ("linear", 50), ("cosine", 33)])
def test_ancestral_sampling_is_diffusers(name, steps, variance, prediction):
    """On leading steps, which end on t = 0: from any other t diffusers adds noise to the last image."""
    schedule = SCHEDULES[name]
    peer = with_our_tables(
        DDPMScheduler(T, variance_type=variance, prediction_type=THEIR_PREDICTION[prediction]), schedule
    )
    peer.set_timesteps(steps)
    denoise = network_with_variance if variance == "learned_range" else network
    mine = ours(
        denoise, schedule, sampler="ancestral", steps=steps, spacing="leading", variance=variance, prediction=prediction
    )
    torch.testing.assert_close(mine, theirs(denoise, peer), rtol=0, atol=1e-10)


@pytest.mark.parametrize("prediction", THEIR_PREDICTION)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("name", "steps", "spacing"), [("linear", 50, "leading"), ("linear", 20, "trailing"), ("cosine", 30, "leading")]
)
def test_ddim_sampling_is_diffusers(name, steps, spacing, eta, prediction):
    """With ε̂ re-derived from the clipped x̂_0, which diffusers leaves to an option, and equal strides, which it
    takes for granted."""
    schedule = SCHEDULES[name]
    peer = with_our_tables(
        DDIMScheduler(T, timestep_spacing=spacing, prediction_type=THEIR_PREDICTION[prediction]), schedule
    )
    peer.set_timesteps(steps)
    mine = ours(network, schedule, sampler="ddim", steps=steps, spacing=spacing, eta=eta, prediction=prediction)
    expected = theirs(network, peer, eta=eta, use_clipped_model_output=True)
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("quantile", [0.3, 0.8, 0.995, 1.0])
def test_dynamic_thresholding_is_diffusers(quantile):
    options = {"thresholding": True, "dynamic_thresholding_ratio": quantile, "sample_max_value": NO_CLIP}
    peer = with_our_tables(DDIMScheduler(T, **options), SCHEDULES["linear"])
    peer.set_timesteps(20)
    mine = ours(network, SCHEDULES["linear"], sampler="ddim", steps=20, spacing="leading", dynamic_threshold=quantile)
    expected = theirs(network, peer, use_clipped_model_output=True)
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_ddim_inversion_is_diffusers(name, spacing):
    """For ε; of x_0 and v the peer makes ε̂ at the noise that x' has, we at the one that the network gets."""
    schedule = SCHEDULES[name]
    peer = with_our_tables(DDIMInverseScheduler(T, timestep_spacing=spacing, clip_sample=False), schedule)
    peer.set_timesteps(40)
    plan = inversion_plan(schedule, steps=40, prediction="epsilon", spacing=spacing)
    mine = sample(network, plan, randn(seeded())(), lambda: None)
    torch.testing.assert_close(mine, theirs(network, peer), rtol=0, atol=1e-10)


SOLVER_STEPS = [
    (1, "trailing"),
    (2, "trailing"),
    (3, "linspace"),
    (10, "trailing"),
    (25, "quadratic"),
    (200, "leading"),
]


@pytest.mark.parametrize("prediction", THEIR_PREDICTION)
@pytest.mark.parametrize(("steps", "spacing"), SOLVER_STEPS)
@pytest.mark.parametrize(
    ("sampler", "peer"),
    [
        ("dpmpp_2m", lambda **kw: UniPCMultistepScheduler(T, disable_corrector=list(range(T)), **kw)),
        ("dpmpp_2s", lambda **kw: DPMSolverSinglestepScheduler(T, final_sigmas_type="zero", **kw)),
        ("unipc", lambda **kw: UniPCMultistepScheduler(T, **kw)),
        ("unipc_bh1", lambda **kw: UniPCMultistepScheduler(T, solver_type="bh1", **kw)),
    ],
    ids=["2m", "2s", "unipc", "unipc_bh1"],
)
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_solvers_are_diffusers_in_float64(name, sampler, peer, steps, spacing, prediction):
    """Unclipped, as the peer has no clipping here. UniPC without its corrector is the 2M solver."""
    schedule = SCHEDULES[name]
    scheduler = solver_on_our_steps(peer(prediction_type=THEIR_PREDICTION[prediction]), schedule, steps, spacing)
    if sampler == "unipc_bh1":
        scheduler.sigmas[-1] = 1e-14  # at 0 its B(h) is infinite and its last image NaN
    mine = ours(network, schedule, sampler=sampler, steps=steps, spacing=spacing, prediction=prediction, clip=False)
    expected = theirs(network, scheduler)
    torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("steps", "spacing"), SOLVER_STEPS)
def test_dpm_solver_multistep_is_diffusers(steps, spacing):
    """It rounds x to float32 in every step, which a network that predicts v does not magnify."""
    schedule = SCHEDULES["linear"]
    scheduler = DPMSolverMultistepScheduler(T, prediction_type="v_prediction")
    scheduler = solver_on_our_steps(scheduler, schedule, steps, spacing)
    mine = ours(network, schedule, sampler="dpmpp_2m", steps=steps, spacing=spacing, prediction="v", clip=False)
    torch.testing.assert_close(mine, theirs(network, scheduler), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("steps", "spacing"), SOLVER_STEPS)
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_sde_dpm_solver_multistep_is_diffusers(name, steps, spacing):
    """As above; its midpoint rule is ours, and each step is given the noise that ours draws."""
    schedule = SCHEDULES[name]
    peer = DPMSolverMultistepScheduler(T, prediction_type="v_prediction", algorithm_type="sde-dpmsolver++")
    peer = solver_on_our_steps(peer, schedule, steps, spacing)
    mine = ours(network, schedule, sampler="dpmpp_2m_sde", steps=steps, spacing=spacing, prediction="v", clip=False)
    draw = randn(seeded())
    x = draw()
    for t in peer.timesteps:
        x = peer.step(network(x, t.expand(len(x))), t, x, variance_noise=draw()).prev_sample
    torch.testing.assert_close(mine, x, rtol=1e-5, atol=1e-5)


class LucidNetwork(torch.nn.Module):
    channels = SHAPE[1]
    self_condition = False

    def __init__(self, denoise):
        super().__init__()
        self.denoise = denoise
        self.out_dim = denoise(torch.zeros(SHAPE), torch.zeros(SHAPE[0])).shape[1]

    def forward(self, x, t, x_self_cond=None):
        return self.denoise(x, t)


def lucid(timesteps=T, prediction="epsilon", kind=GaussianDiffusion, denoise=network, **options):
    options = {"beta_schedule": "linear", "image_size": SHAPE[-1], "auto_normalize": False, **options}
    peer = kind(LucidNetwork(denoise), timesteps=timesteps, objective=LUCID_PREDICTION[prediction], **options).double()
    schedule = Schedule.named(options["beta_schedule"], timesteps)
    alpha_bar = schedule.alphas_cumprod
    tables = {
        "betas": schedule.betas,
        "alphas_cumprod": alpha_bar,
        "sqrt_alphas_cumprod": np.sqrt(alpha_bar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - alpha_bar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / alpha_bar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / alpha_bar - 1),
        "posterior_variance": schedule.posterior_variance,
        "posterior_log_variance_clipped": schedule.posterior_log_variance_clipped,
        "posterior_mean_coef1": schedule.posterior_mean_coef_x0,
        "posterior_mean_coef2": schedule.posterior_mean_coef_xt,
    }
    for name, table in tables.items():
        torch.testing.assert_close(getattr(peer, name)[1:], torch.from_numpy(table)[1:], rtol=1e-6, atol=1e-6)
        setattr(peer, name, torch.from_numpy(table))
    return peer


@pytest.mark.parametrize("prediction", LUCID_PREDICTION)
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_process_is_lucidrains(name, prediction):
    peer = lucid(prediction=prediction, beta_schedule=name)
    process = GaussianProcess(SCHEDULES[name], prediction=prediction, variance="fixed_small", dtype=torch.float64)
    draw = randn(seeded())
    x0, noise, t = draw().clamp(-1, 1), draw(), torch.tensor([1, 400, 900])
    xt = process.q_sample(x0, t, noise)
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(xt, peer.q_sample(x0, t, noise), **close)
    for mine, expected in zip(process.q_posterior(x0, xt, t), peer.q_posterior(x0, xt, t), strict=True):
        torch.testing.assert_close(mine, expected, **close)
    mean, log_variance, predicted = process.p_mean_variance(network(xt, t), xt, t)
    their_mean, _, their_log_variance, their_x0 = peer.p_mean_variance(xt, t)
    torch.testing.assert_close(mean, their_mean, **close)
    torch.testing.assert_close(predicted, their_x0, **close)
    torch.testing.assert_close(log_variance, their_log_variance, **close)


@pytest.mark.parametrize(
    ("prediction", "weighting"), [("epsilon", "none"), *((prediction, "min_snr") for prediction in LUCID_PREDICTION)]
)
def test_the_losses_are_lucidrains(prediction, weighting):
    """Its unweighted x_0 and v losses differ by definition: they are weighted all the same, by SNR and SNR/(SNR+1)."""
    peer = lucid(prediction=prediction, min_snr_loss_weight=weighting == "min_snr", min_snr_gamma=3)
    process = GaussianProcess(SCHEDULES["linear"], prediction=prediction, dtype=torch.float64)
    draw = randn(seeded())
    x0, noise, t = draw().clamp(-1, 1), draw(), torch.tensor([0, 400, 999])
    objective = Objective(weighting=weighting, gamma=3)
    mine = objective.training_losses(process, network, x0, t, noise)
    torch.testing.assert_close(mine, peer.p_losses(x0, t, noise, loss_reduction="none"), rtol=1e-6, atol=1e-6)


def test_the_hybrid_loss_is_lucidrains():
    """Its λ does not scale with T. At t = 0 it approximates Φ, well enough near the mean."""
    process = GaussianProcess(SCHEDULES["linear"], variance="learned_range", dtype=torch.float64)
    draw = randn(seeded())
    x0, noise = draw().clamp(-1, 1), draw()

    def denoise(x, t):
        return torch.cat([noise + 0.5 * network(x, t), torch.sin(3 * x)], dim=1)

    peer = lucid(kind=LearnedGaussianDiffusion, denoise=denoise, vb_loss_weight=VLB_WEIGHT * T)
    for t, tolerance in ((torch.tensor([1, 400, 999]), 1e-10), (torch.tensor([0, 0, 0]), 1e-3)):
        mine = Objective(loss="hybrid").training_losses(process, denoise, x0, t, noise)
        expected = peer.p_losses(x0, t, noise, loss_reduction="none")
        torch.testing.assert_close(mine, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("timesteps", "steps", "eta"), [(100, 100, None), (T, 50, 0.0), (T, 50, 0.5), (T, 50, 1.0), (T, 8, 0.5)]
)
def test_sampling_is_lucidrains(timesteps, steps, eta):
    """Its ancestral sampler (η None) takes all T steps; its DDIM's steps are our trailing ones. Both clip."""
    peer = lucid(timesteps, sampling_timesteps=steps, ddim_sampling_eta=eta or 0.0)
    torch.set_default_dtype(torch.float64)  # its noise has the default type
    try:
        torch.manual_seed(0)
        expected = peer.sample(SHAPE[0])
    finally:
        torch.set_default_dtype(torch.float32)
    sampler = {"sampler": "ancestral"} if eta is None else {"sampler": "ddim", "eta": eta}
    plan = sampling_plan(
        Schedule.named("linear", timesteps), steps=steps, prediction="epsilon", variance="fixed_small", **sampler
    )
    torch.manual_seed(0)
    draw = randn(torch.default_generator)
    torch.testing.assert_close(sample(network, plan, draw(), draw), expected, rtol=0, atol=1e-10)


def test_snr_has_one_meaning():
    """Min-SNR's weight of an ε loss, written out (Hang et al. 2023, eq. 9)."""
    process = GaussianProcess(SCHEDULES["cosine"], dtype=torch.float64)
    t = torch.arange(T)
    snr = torch.from_numpy(SCHEDULES["cosine"].alphas_cumprod / (1 - SCHEDULES["cosine"].alphas_cumprod))
    shape = (T, 1)
    losses = [
        Objective(weighting=weighting).training_losses(
            process, lambda x, t: torch.zeros_like(x), torch.zeros(shape).double(), t, torch.ones(shape).double()
        )
        for weighting in ("none", "min_snr")
    ]
    torch.testing.assert_close(losses[1] / losses[0], snr.clamp(max=5) / snr)
    assert math.isclose(float(losses[0].mean()), 1)
