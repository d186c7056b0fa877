import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm.diffusion.schedules import SCHEDULES, SPACINGS, Schedule, spaced_timesteps

names = st.sampled_from(sorted(SCHEDULES))
spacings = st.sampled_from(sorted(SPACINGS))


def test_linear_is_the_papers():
    betas = Schedule.named("linear", 1000).betas
    assert betas[0] == pytest.approx(1e-4, abs=1e-15)
    assert betas[-1] == pytest.approx(0.02, abs=1e-15)
    assert np.ptp(np.diff(betas)) < 1e-15


def test_scaled_linear_is_linear_in_its_root():
    root = np.sqrt(Schedule.named("scaled_linear", 1000).betas)
    assert root[0] ** 2 == pytest.approx(0.00085)
    assert root[-1] ** 2 == pytest.approx(0.012)
    assert np.ptp(np.diff(root)) < 1e-15


def test_cosine_follows_its_closed_form_until_the_clip():
    schedule = Schedule.named("cosine", 1000)
    t = np.arange(1, 1001) / 1000
    closed = (np.cos((t + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2
    unclipped = schedule.betas < 0.999
    np.testing.assert_allclose(schedule.alphas_cumprod[unclipped], closed[unclipped], rtol=1e-10)


@given(names, st.integers(1, 2000))
def test_signal_only_falls(name, timesteps):
    schedule = Schedule.named(name, timesteps)
    assert len(schedule) == timesteps
    assert np.all(np.diff(schedule.alphas_cumprod) < 0)
    assert np.all((schedule.alphas_cumprod > 0) & (schedule.alphas_cumprod < 1))
    assert schedule.posterior_variance[0] == 0
    assert np.all(schedule.posterior_variance <= schedule.betas)
    assert np.all(np.isfinite(schedule.posterior_log_variance_clipped))


@given(names, st.integers(2, 300), st.data())
def test_posterior_agrees_with_bayes(name, timesteps, data):
    """The Gaussian product q(x_t | x_{t-1}) q(x_{t-1} | x_0), worked out by precisions."""
    schedule = Schedule.named(name, timesteps)
    t = data.draw(st.integers(1, timesteps - 1))
    beta, before = schedule.betas[t], schedule.alphas_cumprod[t - 1]
    precision = (1 - beta) / beta + 1 / (1 - before)
    assert schedule.posterior_variance[t] == pytest.approx(1 / precision, rel=1e-8)
    assert schedule.posterior_mean_coef_xt[t] == pytest.approx(np.sqrt(1 - beta) / beta / precision, rel=1e-8)
    assert schedule.posterior_mean_coef_x0[t] == pytest.approx(np.sqrt(before) / (1 - before) / precision, rel=1e-8)


@given(names, spacings, st.integers(1, 1000), st.data())
def test_respacing_keeps_the_marginals(name, spacing, timesteps, data):
    schedule = Schedule.named(name, timesteps)
    kept = spaced_timesteps(timesteps, data.draw(st.integers(1, timesteps)), spacing)
    respaced = schedule.respaced(kept)
    np.testing.assert_allclose(respaced.alphas_cumprod, schedule.alphas_cumprod[kept], rtol=1e-8, atol=1e-15)
    np.testing.assert_array_equal(respaced.timesteps, kept)


@given(spacings, st.integers(1, 4000), st.data())
def test_spacings_give_distinct_rows_in_order(spacing, total, data):
    steps = data.draw(st.integers(1, total))
    kept = spaced_timesteps(total, steps, spacing)
    assert len(kept) == steps
    assert np.all(np.diff(kept) > 0)
    assert kept[0] >= 0
    assert kept[-1] < total


@given(spacings, st.integers(1, 1000))
def test_all_steps_are_all_steps(spacing, total):
    np.testing.assert_array_equal(spaced_timesteps(total, total, spacing), np.arange(total))


def test_the_strides_by_name():
    assert spaced_timesteps(1000, 4, "leading").tolist() == [0, 250, 500, 750]
    assert spaced_timesteps(1000, 4, "trailing").tolist() == [249, 499, 749, 999]
    assert spaced_timesteps(1000, 4, "linspace").tolist() == [0, 333, 666, 999]
    assert spaced_timesteps(1000, 3, "quadratic").tolist() == [0, 200, 800]


@given(st.integers(2, 4000), st.data())
def test_quadratic_strides_are_equal_in_the_square_root(total, data):
    """Few enough of them to fall on distinct rows: the first stride is the shortest."""
    end = np.sqrt(0.8 * total)
    steps = data.draw(st.integers(2, 1 + int(end)))
    np.testing.assert_array_equal(spaced_timesteps(total, steps, "quadratic"), np.linspace(0, end, steps) ** 2 // 1)


@pytest.mark.parametrize(
    ("spacing", "visited"), [("trailing", 999), ("linspace", 999), ("quadratic", 800), ("leading", 0), ("even", 0)]
)
def test_a_single_step_is_the_one_with_the_most_noise(spacing, visited):
    """But of leading strides, which have no end but t = 0, as DDIM's code and diffusers have it, and of even ones."""
    assert spaced_timesteps(1000, 1, spacing).tolist() == [visited]


@pytest.mark.parametrize(
    ("total", "steps", "spacing", "words"),
    [
        (10, 11, "leading", r"1\.\.10.*found 11"),
        (10, 0, "leading", "found 0"),
        (10, 5, "random", "no spacing 'random'"),
        (10, 5, "2,-3", "no spacing '2,-3'"),
        (10, 5, "2,4", "spacing 2,4 has 6 steps, but steps is 5"),
        (10, 9, "6,3", "a section of 5 timesteps cannot have 6 steps"),
    ],
)
def test_impossible_spacings(total, steps, spacing, words):
    with pytest.raises(ValueError, match=words):
        spaced_timesteps(total, steps, spacing)


def test_impossible_schedules():
    with pytest.raises(ValueError, match="no schedule 'quadratic'"):
        Schedule.named("quadratic", 10)
    with pytest.raises(ValueError, match="found 0"):
        Schedule.named("linear", 0)
    with pytest.raises(ValueError, match="inside"):
        Schedule(np.array([1.0, 0.5]), np.arange(2))


@pytest.mark.parametrize(
    ("total", "spacing", "visited"),
    [
        # What improved-diffusion's space_timesteps(T, spacing) gives.
        (1000, "1", [0]),
        (1000, "4", [0, 333, 666, 999]),
        (1000, "21", [*range(0, 500, 100), 499]),
        (300, "10,15,20", [0, 11, 22, 33, 44, 55, 66, 77, 88, 99, 100, 107]),
        (10, "2,1,3", [0, 3, 4, 7, 8, 9]),
        (10, "0,2", [5, 9]),
    ],
)
def test_even_strides_and_sections_are_improved_diffusions(total, spacing, visited):
    steps = sum(map(int, spacing.split(",")))
    kept = spaced_timesteps(total, steps, spacing).tolist()
    assert set(visited) <= set(kept)
    assert len(set(kept)) == steps
    if "," not in spacing:
        assert kept == spaced_timesteps(total, steps, "even").tolist()


def test_even_strides_differ_from_linspace_by_one_step():
    """As the published sum of strides and a product of them round differently: at T = 1000 for 278 of 999 counts."""
    differ = 0
    for steps in range(2, 1001):
        even, linspace = (spaced_timesteps(1000, steps, spacing) for spacing in ("even", "linspace"))
        assert np.abs(even - linspace).max() <= 1
        differ += not np.array_equal(even, linspace)
    assert differ == 278


def test_no_signal_may_be_left_at_the_end_and_only_there():
    """Zero terminal SNR: ᾱ_T = 0. Every table stays finite, and respacing keeps ᾱ."""
    betas = np.append(np.linspace(0.01, 0.5, 9), 1.0)
    schedule = Schedule.of({"schedule": "explicit", "timesteps": 10, "betas": betas.tolist()})
    assert schedule.alphas_cumprod[-1] == 0
    respaced = schedule.respaced(np.array([4, 9]))
    assert respaced.alphas_cumprod[-1] == pytest.approx(0, abs=1e-15)
    for table in ("posterior_variance", "posterior_mean_coef_x0", "posterior_mean_coef_xt"):
        assert np.isfinite(getattr(schedule, table)).all()
    with pytest.raises(ValueError, match="only the last may be 1"):
        Schedule.of({"timesteps": 2, "betas": [1.0, 0.5]})
    with pytest.raises(ValueError, match="2 numbers for 3 timesteps"):
        Schedule.of({"timesteps": 3, "betas": [0.1, 0.5]})
