"""The bound of a conditional model is that of its images under their own labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.config.evaluation import EvaluationConfig
from ddpm.config.model import VariantConfig
from ddpm.data.store import PreparedData
from ddpm.diffusion.likelihood import prior_terms, vlb_terms
from ddpm.diffusion.noise import ImageNoise
from ddpm.evaluation.distances import chosen
from ddpm.evaluation.likelihood import split_bounds
from ddpm.model import Model
from ddpm.model.card import DataFacts, ModelCard, TrainingFacts
from ddpm.model.network import build_network, columns_for

SEED, IMAGES = 5, 7


def conditional(data: PreparedData) -> Model:
    """Of random weights, also where a new network has zeros: so the labels matter."""
    config = VariantConfig.model_validate(
        {
            "network": {"width": 8, "multipliers": [1], "blocks": 1, "attention_resolutions": [], "groups": 4},
            "condition": {"label": {}},
            "process": {"timesteps": 6, "schedule": "cosine", "variance": "fixed_small"},
            "sampling": {"steps": 2},
        }
    )
    facts = DataFacts(name="digits", shape=data.manifest.shape, classes=data.manifest.classes)
    torch.manual_seed(0)
    network = build_network(config, facts.codec, columns=columns_for(config, facts, "here")).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    training = TrainingFacts(fingerprint="none")
    return Model(network, ModelCard(variant="told", config=config, data=facts, training=training, parameters=0))


@torch.inference_mode()
def by_hand(model: Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Image by image, each with the noise that is its own from T down to 1."""
    process, total = model.process(), 0.0
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        x0 = model.codec.encode(torch.from_numpy(image[None]))
        told, noise = {"label": torch.tensor([label])}, ImageNoise(SEED, 1, tuple(x0.shape[1:]), first=index)
        total += float(prior_terms(process, x0))
        for step in reversed(range(process.timesteps)):
            t = torch.tensor([step])
            xt = process.q_sample(x0, t, torch.from_numpy(noise.draw()))
            total += float(vlb_terms(process, model.network(xt, t, told), x0, xt, t, clip=True))
    return total / len(images)


@pytest.mark.parametrize("batch_size", [4, 500])
def test_the_bound_is_that_of_the_true_labels(project: Path, batch_size: int):
    data = PreparedData.open(project / "prepared")
    model = conditional(data)
    options = EvaluationConfig(nll_samples=IMAGES, nll_timesteps=None, batch_size=batch_size)
    bounds = split_bounds(model, data, options, seed=SEED)
    for name, bound in bounds.items():
        split = data.split(name)
        rows = np.sort(chosen(len(split), IMAGES, SEED))
        images, labels = split.rows(rows), split.labels[rows]
        assert bound.bits_per_dim == pytest.approx(by_hand(model, images, labels), rel=1e-5)
        assert abs(bound.bits_per_dim - by_hand(model, images, (labels + 1) % 10)) > 1e-3
