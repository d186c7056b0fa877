"""What the studies of models that draw from captions share: settings, what an image costs, and the ranks of the asked
pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.claims import Estimate
from bench.judge import Judge
from ddpm.conditioning.columns import PromptColumn
from ddpm.drawer import Drawer
from ddpm.evaluation.extractor import Features
from ddpm.evaluation.likelihood import gigaflops_per_image
from ddpm.evaluation.retrieval import PLACES, retrieval
from ddpm.model import Model


class Setting(NamedTuple):
    """A model with a plan (overrides of its own)."""

    model: str
    plan: Mapping[str, Any]

    @property
    def key(self) -> str:
        return ", ".join([f"`{self.model}`", *(f"{name} {value}" for name, value in self.plan.items())])


def prompts(drawer: Drawer) -> PromptColumn | None:
    """The captions that a model is asked for; None: it is not."""
    return next((column for column in drawer.columns if isinstance(column, PromptColumn)), None)


def cost(drawer: Drawer, plan: Mapping[str, Any]) -> float:
    """10⁹ operations of an image of all links."""
    plans = drawer.plans(drawer.plan(**plan))
    models = {name: cast(Model, drawer.links[name]) for name in plans}
    return sum(gigaflops_per_image(model, plans[name]) * model.candidates for name, model in models.items())


def ranks(
    judge: Judge,
    column: PromptColumn,
    asked: NDArray[np.int64],
    images: NDArray[np.uint8],
    features: Features,
) -> dict[str, Tensor]:
    """The place of the asked picture among all real ones, by the space in which they are compared, [N].

    Args:
        column: of the model that drew.
        asked: the tokens of each sample's caption, [N, L].
        images: the samples, [N, H, W, C].
        features: of these.
    """
    validation = judge.data.split("validation")
    real = torch.cat([judge.real.features, judge.features(validation, len(validation)).features])
    found = retrieval(column.tokenizer, asked, judge.data, real)
    found.add(images, features.features)
    return found.ranks


def hits(ranks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whether the asked picture is the nearest one, or among the nearest five, [N]: their means are R@1 and R@5."""
    return {f"retrieval_{place}_{space}": (own <= place).double() for space, own in ranks.items() for place in PLACES}


def means(values: Mapping[str, Tensor], kept: Tensor) -> dict[str, float]:
    """The means of some samples' values [N]."""
    return {name: float(own[kept].mean()) for name, own in values.items()}


def said(figures: Mapping[str, Estimate]) -> str:
    """Figures in a line."""
    return ", ".join(f"{name} {figure.value:.3f} ± {figure.error:.3f}" for name, figure in figures.items())


def rows(table: Mapping[str, Mapping[str, Estimate]], costs: Mapping[str, float]) -> list[dict[str, Any]]:
    """A table by the names of its settings, as JSON has it."""
    return [
        {
            "setting": name,
            "gflops_per_image": round(costs[name], 3),
            "figures": {figure: value.as_dict() for figure, value in figures.items()},
        }
        for name, figures in table.items()
    ]
