"""A part of the data is known: what the executors of a plan put back, and RePaint's way back into the noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_executors import denoiser

from ddpm.deploy import runtime
from ddpm.diffusion import sampling
from ddpm.diffusion.known import Known
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.plans import COLUMNS, SAMPLERS, plan_for, repaint_evaluations, sampling_plan
from ddpm.diffusion.schedules import Schedule

SCHEDULE = Schedule.named("linear", 200)
PLAIN = {"prediction": "epsilon", "variance": "fixed_small"}


def repainted(steps: int, resamples: int, jump: int, sampler: str = "ancestral", schedule: Schedule = SCHEDULE):
    options = {"sampler": sampler, "steps": steps, "resamples": resamples, "jump": jump, **PLAIN}
    return sampling_plan(schedule, inpainting="repaint", **options)


def back(plan) -> np.ndarray:
    return plan.column("x0_from_out") == 0


# --- the table


def test_the_papers_setting_takes_as_many_steps_as_its_code():
    """250 steps, r = 10, j = 10 (Lugmayr et al. 2022, §4.2): 4,570 in their code's list of times."""
    plan = repainted(250, 10, 10, schedule=Schedule.named("linear", 1000))
    assert (len(plan), back(plan).sum(), plan.evaluations) == (4570, 2160, 2410)
    assert repaint_evaluations(250, 10, 10) == 2410


@pytest.mark.parametrize("steps", [2, 3, 10, 11, 37])
@pytest.mark.parametrize("resamples", [1, 2, 5])
def test_the_evaluations_are_known_without_the_plan(steps, resamples):
    for jump in range(1, steps):
        assert repaint_evaluations(steps, resamples, jump) == repainted(steps, resamples, jump).evaluations


@pytest.mark.parametrize(("steps", "resamples", "jump"), [(20, 3, 5), (7, 4, 3), (12, 2, 1), (9, 2, 8)])
def test_the_way_goes_down_and_up_by_single_steps_and_ends_at_the_data(steps, resamples, jump):
    plan, noise = repainted(steps, resamples, jump), np.sqrt(1 - SCHEDULE.alphas_cumprod)
    ordinary = sampling_plan(SCHEDULE, sampler="ancestral", steps=steps, **PLAIN)
    place = {int(t): steps - row for row, t in enumerate(ordinary.timesteps)}  # steps to go from each timestep
    at, ups = steps, 0
    for t, is_back, known in zip(plan.timesteps.tolist(), back(plan), plan.known, strict=True):
        at, here = (at + 1, at + 1) if is_back else (at - 1, at)
        ups += is_back
        assert place[t] == here
        expected = noise[ordinary.timesteps[steps - at]] if at else 0.0  # what x has after the row
        np.testing.assert_allclose(known[1], expected, atol=1e-12)
        np.testing.assert_allclose((known**2).sum(), 1)
    assert at == 0
    assert ups == (resamples - 1) * jump * len(range(1, steps - jump + 1, jump))


def test_a_row_back_is_the_forward_process():
    """q(x_t | x_t') = N(√(ᾱ_t/ᾱ_t') x_t', 1 − ᾱ_t/ᾱ_t'), and nothing else."""
    plan = repainted(10, 3, 4)
    rows = plan.table[back(plan)]
    used = {name for name, column in zip(COLUMNS, rows.T, strict=True) if column.any()}
    assert used == {"to_x", "to_noise"}
    signal = plan.known[:, 0] ** 2
    ratio = (signal[1:] / signal[:-1])[back(plan)[1:]]
    np.testing.assert_allclose(plan.column("to_x")[back(plan)], np.sqrt(ratio))
    np.testing.assert_allclose(plan.column("to_noise")[back(plan)], np.sqrt(1 - ratio))


def test_once_is_the_ordinary_plan_with_the_known_part_drawn_anew():
    ordinary = sampling_plan(SCHEDULE, sampler="ddim", steps=10, **PLAIN)
    for plan in (repainted(10, 1, 3, "ddim"), repainted(10, 1, 10, "ddim")):
        np.testing.assert_array_equal(plan.table, ordinary.table)
        assert plan.known is not None
    assert ordinary.known is None


@pytest.mark.parametrize("jump", [10, 11, 1000])
def test_a_plan_that_would_repeat_no_step_is_refused(jump):
    with pytest.raises(
        ValueError, match=f"^inpainting repaint needs more steps than jump, found 10 steps and jump {jump}$"
    ):
        repainted(10, 2, jump)
    assert back(repainted(10, 2, 9)).sum() == 9


@pytest.mark.parametrize(
    "sampler", sorted(set(SAMPLERS) - {"ancestral", "ddim", "euler", "euler_ancestral", "euler_maruyama"})
)
def test_a_sampler_with_memory_cannot_go_back(sampler):
    with pytest.raises(ValueError, match="inpainting repaint needs a sampler without memory: use ancestral or ddim"):
        repainted(10, 2, 2, sampler)


