"""The intervals: what a resample's figure is, and that they hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddpm.evaluation import bootstrap
from ddpm.evaluation.bootstrap import frechet_deviation, interval, score_deviation, wasserstein_deviation
from ddpm.evaluation.distances import wasserstein
from ddpm.evaluation.metrics import frechet_distance, inception_score


def normal(count: int, *, seed: int, dimensions: int = 4, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def given_resamples(monkeypatch: pytest.MonkeyPatch, rows: list[np.ndarray]) -> None:
    monkeypatch.setattr(
        bootstrap,
        "_weights",
        lambda count, resamples, seed: (torch.from_numpy(np.bincount(r, minlength=count)).double() for r in rows),
    )


@pytest.mark.parametrize("dimensions", [4, 70])
def test_a_resamples_fid_is_the_fid_of_the_repeated_samples(monkeypatch: pytest.MonkeyPatch, dimensions: int):
    """Also where there are more features than samples."""
    a, b = normal(50, seed=0, dimensions=dimensions, scale=2), 3 + normal(60, seed=1, dimensions=dimensions)
    rows = [np.random.RandomState(seed).randint(0, 50, 50) for seed in range(3)]
    given_resamples(monkeypatch, rows)
    expected = np.std([frechet_distance(a[r], b) for r in rows], ddof=1)
    assert frechet_deviation(a, b, resamples=3, seed=0) == pytest.approx(expected, rel=1e-6)


def test_a_resamples_score_is_the_score_of_the_repeated_samples(monkeypatch: pytest.MonkeyPatch):
    logits = normal(50, seed=0, scale=3)
    rows = [np.random.RandomState(seed).randint(0, 50, 50) for seed in range(3)]
    given_resamples(monkeypatch, rows)
    order = np.random.RandomState(bootstrap.SHUFFLE_SEED).permutation(50)
    expected = np.std([inception_score(logits[order][r], 1)[0] for r in rows], ddof=1)
    assert score_deviation(logits, 1, resamples=3, seed=0) == pytest.approx(expected, rel=1e-6)


def test_an_interval_of_fid_holds_the_mean_of_many_runs():
    """95 % of the time; and its width tells how much runs differ."""
    reference = normal(1000, seed=0)
    runs = [normal(200, seed=seed, scale=1.3) for seed in range(1, 121)]
    figures = [frechet_distance(run, reference) for run in runs]
    deviations = [frechet_deviation(run, reference, resamples=60, seed=0) for run in runs]
    assert np.mean(deviations) == pytest.approx(np.std(figures), rel=0.25)
    intervals = [interval(*pair) for pair in zip(figures, deviations, strict=True)]
    assert 0.88 <= np.mean([low <= np.mean(figures) <= high for low, high in intervals]) <= 0.99


def test_the_deviation_of_the_inception_score_is_that_of_many_runs():
    runs = [normal(300, seed=seed, dimensions=10, scale=3) for seed in range(60)]
    found = np.mean([score_deviation(run, 5, resamples=60, seed=0) for run in runs[:10]])
    assert found == pytest.approx(np.std([inception_score(run, 5)[0] for run in runs]), rel=0.35)


def test_the_deviation_of_the_wasserstein_distance_is_that_of_many_runs():
    reference = normal(600, seed=0, dimensions=2).double().numpy()
    runs = [normal(600, seed=seed, dimensions=2, scale=1.3).double().numpy() for seed in range(1, 21)]
    found = np.mean([wasserstein_deviation(run, reference, resamples=40, seed=0) for run in runs[:4]])
    assert found == pytest.approx(np.std([wasserstein(run, reference) for run in runs]), rel=0.5)


def test_one_seed_gives_one_interval():
    a, b = normal(100, seed=0), normal(100, seed=1)
    assert frechet_deviation(a, b, resamples=10, seed=5) == frechet_deviation(a, b, resamples=10, seed=5)
    assert frechet_deviation(a, b, resamples=10, seed=5) != frechet_deviation(a, b, resamples=10, seed=6)


def test_a_figure_that_cannot_be_negative_has_no_negative_end():
    assert interval(1.0, 10.0)[0] == 0
