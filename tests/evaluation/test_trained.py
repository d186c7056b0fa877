"""What an image costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.codecs.scale import ValueCodec
from ddpm.config.model import VariantConfig
from ddpm.evaluation.likelihood import gigaflops_per_image
from ddpm.model import Model
from ddpm.model.card import DataFacts, ModelCard, TrainingFacts
from ddpm.model.network import build_network


def model(steps: int, width: int = 32, layers: int = 3) -> Model:
    config = VariantConfig.model_validate(
        {
            "network": {"kind": "mlp", "width": width, "layers": layers},
            "process": {"variance": "fixed_small"},
            "sampling": {"steps": steps},
        }
    )
    kind = ValueCodec("points", (2,), (-1.0, -1.0), (1.0, 1.0))
    facts = DataFacts(name="dots", shape=(2,), classes=None, kind="points", low=(-1.0, -1.0), high=(1.0, 1.0))
    card = ModelCard(
        variant="dots", config=config, data=facts, training=TrainingFacts(fingerprint="none"), parameters=0
    )
    return Model(build_network(config, kind).eval(), card)


def test_the_cost_is_that_of_every_matrix_product_of_every_step():
    """A linear layer costs a multiplication and an addition a weight."""
    built = model(steps=7)
    weights = sum(parameter.numel() for parameter in built.network.parameters() if parameter.ndim == 2)
    assert gigaflops_per_image(built) == pytest.approx(7 * 2 * weights / 1e9)


class Attention(nn.Module):
    """Two points attend to each other: two products of 2×2 by 2×1."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        tokens = x[:, None, :, None]
        return F.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0, :, 0]


def test_attention_is_counted_whatever_the_device():
    built = replace(model(steps=3), network=Attention())
    assert gigaflops_per_image(built) == pytest.approx(3 * 2 * (2 * 1 * 2 + 2 * 2 * 1) / 1e9)


@pytest.mark.parametrize("kind", ["unet", "linear-attention"])
def test_every_network_can_be_counted(kind: str):
    network = {"kind": kind, "width": 8, "multipliers": [1, 2]}
    if kind == "unet":
        network |= {"groups": 4, "attention_resolutions": [4], "blocks": 1}
    config = VariantConfig.model_validate({"network": network, "sampling": {"steps": 2}})
    facts = DataFacts(name="dots", shape=(8, 8, 1), classes=None)
    card = ModelCard(
        variant="dots", config=config, data=facts, training=TrainingFacts(fingerprint="none"), parameters=0
    )
    built = Model(build_network(config, facts.codec).eval(), card)
    # Each weight of a convolution works on a pixel of the lowest level at least once.
    weights = sum(parameter.numel() for parameter in built.network.parameters() if parameter.ndim == 4)
    assert gigaflops_per_image(built) > 2 * 2 * weights / 1e9


def test_twice_the_steps_cost_twice_as_much():
    assert gigaflops_per_image(model(steps=20)) == 2 * gigaflops_per_image(model(steps=10))


def test_a_step_back_into_the_noise_evaluates_nothing():
    built = model(steps=1)
    plan = built.plan(sampler="ancestral", steps=4, inpainting="repaint", resamples=2, jump=2)
    assert gigaflops_per_image(built, plan) == pytest.approx(plan.evaluations * gigaflops_per_image(built))
    assert plan.evaluations < len(plan)
