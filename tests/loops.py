"""`train` with everything by keyword, as tests vary it."""

from __future__ import annotations

from dataclasses import fields

from torch import nn

from ddpm.codecs.scale import encode_pixels
from ddpm.conditioning.columns import Values
from ddpm.data.loader import TrainingData
from ddpm.diffusion.objectives import L_SIMPLE
from ddpm.diffusion.process import GaussianProcess
from ddpm.training.loop import train
from ddpm.training.options import Hooks, LossPoint, TrainingOptions
from ddpm.training.tasks import Denoise


def train_with(
    network: nn.Module,
    process: GaussianProcess,
    images,
    *,
    task=None,
    objective=L_SIMPLE,
    encode=encode_pixels,
    columns=None,
    horizontal_flip: bool = False,
    checkpoints=None,
    **given,
) -> list[LossPoint]:
    """Options and hooks are distinguished by their names."""
    hooks = {field.name: given.pop(field.name) for field in fields(Hooks) if field.name in given}
    data = TrainingData(images, encode, {name: Values(each) for name, each in (columns or {}).items()}, horizontal_flip)
    options = TrainingOptions(**given)
    return train(network, task or Denoise(process, objective), data, options, Hooks(**hooks), checkpoints=checkpoints)
