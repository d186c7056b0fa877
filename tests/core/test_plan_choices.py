"""Options that a sampler does not use are refused where the plan is made, and processes that do not end in noise."""

import math

import numpy as np
import pytest
import torch

from ddpm.config.model import ModelConfig, VariantConfig
from ddpm.config.process import ProcessConfig
from ddpm.diffusion.likelihood import gaussian_log_density, vlb_terms
from ddpm.diffusion.plans import plan_for
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.schedules import Schedule
from ddpm.errors import DdpmWarning, UserError
from ddpm.model.process import check_end

PROCESS = {"schedule": "linear", "timesteps": 100, "prediction": "epsilon", "variance": "fixed_small"}
OWN = {"sampler": "dpmpp_2m", "steps": 5, "eta": 0.5, "variance": "fixed_large", "clip": True}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"variance": "bogus"},
            "by the sampler ancestral alone, and the model's own sampler is dpmpp_2m",
        ),
        ({"sampler": "ddim", "variance": "fixed_small"}, "and the sampler is ddim; leave variance out"),
        ({"sampler": "ancestral", "variance": "bogus"}, "no variance 'bogus'"),
        ({"eta": 0.0}, "eta is used by the sampler ddim alone"),
        ({"sampler": "ancestral", "eta": 1.0}, "eta is used by the sampler ddim alone"),
        ({"sampler": "bogus", "eta": 1.0}, "no sampler 'bogus'"),
        ({"clip": False, "dynamic_threshold": 0.9}, "dynamic_threshold takes the place of clip"),
        ({"clip_range": 2.0, "dynamic_threshold": 0.9}, "dynamic_threshold takes the place of clip; leave clip_range"),
        ({"clip_range": 2.0, "clip": False}, "clip_range is what clip clips to, and clip is false"),
        ({"guidance_interval": (0, 0.5)}, "not used at guidance_scale 1, .*: set guidance_scale or leave"),
        ({"guidance_interval": (0, 0.5), "guidance_scale": 1.0}, "not used at guidance_scale 1"),
        ({"guidance_interval": (0, 0.5), "guidance_scale": 0, "by_classifier": True}, "not used at guidance_scale 0"),
    ],
)
def test_an_override_of_no_use_is_refused(overrides, words):
    with pytest.raises(ValueError, match=words):
        plan_for(PROCESS, OWN, **overrides)


@pytest.mark.parametrize("idle", [{"dynamic_threshold": 0.9}, {"clip": False}])
def test_a_model_of_before_may_have_a_clip_range_without_effect(idle: dict[str, object]):
    """params.yaml may not; model.json and sampler.json are read."""
    sampling = ModelConfig.model_validate({"sampling": {"clip_range": 5.0, **idle}}).sampling.model_dump()
    expected = plan_for(PROCESS, {**sampling, "clip_range": None})
    np.testing.assert_array_equal(plan_for(PROCESS, sampling).table, expected.table)


def test_an_interval_is_used_where_there_is_guidance():
    """0 is the weaker model and no guidance by a classifier; 1 is the other way round."""
    interval = (0.0, 0.5)
    for scale, by_classifier in ((0, False), (2, False), (1, True)):
        plan = plan_for(PROCESS, OWN, guidance_scale=scale, guidance_interval=interval, by_classifier=by_classifier)
        assert 0 < np.count_nonzero(plan.column("guidance")) < len(plan)
    # The model's own interval is no request.
    own = {**OWN, "guidance_scale": 3.0, "guidance_interval": interval}
    assert not plan_for(PROCESS, own, guidance_scale=1.0).column("guidance").any()
    assert plan_for(PROCESS, {**OWN, "guidance_scale": 3.0}, guidance_interval=interval).column("guidance").any()


def test_an_override_of_use_is_taken_and_a_configuration_keeps_its_defaults():
    plan_for(PROCESS, OWN)
    noisy = plan_for(PROCESS, OWN, sampler="ddim", eta=1.0)
    assert noisy.column("to_noise").any()
    assert plan_for(PROCESS, OWN, sampler="ancestral", variance="fixed_small").column("to_noise").any()


def process(schedule: str, timesteps: int) -> VariantConfig:
    return VariantConfig(process=ProcessConfig(schedule=schedule, timesteps=timesteps), sampling={"steps": 1})


@pytest.mark.parametrize(
    ("schedule", "timesteps", "left"),
    [("scaled_linear", 100, "0.58"), ("scaled_linear", 200, "0.34"), ("linear", 1, "0.9")],
)
def test_a_process_that_leaves_the_image_is_refused(schedule, timesteps, left):
    with pytest.raises(UserError, match=rf"^V: .*with {timesteps} timesteps ends at alpha_bar = {left}"):
        check_end(process(schedule, timesteps), "V")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("schedule", "timesteps"),
    [("linear", 10), ("linear", 1000), ("cosine", 1), ("sigmoid", 50), ("scaled_linear", 1000)],
)
def test_a_process_that_ends_in_noise_is_taken(schedule, timesteps):
    check_end(process(schedule, timesteps), "V")


def test_between_the_two_is_a_warning():
    with pytest.warns(DdpmWarning, match="alpha_bar = 0.0"):
        check_end(process("scaled_linear", 600), "V")


def test_the_last_term_of_continuous_data_is_a_density():
    torch.manual_seed(0)
    x0, x1 = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    schedule = Schedule.named("linear", 20)
    continuous = GaussianProcess(schedule, variance="fixed_small", levels=None, dtype=torch.float64)
    out, t = torch.zeros_like(x1), torch.zeros(4, dtype=torch.int64)
    mean, log_variance, _ = continuous.p_mean_variance(out, x1, t, clip=False)
    density = torch.distributions.Normal(mean, (log_variance / 2).exp()).log_prob(x0)
    torch.testing.assert_close(gaussian_log_density(x0, mean, log_variance / 2), density)
    found = vlb_terms(continuous, out, x0, x1, t, clip=False)
    torch.testing.assert_close(found, -density.mean(1) / math.log(2))
    discrete = vlb_terms(
        GaussianProcess(schedule, variance="fixed_small", dtype=torch.float64), out, x0, x1, t, clip=False
    )
    assert not np.allclose(found, discrete)
