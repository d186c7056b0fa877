"""The models of `bench.unclip`, and what their training costs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from bench.ablation import changed
from ddpm.compute.device import pick_device
from ddpm.config.params import Params
from ddpm.config.training import TrainingConfig
from ddpm.data.store import PreparedData
from ddpm.drawer.cascade import Cascade
from ddpm.errors import UserError
from ddpm.layout import MODELS, PREPARED
from ddpm.model import Model
from ddpm.model.network import codec_of, columns_for
from ddpm.nets.clip import CLIP
from ddpm.stages.compose import open_trained
from ddpm.stages.memory import without_memory
from ddpm.stages.train import data_facts, train_variant
from ddpm.training.cost import training_flops
from flows.demo_unclip import LOW_NOISE, UPSAMPLER

CAPTIONS = "text-8"  # draws of captions, as large as the decoder draws of embeddings
ALONE = "alone"  # the cascade of that model and the upsampler of the other one


def train_alone(params: Params, root: Path, teraflops: float) -> Cascade:
    """The model of captions with the upsampler. It is trained, if it is not there, in as many steps as take so many
    operations.

    Raises:
        UserError: it is there, and was trained with more or fewer of them.
    """
    if not (root / MODELS / CAPTIONS).is_dir():
        preset = params.variant(CAPTIONS)
        steps = round(teraflops * 1e12 / (_operations(params, CAPTIONS, root) * preset.training.batch_size))
        models = {**params.models, CAPTIONS: changed(preset, {"training": {"steps": steps}})}
        train_variant(params.model_copy(update={"models": models}), CAPTIONS, root=root)
    base, upsampler = (open_trained(params, name, pick_device(), root=root) for name in (CAPTIONS, UPSAMPLER))
    found = training_teraflops(cast(Model, base))
    if abs(found - teraflops) > training_teraflops_a_step(cast(Model, base)):
        raise UserError(
            f"{MODELS / CAPTIONS} was trained with {found:.1f} TFLOP, expected {teraflops:.1f} as of the prior and the "
            "decoder together: remove its directory, and it is trained again"
        )
    return Cascade.of(base, upsampler, name=ALONE, low_noise=LOW_NOISE)


def _operations(params: Params, name: str, root: Path) -> int:
    """Of an image's forward and backward pass of a model that is not trained yet."""
    config, data = params.variant(name), PreparedData.open(root / PREPARED)
    codec = codec_of(config, data.codec, name)
    columns = columns_for(config, data_facts(data, config, name, root), name)
    return training_flops(without_memory(config, codec, columns), codec.network_shape)


def training_teraflops(model: Model) -> float:
    """10¹² operations of the training of a model, as `ddpm.training.cost` counts them."""
    return training_teraflops_a_step(model) * training_of(model).steps


def training_teraflops_a_step(model: Model) -> float:
    """Of a step of the training."""
    network = Contrasted(model.network) if isinstance(model.network, CLIP) else model.network
    return training_flops(network, model.codec.network_shape) * training_of(model).batch_size / 1e12


def training_facts(models: Iterable[Model]) -> dict[str, dict[str, float]]:
    """What the training of each model took, by its name, as JSON."""
    return {
        model.variant: {
            "steps": training_of(model).steps,
            "batch_size": training_of(model).batch_size,
            "teraflops": round(training_teraflops(model), 3),
        }
        for model in models
    }


def training_of(model: Model) -> TrainingConfig:
    """How a model of the project was trained.

    Raises:
        AssertionError: it was imported.
    """
    training = model.card.config.training
    assert training is not None
    return training


class Contrasted(nn.Module):
    """Both towers of a CLIP, called as a network is."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip
        (self.length,) = clip.answers[0].shape

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        ids = torch.zeros(len(x), self.length, dtype=torch.int64, device=x.device)
        return self.clip(x, t) * self.clip.texts(ids)
