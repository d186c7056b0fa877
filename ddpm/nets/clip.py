"""CLIP: images and texts as unit vectors of one space, in which those that belong together point the same way (Radford
et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.nets.classifier import Classifier
from ddpm.nets.condition import Shapes
from ddpm.nets.text import TextEncoder

TEMPERATURE = 0.07  # at the start of training
MOST_SCALE = 100.0  # what 1/temperature is limited to (§2.5)


class ImageTower(Classifier):
    """(x [N, C, ...], t [N]) → [N, D]: the U-Net's way down with attention pooling, as in CLIP's ResNets (§2.4)."""

    def __init__(self, shapes: Shapes, *, embedding: int = 512, **options: Any) -> None:
        """
        Args:
            embedding: D.
            options: those of `Classifier`.

        Raises:
            ValueError: the numbers do not fit together; the message names the key.
        """
        super().__init__(shapes._replace(out_channels=embedding), **options)


class TextTower(nn.Module):
    """ids [N, L] → [N, D]: a projection of the encoder's output at the last position of the text."""

    def __init__(self, encoder: TextEncoder, padding: int, embedding: int) -> None:
        """
        Args:
            padding: the id of positions that are not of the text.
            embedding: D.
        """
        super().__init__()
        self.encoder, self.padding = encoder, padding
        width = encoder.tokens.embedding_dim
        self.projection = nn.Linear(width, embedding, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """[N, L] int64 → [N, D]."""
        there = ids != self.padding
        rows = torch.arange(ids.shape[0], device=ids.device)  # len would fix the batch in ONNX
        return self.projection(self.encoder(ids, there)[rows, self.encoder.last(there)])


class CLIP(nn.Module):
    """An image tower and a text tower of one space, with the scale of their dot products.

    Attributes:
        answers: the caption's column, as of `conditioning.network.answered_by`.
    """

    def __init__(self, image: nn.Module, text: TextTower, answers: Sequence[Any] = ()) -> None:
        super().__init__()
        self.image, self.text, self.answers = image, text, tuple(answers)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))

    @property
    def scale(self) -> Tensor:
        """exp of a learned number: 1/temperature."""
        return self.log_scale.exp()

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Set a scale above 100 back to 100, before a step of training. It still has a gradient there, and can fall."""
        self.log_scale.clamp_(max=math.log(MOST_SCALE))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Images [N, C, ...] as the network sees them, and timesteps [N] → unit vectors [N, D], float32."""
        return F.normalize(self.image(x, t).float(), dim=1)

    def texts(self, ids: Tensor) -> Tensor:
        """Tokens [N, L] int64 → unit vectors [N, D], float32."""
        return F.normalize(self.text(ids).float(), dim=1)