PROCESS = {"schedule": "linear", "timesteps": 100, "prediction": "epsilon", "variance": "fixed_small"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inpainting": "paint"}, "no inpainting 'paint'; there are: replace, repaint"),
        ({"inpainting": "repaint", "resamples": 0}, r"resamples must be in 1\.\.100, found 0"),
        ({"inpainting": "repaint", "jump": 0}, r"jump must be in 1\.\.1000, found 0"),
        ({"resamples": 3}, "resamples is used by inpainting repaint alone"),
        ({"inpainting": "replace", "jump": 3}, "jump is used by inpainting repaint alone"),
    ],
)
def test_what_is_no_inpainting(options, words):
    with pytest.raises(ValueError, match=words):
        plan_for(PROCESS, {"sampler": "ancestral", "steps": 10}, **options)


# --- the executors

SHAPE = (3, 2, 4, 4)
X0 = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
MASK = np.random.default_rng(1).random((3, 1, 4, 4)) < 0.5
MASK[2] = False


def executed(plan, known: bool = True, learned: bool = False) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """What torch and numpy draw from the same noise, and the times that the network was asked at."""
    times: list[int] = []

    def asked(x, t):
        times.append(int(t[0]))
        return denoiser(torch, learned)(x, t)

    noise = ImageNoise(0, SHAPE[0], SHAPE[1:])
    part = Known(torch.from_numpy(X0), torch.from_numpy(MASK)) if known else None
    x = torch.from_numpy(noise.draw())
    by_torch = sampling.sample(asked, plan, x, lambda: torch.from_numpy(noise.draw()), part).numpy()
    noise = ImageNoise(0, SHAPE[0], SHAPE[1:])
    arrays = Known(X0, MASK) if known else None
    by_numpy = runtime.run(denoiser(np, learned), plan, noise.draw(), noise.draw, arrays)
    assert by_numpy.dtype == np.float32
    return by_torch, by_numpy, times


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_repaint_is_the_same_in_torch_and_numpy_and_spares_the_network(sampler, learned):
    options = {"sampler": sampler, "steps": 8, "resamples": 3, "jump": 2, "prediction": "epsilon"}
    options["variance"] = "learned_range" if learned else "fixed_small"
    plan = sampling_plan(SCHEDULE, inpainting="repaint", **options)
    by_torch, by_numpy, times = executed(plan, learned=learned)
    np.testing.assert_allclose(by_torch, by_numpy, atol=1e-5)
    assert times == plan.timesteps[~back(plan)].tolist()
    assert len(times) == plan.evaluations
    known = np.broadcast_to(MASK, SHAPE)
    np.testing.assert_array_equal(by_numpy[known], X0[known])
    assert np.abs(by_numpy - executed(plan, known=False, learned=learned)[1])[~known].max() > 0.01


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_replacing_ends_at_what_is_known_with_every_sampler(sampler):
    plan = sampling_plan(SCHEDULE, sampler=sampler, steps=9, **PLAIN)
    by_torch, by_numpy, _ = executed(plan)
    np.testing.assert_allclose(by_torch, by_numpy, atol=1e-5)
    known = np.broadcast_to(MASK, SHAPE)
    np.testing.assert_allclose(by_numpy[known], X0[known], atol=1e-6)
    without = executed(plan, known=False)[1]
    np.testing.assert_allclose(by_numpy[2], without[2], atol=1e-5, err_msg="of the last nothing is known")
    assert np.abs(by_numpy[:2] - without[:2]).max() > 0.01


# --- whether it draws from the conditional distribution


def correlated(rho: float, count: int, schedule: Schedule, plan, known: float) -> np.ndarray:
    """Samples of the second of two normal numbers with correlation ρ, of which the first is known, by the best
    denoiser that there is."""
    alpha_bar = schedule.alphas_cumprod
    cov = np.array([[1, rho], [rho, 1]])

    def denoise(x, t):
        """E ε given x_t: √(1−ᾱ) (ᾱ Σ + (1−ᾱ) I)⁻¹ x."""
        a = alpha_bar[int(t[0])]
        best = np.sqrt(1 - a) * np.linalg.inv(a * cov + (1 - a) * np.eye(2))
        return (x.reshape(-1, 2) @ best.T).reshape(x.shape).astype(np.float32)

    noise = ImageNoise(3, count, (1, 1, 2))
    part = Known(np.full((count, 1, 1, 2), known, np.float32), np.broadcast_to([True, False], (count, 1, 1, 2)))
    return runtime.run(denoise, plan, noise.draw(), noise.draw, part)[..., 1].ravel()


def test_going_back_brings_the_samples_to_the_conditional_distribution():
    """b given a is N(ρ a, 1 − ρ²): within 5 standard errors and 0.05 with resampling; without it the samples are far
    off, as they are by replacing."""
    schedule, rho, a, count = Schedule.named("cosine", 100), 0.95, 1.5, 400
    options = {"sampler": "ancestral", "steps": 100, "clip": False, **PLAIN}
    std = (1 - rho**2) ** 0.5

    def off(**inpainting) -> tuple[float, float]:
        drawn = correlated(rho, count, schedule, sampling_plan(schedule, **options, **inpainting), a)
        return abs(drawn.mean() - rho * a), abs(drawn.std() / std - 1)

    mean, spread = off(inpainting="repaint", resamples=10, jump=5)
    assert mean < 5 * std / count**0.5 + 0.05
    assert spread < 0.15
    for other in (off(inpainting="repaint", resamples=1), off(inpainting="replace")):
        assert other[0] > 0.25
        assert other[1] > 0.25
