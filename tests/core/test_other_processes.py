"""Every process with every sampler on data whose best denoiser is known.

For Gaussian data the denoiser is linear, and so is a plan: run on a batch of x_T and z that are 0 or 1 once, it shows
its mean and its variance exactly, without a random number.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from known_data import CENTRES, MEAN, PROCESSES, STD, WEIGHTS, WIDTH, gaussian, mixture, network_of

from ddpm.deploy import runtime
from ddpm.diffusion.coordinates import KINDS, PREDICTIONS, Coordinates, Level, preconditioning, target
from ddpm.diffusion.langevin import enough_levels, langevin_share, level_growth
from ddpm.diffusion.objectives import Objective
from ddpm.diffusion.plans import SAMPLERS, plan_for, sampling_plan
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.sampling import sample
from ddpm.diffusion.schedules import Schedule
from ddpm.training.timesteps import NormalTimesteps


def moments(denoise, plan):
    """Mean and variance of what a plan draws with a linear denoiser."""
    noisy = np.flatnonzero(plan.column("to_noise"))
    x = torch.zeros(len(noisy) + 2, 1, dtype=torch.float64)
    x[1] = 1
    units = iter(torch.eye(len(x), dtype=torch.float64)[2:, :, None])
    drawn = sample(denoise, plan, x, lambda: next(units))[:, 0]
    return float(drawn[0]), float((drawn[1:] - drawn[0]).square().sum())


# Samplers that add noise on the way.
RANDOM = ("ancestral", "dpmpp_2m_sde", "euler_ancestral", "euler_maruyama", "langevin")
# Rows that bring each sampler within a hundredth of the data, and the spacing of a process.
ROWS = {
    "ancestral": 300,
    "ddim": 300,
    "dpmpp_2m": 60,
    "dpmpp_2m_sde": 200,
    "dpmpp_2s": 100,
    "unipc": 60,
    "unipc_bh1": 60,
    "euler": 300,
    "euler_ancestral": 300,
    "euler_maruyama": 300,
    "heun": 119,
    "langevin": 1500,
}
# Of the standard deviation, where it is not 0.012: methods of first order, and Langevin's finite steps.
ERROR = dict.fromkeys(("ancestral", "euler", "ddim", "euler_ancestral", "euler_maruyama"), 0.035) | {"langevin": 0.1}
SPACING = {"vp": "karras", "ve": "native", "edm": "native", "flow": "karras"}


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_gives_a_gaussian_back_in_every_process(sampler, name):
    schedule = Schedule.of(PROCESSES[name])
    predictions = PREDICTIONS if sampler == "euler" else ["v", "edm"]
    for prediction in predictions:
        plan = sampling_plan(
            schedule, sampler=sampler, steps=ROWS[sampler], prediction=prediction, variance="fixed_small",
            spacing=SPACING[name], clip=False, langevin_steps=10,
        )  # fmt: skip
        assert len(plan) == plan.evaluations == ROWS[sampler]
        mean, variance = moments(network_of(schedule, prediction, gaussian), plan)
        assert mean == pytest.approx(MEAN, abs=0.01)
        assert variance**0.5 == pytest.approx(STD, rel=ERROR.get(sampler, 0.012)), prediction


@pytest.mark.parametrize("name", ["edm", "flow"])
def test_churn_keeps_the_distribution(name):
    schedule = Schedule.of(PROCESSES[name])
    options = {"sampler": "heun", "steps": 161, "prediction": "v", "variance": "fixed_small", "spacing": "karras"}
    plan = sampling_plan(schedule, **options, clip=False, churn=20.0, churn_interval=(0.05, 50.0))
    assert plan.column("to_noise").any()
    mean, variance = moments(network_of(schedule, "v", gaussian), plan)
    assert mean == pytest.approx(MEAN, abs=0.01)
    assert variance**0.5 == pytest.approx(STD, rel=0.012)


@pytest.mark.parametrize("name", PROCESSES)
def test_heun_is_of_second_order_and_euler_of_first(name):
    schedule = Schedule.of(PROCESSES[name])

    def error(sampler, steps):
        options = {"sampler": sampler, "steps": steps, "prediction": "v", "variance": "fixed_small"}
        plan = sampling_plan(schedule, **options, spacing=SPACING[name], clip=False)
        x = torch.tensor([[1.0]], dtype=torch.float64)
        signal, noise = (column[-1] for column in schedule.visited(2, SPACING[name]).level[:2])
        exact = MEAN + (x - signal * MEAN) * STD / math.hypot(signal * STD, noise)
        return float((sample(network_of(schedule, "v", gaussian), plan, x, lambda: x) - exact).abs())

    assert error("heun", 33) > 3 * error("heun", 65)
    assert 1.6 < error("euler", 33) / error("euler", 65) < 2.4


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("sampler", ROWS)
def test_the_weights_of_a_mixture_are_kept_in_every_process(sampler, name):
    """By the numpy executor. x_T are the quantiles of a normal distribution: only noise on the way is random."""
    schedule, count = Schedule.of(PROCESSES[name]), 2000
    random = sampler in RANDOM
    steps = {"langevin": 1200}.get(sampler, 300 if random else 80)
    plan = sampling_plan(
        schedule, sampler=sampler, steps=steps, prediction="v", variance="fixed_small", spacing=SPACING[name],
        clip=False, langevin_steps=10,
    )  # fmt: skip
    quantiles = (np.arange(count) + 0.5) / count
    x = torch.special.ndtri(torch.from_numpy(quantiles)).numpy()[:, None]
    generator = np.random.default_rng(0)
    drawn = runtime.run(network_of(schedule, "v", mixture), plan, x, lambda: generator.standard_normal((count, 1)))[
        :, 0
    ]
    low = drawn[drawn < 0]
    assert len(low) / count == pytest.approx(WEIGHTS[0], abs=0.035 if random else 0.012)
    for part, centre in ((low, CENTRES[0]), (drawn[drawn >= 0], CENTRES[1])):
        assert part.mean() == pytest.approx(centre, abs=0.02)
        assert part.std() == pytest.approx(WIDTH, rel=0.15)


# --- preconditioning


LEVELS = st.floats(-6, 5)


@given(LEVELS, st.sampled_from(sorted(PREDICTIONS)), st.sampled_from(sorted(KINDS)), st.floats(0.1, 2))
@settings(deadline=None, max_examples=200)
def test_the_target_is_what_gives_x0_back(log_ratio, prediction, kind, sigma_data):
    ratio = math.exp(log_ratio)
    level = Level(1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio), log_ratio)
    coordinates = Coordinates(kind, sigma_data)
    x0, noise = 0.7, -1.3
    x = level.signal * x0 + level.noise * noise
    from_x0, from_noise = target(prediction, level, coordinates)
    told = preconditioning(prediction, level, coordinates)
    assert told.x0_from_x * x + told.x0_from_out * (from_x0 * x0 + from_noise * noise) == pytest.approx(x0, rel=1e-9)


@given(st.floats(0.002, 80), st.floats(0.1, 2))
def test_edms_table_is_the_papers(sigma, sigma_data):
    """Karras et al. 2022, table 1, of x = x_0 + σ n."""
    level = Level(1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma), math.log(sigma))
    told = preconditioning("edm", level, Coordinates("edm", sigma_data))
    scale = math.hypot(1, sigma)  # of x to scaled x
    assert told.x0_from_x / scale == pytest.approx(sigma_data**2 / (sigma**2 + sigma_data**2))
    assert told.x0_from_out == pytest.approx(sigma * sigma_data / math.hypot(sigma, sigma_data))
    assert told.input_scale / scale == pytest.approx(1 / math.hypot(sigma, sigma_data))
    assert told.time == pytest.approx(math.log(sigma) / 4)


@given(st.floats(0.001, 0.999))
def test_a_flows_table_is_the_papers(t):
    level = Level((1 - t) / math.hypot(t, 1 - t), t / math.hypot(t, 1 - t), math.log(t / (1 - t)))
    told = preconditioning("velocity", level, Coordinates("flow"))
    xt, v = 0.4, -0.9
    assert told.input_scale * xt / told.input_scale == pytest.approx(xt)
    x = xt / math.hypot(t, 1 - t) ** -1 / math.hypot(t, 1 - t) ** 2  # scaled
    assert told.input_scale * x == pytest.approx(xt)
    assert told.x0_from_x * x + told.x0_from_out * v == pytest.approx(xt - t * v)
    assert told.time == pytest.approx(1000 * t)


def test_the_network_of_ve_sees_x_itself_and_the_number_of_the_level():
    schedule = Schedule.of(PROCESSES["ve"])
    process = GaussianProcess(schedule, prediction="score", dtype=torch.float64)
    sigma = np.geomspace(0.01, 20.0, 300)
    t, x0, noise = torch.tensor([0, 100, 299]), torch.full((3, 2), 0.5).double(), torch.full((3, 2), -2.0).double()
    seen, told = process.told(process.q_sample(x0, t, noise), t)
    torch.testing.assert_close(seen, 0.5 - 2.0 * torch.from_numpy(sigma)[t][:, None].expand(3, 2))
    assert told.tolist() == [0, 100, 299]
    assert process.target(x0, t, noise).tolist() == [[2.0, 2.0]] * 3


def test_a_network_of_ve_can_be_told_sigma():
    """In training at the same levels, and in sampling at any."""
    schedule = Schedule.of({**PROCESSES["ve"], "time": "sigma"})
    process, t = GaussianProcess(schedule, prediction="score", dtype=torch.float64), torch.tensor([0, 100, 299])
    _, told = process.told(torch.zeros(3, 2).double(), t)
    np.testing.assert_allclose(told, np.geomspace(0.01, 20.0, 300)[t], rtol=1e-9)
    assert schedule.coordinates.distribution is None
    np.testing.assert_allclose(schedule.visited(7, "native").timesteps, np.geomspace(0.01, 20.0, 7), rtol=1e-9)


def test_ddpms_network_sees_what_it_always_saw():
    process = GaussianProcess(Schedule.named("linear", 10))
    x, t = torch.randn(2, 3), torch.tensor([1, 2])
    seen, told = process.told(x, t)
    assert seen is x
    assert told is t


@pytest.mark.parametrize(("name", "prediction"), [("edm", "edm"), ("flow", "velocity"), ("ve", "score")])
def test_the_exact_network_has_the_least_loss_in_training(name, prediction):
    """Its loss is the variance of the target that x leaves, at every t; any change of it makes it larger."""
    schedule = Schedule.of(PROCESSES[name])
    process = GaussianProcess(schedule, prediction=prediction, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x0 = MEAN + STD * torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
    spread = schedule.coordinates.distribution
    t = torch.full((20_000,), 150) if spread is None else torch.full((20_000,), spread[0] + 0.5).double()
    exact = network_of(schedule, prediction, gaussian)

    def loss(error):
        losses = Objective().training_losses(process, lambda x, t: exact(x, t) + error, x0, t, noise)
        return float(losses.mean())

    assert loss(0.0) < loss(0.1)
    assert loss(0.0) < loss(-0.1)
    at = process.at(t[:1])
    ratio = float(at.noise / at.signal)
    left = STD**2 * ratio**2 / (STD**2 + ratio**2)  # Var[x_0 | x]
    assert loss(0.0) == pytest.approx(left / float(at.x0_from_out) ** 2, rel=0.05)


def test_training_draws_log_normal_sigma():
    spread = Coordinates.of({"kind": "edm", "timesteps": 1000}).distribution
    assert spread == (-1.2, 1.2)
    torch.manual_seed(0)
    t, weights = NormalTimesteps(*spread).draw(20_000, torch.device("cpu"))
    assert weights is None
    assert float(t.mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(t.std()) == pytest.approx(1.2, abs=0.03)
    # The same normal distribution makes t of a flow logit-normal.
    process = GaussianProcess(Schedule.of(PROCESSES["flow"]), prediction="velocity")
    logit = torch.tensor([-1.5, 0.0, 2.0])
    _, told = process.told(torch.zeros(3, 1), logit)
    torch.testing.assert_close(told, 1000 * torch.sigmoid(logit))


# --- levels


def test_ncsns_sigmas_and_technique_4_are_the_papers():
    """NCSNv2's table of CIFAR-10: σ_1 = 50, L = 232, ε = 6.2e-6 for 5 steps at each level."""
    schedule = Schedule.of({"kind": "ve", "timesteps": 232, "sigma_min": 0.01, "sigma_max": 50.0})
    sigma = np.exp(schedule.level.log_ratio)
    np.testing.assert_allclose(sigma, np.geomspace(0.01, 50, 232), rtol=1e-9)
    assert langevin_share(sigma[1] / sigma[0], 5) * 0.01**2 == pytest.approx(6.2e-6, rel=0.02)


