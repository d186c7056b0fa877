"""What an image costs."""

from __future__ import annotations

import pytest

from ddpm.config import MLPConfig, VariantConfig
from ddpm.data.kinds import ValueKind
from ddpm.evaluation.trained import gigaflops_per_image
from ddpm.model import DataFacts, Model, ModelCard, TrainingFacts, build_network


def model(steps: int, width: int = 32, layers: int = 3) -> Model:
    config = VariantConfig.model_validate(
        {
            "network": {"kind": "mlp", "width": width, "layers": layers},
            "process": {"variance": "fixed_small"},
            "sampling": {"steps": steps},
        }
    )
    kind = ValueKind("points", (2,), (-1.0, -1.0), (1.0, 1.0))
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
    assert isinstance(built.card.config.network, MLPConfig)


def test_twice_the_steps_cost_twice_as_much():
    assert gigaflops_per_image(model(steps=20)) == 2 * gigaflops_per_image(model(steps=10))
