"""Schedulers of diffusers in continuous time, read with a `UNet2DModel`: the same images from the same noise."""

import json

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
    ScoreSdeVeScheduler,
    UNet2DModel,
)
from networks import answer, ours
from tiny import UNET_OF_DIFFUSERS
from weights import moved

from ddpm.diffusion.plans import plan_for
from ddpm.diffusion.sampling import sample
from ddpm.errors import UserError
from ddpm.interop.diffusers import read, write
from ddpm.interop.published import Flags

SHAPE = (2, 1, 8, 8)


def saved(scheduler, directory, **options):
    """A pipeline's directory, and its network."""
    torch.manual_seed(0)
    network = moved(UNet2DModel(**UNET_OF_DIFFUSERS, **options)).eval()
    network.save_pretrained(directory / "unet")
    scheduler.save_pretrained(directory / "scheduler")
    return network


def drawn(found, steps):
    network = ours(found)
    generator = torch.Generator().manual_seed(1)
    draw = lambda: torch.randn(SHAPE, generator=generator)  # noqa: E731
    plan = plan_for(found.process.model_dump(), found.sampling.model_dump(), steps=steps)
    return sample(network, plan, draw(), draw)


@torch.no_grad()
def theirs(network, scheduler, steps, scale):
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SHAPE, generator=generator) * scale(scheduler)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        options = {"generator": generator} if isinstance(scheduler, EulerAncestralDiscreteScheduler) else {}
        x = scheduler.step(network(seen, t).sample, t, x, **options).prev_sample
    return x


def of_noise(scheduler):
    return (scheduler.sigmas[0] ** 2 + 1) ** 0.5


TRAILING = {"timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("scheduler", "steps", "rows", "scale"),
    [
        (EDMEulerScheduler(sigma_max=40.0, sigma_data=0.4), 6, 6, of_noise),
        (EDMEulerScheduler(sigma_schedule="exponential", sigma_min=0.01), 6, 6, of_noise),
        (EDMDPMSolverMultistepScheduler(rho=5.0), 6, 6, of_noise),
        (FlowMatchEulerDiscreteScheduler(), 6, 6, lambda scheduler: 1.0),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), 6, 6, lambda scheduler: 1.0),
        (FlowMatchHeunDiscreteScheduler(), 4, 7, lambda scheduler: 1.0),
        (EulerDiscreteScheduler(**TRAILING), 5, 5, of_noise),
        (EulerAncestralDiscreteScheduler(**TRAILING), 5, 5, of_noise),
        (HeunDiscreteScheduler(**TRAILING), 3, 5, of_noise),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "config") else None,
)
def test_a_saved_pipeline_draws_the_same_images(scheduler, steps, rows, scale, tmp_path):
    network = saved(scheduler, tmp_path)
    expected = theirs(network, scheduler, steps, scale)
    found = drawn(read(tmp_path, Flags()), rows)
    assert (found - expected).norm() <= 2e-4 * expected.norm()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("EDMEulerScheduler", {"prediction_type": "v_prediction"}, "`prediction_type`: .*, found 'v_prediction'"),
        ("EDMEulerScheduler", {"sigma_min": -1.0}, "`sigma_min`: input should be greater than 0"),
        ("EDMEulerScheduler", {"sigma_min": 90.0}, "`sigma_min` must be below sigma_max, 80; it is 90"),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "`use_dynamic_shifting`: .*, found True"),
        ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 500}, "`num_train_timesteps`: .*1000"),
        ("KarrasVeScheduler", {}, r"'KarrasVeScheduler' is no scheduler .* ddpm knows .*EDMEuler.*ScoreSdeVe"),
        ("ScoreSdeVeScheduler", {"sigma_min": 0}, "`sigma_min`: input should be greater than 0"),
        ("ScoreSdeVeScheduler", {}, "time_embedding_type is positional, .*; expected fourier"),
    ],
)
def test_what_of_a_scheduler_is_not_known_is_named(name, change, words, tmp_path):
    saved(EDMEulerScheduler(), tmp_path)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": name, **change}))
    with pytest.raises(UserError, match=words):
        read(tmp_path, Flags())


CENTRED = pytest.mark.parametrize("centred", [False, True])


def of_scores(directory, *, centred=False, **options):
    """A pipeline's directory of a score model, its network and its scheduler."""
    scheduler = ScoreSdeVeScheduler(num_train_timesteps=9, sigma_max=20.0, sampling_eps=0.0, **options)
    return saved(scheduler, directory, time_embedding_type="fourier", center_input_sample=centred), scheduler


@CENTRED
def test_a_score_model_says_the_same_of_data_in_twice_the_range(centred, tmp_path):
    """σ times the score, which is the same number in [0, 1] and in [−1, 1]."""
    network, _ = of_scores(tmp_path, centred=centred)
    x, sigma = torch.rand(3, 1, 8, 8), torch.tensor([0.01, 1.0, 20.0])
    with torch.no_grad():
        expected = network(x, sigma).sample * sigma.view(-1, 1, 1, 1)
    found = answer(ours(read(tmp_path, Flags())), 2 * x - 1, 2 * sigma)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@CENTRED
@pytest.mark.parametrize("steps", [9, 5])  # less one a power of 2, so that their floats round to the right levels
@torch.no_grad()
def test_a_score_model_draws_what_its_predictor_draws(steps, centred, tmp_path):
    """Of as many steps as there are levels, and of fewer, whose levels are others."""
    network, scheduler = of_scores(tmp_path, centred=centred, correct_steps=0)
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)
    generator = torch.Generator().manual_seed(1)
    x = begun = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=True):
        step = scheduler.step_pred(network(x, sigma.expand(2)).sample, t, x, generator=generator)
        x = step.prev_sample
    expected = 2 * step.prev_sample_mean - 1

    found = read(tmp_path, Flags())
    assert found.notes == ()
    generator = torch.Generator().manual_seed(1)
    draw = lambda: torch.randn(SHAPE, generator=generator)  # noqa: E731
    draw()
    start = (2 * begun - 1) / (1 + found.process.sigma_max**2) ** 0.5
    plan = plan_for(found.process.model_dump(), found.sampling.model_dump(), steps=steps)
    assert (sample(ours(found), plan, start, draw) - expected).norm() <= 1e-5 * expected.norm()


def test_corrections_are_left_out_in_words(tmp_path):
    of_scores(tmp_path)
    assert read(tmp_path, Flags()).notes == (
        "it is sampled by the predictor alone: correct_steps 1 with snr 0.15 are left out",
    )


def test_a_score_model_is_not_one_of_betas(tmp_path):
    of_scores(tmp_path)
    EDMEulerScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(UserError, match=r"time_embedding_type is fourier, .*; expected positional"):
        read(tmp_path, Flags())


def test_an_edm_solver_of_another_order_is_noted(tmp_path):
    saved(EDMDPMSolverMultistepScheduler(solver_order=3), tmp_path)
    assert read(tmp_path, Flags()).notes == ("solver_order is 2 here, and not 3",)


def test_a_process_that_their_pipeline_lacks_is_not_written(tmp_path):
    saved(EDMEulerScheduler(), tmp_path)
    with pytest.raises(UserError, match=r"process\.kind is edm, which diffusers' DDPMScheduler does not have"):
        write(read(tmp_path, Flags()), tmp_path / "out")