def test_technique_2_is_near_the_papers():
    """NCSNv2 has γ = 1.0376 and 232 levels for CIFAR-10, at an overlap of about a half."""
    assert level_growth(3072) == pytest.approx(1.0376, abs=0.003)
    assert enough_levels(3072, 0.01, 50.0) == pytest.approx(232, rel=0.06)
    assert level_growth(2) == pytest.approx(2)  # in the plane any levels overlap
    assert level_growth(64) > level_growth(3072)


def test_langevin_is_ncsns_algorithm():
    """Algorithm 1 of Song & Ermon 2019 in x, and its denoising step, written out."""
    process = {"kind": "ve", "timesteps": 10, "sigma_min": 0.01, "sigma_max": 1.0}
    schedule = Schedule.of(process)
    options = {"sampler": "langevin", "steps": 31, "langevin_steps": 3, "langevin_epsilon": 2e-5}
    plan = sampling_plan(schedule, **options, prediction="score", variance="fixed_small", spacing="native", clip=False)
    word = lambda x, t: torch.tanh(x + 0.1 * t.to(x.dtype)[:, None])  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(4, 2, generator=generator, dtype=torch.float64) for _ in range(31)]
    given = iter(draws[1:])
    drawn = sample(word, plan, draws[0], lambda: next(given))
    sigmas = np.geomspace(0.01, 1, 10)
    x = draws[0] * math.hypot(1, sigmas[-1])
    left = iter(draws[1:])
    for number in reversed(range(10)):
        alpha = 2e-5 * (sigmas[number] / sigmas[0]) ** 2
        for _ in range(3):
            score = word(x, torch.full((4,), number)) / sigmas[number]
            x = x + alpha * score + math.sqrt(2 * alpha) * next(left)
    x = x + sigmas[0] ** 2 * word(x, torch.zeros(4)) / sigmas[0]
    torch.testing.assert_close(drawn, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("spacing", ["native", "karras", "exponential"])
@pytest.mark.parametrize("name", PROCESSES)
def test_a_spacing_visits_distinct_levels_from_the_least_to_the_most_noise(name, spacing):
    schedule = Schedule.of(PROCESSES[name])
    ratios = np.exp(schedule.level.log_ratio)
    for steps in (1, 2, 10, 100):
        visited = schedule.visited(steps, spacing)
        assert len(visited) == steps
        found = np.exp(visited.level.log_ratio)
        assert np.all(np.diff(found) > 0)
        most = ratios[np.isfinite(ratios)][-1] if spacing != "native" else ratios[-1]
        assert found[-1] == pytest.approx(most, rel=1e-6)
        if steps > 1:
            assert found[0] == pytest.approx(ratios[0], rel=1e-6)


def test_edms_levels_are_the_papers():
    sigma = np.exp(Schedule.of(PROCESSES["edm"]).visited(18, "native").level.log_ratio)
    step = np.arange(18) / 17
    expected = (80 ** (1 / 7) + step * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigma[::-1], expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("process", "sampling", "words"),
    [
        (
            "flow",
            {"sampler": "euler", "spacing": "native", "prediction": "epsilon"},
            "where no signal is left; the",
        ),
        ("flow", {"sampler": "langevin", "spacing": "native"}, "sampler langevin .* cannot begin where no signal"),
        ("flow", {"sampler": "euler_maruyama", "spacing": "trailing"}, "cannot begin where no signal"),
        (
            "vp",
            {"sampler": "heun", "churn": 5.0},
            "churn needs noise between the levels",
        ),
        ("ve", {"sampler": "langevin", "langevin_epsilon": 1.0}, "langevin_epsilon must be above 0 and at most"),
        ("ve", {"sampler": "ddim", "langevin_epsilon": 1.0}, "langevin_epsilon is used by the sampler langevin alone"),
        ("edm", {"sampler": "ddim", "churn": 1.0}, "churn is used by the sampler heun alone"),
        ("edm", {"sampler": "heun", "steps": 3000}, "steps must be in 1..1000"),
        ("other", {"sampler": "heun"}, "no process kind 'other'; there are: vp, ve, edm, flow"),
    ],
)
def test_plans_that_cannot_be(process, sampling, words):
    numbers = {
        "prediction": "v",
        "variance": "fixed_small",
        **PROCESSES.get(process, {"kind": "other", "timesteps": 9}),
    }
    numbers["prediction"] = sampling.pop("prediction", "v")
    with pytest.raises(ValueError, match=words):
        plan_for(numbers, {"sampler": "ddim", "steps": 20}, **sampling)


@given(
    st.sampled_from(sorted(PROCESSES)),
    st.sampled_from(sorted(SAMPLERS)),
    st.integers(1, 40),
    st.sampled_from(["native", "karras", "trailing", "quadratic"]),
)
@settings(deadline=None, max_examples=100)
def test_a_plan_has_as_many_rows_as_evaluations_asked_for(name, sampler, steps, spacing):
    assume(name != "flow" or spacing == "karras")  # some samplers cannot begin where no signal is left
    plan = sampling_plan(
        Schedule.of(PROCESSES[name]), sampler=sampler, steps=steps, prediction="v", variance="fixed_small",
        spacing=spacing,
    )  # fmt: skip
    assert len(plan) == plan.evaluations == steps
    assert np.isfinite(plan.table).all()
    assert plan.told.dtype == (np.int64 if name in ("vp", "ve") else np.float32)
    ends = {column: plan.column(column)[-1] for column in ("to_x0", "to_x", "to_noise")}
    assert ends == {"to_x0": pytest.approx(1), "to_x": pytest.approx(0, abs=1e-9), "to_noise": 0}
