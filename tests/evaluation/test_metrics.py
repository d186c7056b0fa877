"""The figures against other implementations, fed with the same features, and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from torch import Tensor, nn
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from ddpm.evaluation import metrics
from ddpm.evaluation.bootstrap import share_interval
from ddpm.evaluation.metrics import (
    class_accuracy,
    frechet_distance,
    frechet_distance_within,
    inception_score,
    kernel_distance,
    nearest,
    precision_recall,
)


def features(count: int, *, seed: int, dimensions: int = 16, shift: float = 0.0) -> Tensor:
    """Correlated, skewed, non-negative: as a network's last layer has them."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(99))
    return torch.relu(torch.randn(count, dimensions, generator=generator) @ mix + shift)


class Given(nn.Module):
    """What torchmetrics takes for a feature extractor: here its input has the features already."""

    def __init__(self, dimensions: int = 16) -> None:
        super().__init__()
        self.num_features = dimensions

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    return features(500, seed=0, shift=0.3), features(400, seed=1)


def test_fid_is_that_of_pytorch_fid(pair):
    a, b = (each.double().numpy() for each in pair)
    theirs = calculate_frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    assert frechet_distance(*pair) == pytest.approx(theirs, rel=1e-4)


def test_fid_is_that_of_torchmetrics(pair):
    theirs = FrechetInceptionDistance(feature=Given(), input_img_size=(16,)).set_dtype(torch.float64)
    theirs.update(pair[0].double(), real=False)
    theirs.update(pair[1].double(), real=True)
    assert frechet_distance(*pair) == pytest.approx(float(theirs.compute()), rel=1e-4)


def test_fid_with_fewer_images_than_features():
    """Singular covariances, as of 2,000 images in InceptionV3's 2,048 features."""
    a, b = features(20, seed=0, dimensions=64, shift=0.3), features(30, seed=1, dimensions=64)
    theirs = FrechetInceptionDistance(feature=Given(64), input_img_size=(64,)).set_dtype(torch.float64)
    theirs.update(a.double(), real=False)
    theirs.update(b.double(), real=True)
    assert frechet_distance(a, b) == pytest.approx(float(theirs.compute()), rel=1e-4)


def test_inception_score_is_that_of_torchmetrics(monkeypatch: pytest.MonkeyPatch):
    """Both shuffle before they split: given one order, and logits so many that its splits are as long."""
    logits = 3 * features(500, seed=2, dimensions=10)
    theirs = InceptionScore(feature=Given(10), splits=10)
    theirs.update(logits)
    order = np.random.RandomState(metrics.SHUFFLE_SEED).permutation(len(logits))
    monkeypatch.setattr(torch, "randperm", lambda count: torch.from_numpy(order))
    mean, _ = theirs.compute()
    assert inception_score(logits, 10)[0] == pytest.approx(float(mean), rel=1e-4)


def test_kid_is_that_of_torchmetrics():
    """Of one subset, which is all there is."""
    a, b = features(300, seed=0, shift=0.3), features(300, seed=1)
    theirs = KernelInceptionDistance(feature=Given(), subsets=2, subset_size=300)
    theirs.update(a, real=False)
    theirs.update(b, real=True)
    mean, _ = theirs.compute()
    assert kernel_distance(a, b)[0] == pytest.approx(float(mean), rel=1e-4)
    assert kernel_distance(a, b)[1] == pytest.approx(0, abs=1e-3)


def test_precision_and_recall_are_torch_fidelitys_and_their_definition(pair):
    generated, real = pair
    theirs = prc_features_to_metric(generated, real, verbose=False)
    ours = precision_recall(generated, real)
    assert ours == pytest.approx((theirs["precision"], theirs["recall"]), rel=1e-4)

    def covered(points: np.ndarray, centres: np.ndarray) -> float:
        radii = np.sort(np.linalg.norm(centres[:, None] - centres, axis=-1), axis=1)[:, 3]
        return float((np.linalg.norm(points[:, None] - centres, axis=-1) <= radii).any(1).mean())

    generated, real = (each.double().numpy() for each in pair)
    assert ours == pytest.approx((covered(generated, real), covered(real, generated)), rel=1e-4)


@pytest.mark.parametrize("each", [5, 40])
def test_fid_within_classes_is_the_mean_of_each_classs_own(each):
    """With fewer images a class than the 16 features and with more; a class of one image has none."""
    generated, reference = features(3 * each + 1, seed=0, shift=0.3), features(4 * each, seed=1)
    asked = torch.tensor([*[0, 1, 2] * each, 3])
    labels = torch.arange(4 * each) % 4
    own = [frechet_distance(generated[asked == k], reference[labels == k]) for k in range(3)]
    found = frechet_distance_within(generated, asked, reference, labels)
    assert found == pytest.approx(sum(own) / 3, rel=1e-3)
    assert frechet_distance_within(generated, torch.full_like(asked, 7), reference, labels) is None


def test_fid_within_classes_sees_classes_that_changed_places():
    """Which the FID of all together does not."""
    reference = torch.cat([features(200, seed=0), 9 + features(200, seed=1)])
    labels = torch.arange(400) // 200
    assert frechet_distance_within(reference, labels, reference, labels) == pytest.approx(0, abs=1e-6)
    assert frechet_distance_within(reference, 1 - labels, reference, labels) > 100


def test_class_accuracy_is_a_share_and_its_interval_holds_at_the_ends():
    logits = torch.eye(4)[[0, 1, 2, 3, 3]]
    assert class_accuracy(logits, torch.tensor([0, 1, 2, 3, 0])) == 0.8
    assert share_interval(1.0, 100) == (pytest.approx(0.963, abs=1e-3), pytest.approx(1.0))
    assert share_interval(0.5, 100) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))


def test_a_model_of_one_mode_is_precise_and_recalls_little():
    modes = features(400, seed=1)
    modes[::2] += 50
    precision, recall = precision_recall(features(300, seed=2), modes)
    assert precision > 0.9
    assert recall < 0.6


def test_the_nearest_are_found_and_a_copy_is_at_distance_zero():
    reference = 100 + features(1500, seed=1)  # far from the origin: squares that cancel
    points = torch.cat([reference[[7, 900]], 100 + features(1200, seed=3)])
    distances, positions = nearest(points, reference, 5)
    assert positions[:2, 0].tolist() == [7, 900]
    assert distances[:2, 0].tolist() == [0, 0]
    exact = np.linalg.norm(points.double().numpy()[:40, None] - reference.double().numpy(), axis=-1)
    np.testing.assert_allclose(distances[:40], np.sort(exact, axis=1)[:, :5], rtol=1e-4)
