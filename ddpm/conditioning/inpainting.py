"""The known part of an image as a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm.conditioning.conditioner import Conditioner
from ddpm.conditioning.pictures import from_levels
from ddpm.nets.condition import Condition, Ports


class Inpainting(Conditioner):
    """The image where it is known, 0 elsewhere, and the mask, as C + 1 maps (Nichol et al. 2022, GLIDE, §4.2)."""

    saved_as = "inpainting"
    fills = frozenset({"maps"})

    @classmethod
    def needs(cls, columns: Sequence[Any], options: Mapping[str, Any]) -> Ports:
        return Ports(maps=columns[0].shape[2] + 1)

    def __init__(self, columns: Sequence[Any], width: int, options: Mapping[str, Any]) -> None:
        """
        Args:
            columns: as `pictures.mask_columns` makes them.
        """
        super().__init__()
        self._image, self._mask = columns

    def forward(self, given: Mapping[str, Tensor]) -> Condition:
        """`image` [N, H, W, C] uint8 and `mask` [N, H, W] bool → the port `maps`, [N, C + 1, H, W]."""
        known = given[self._mask.name].unsqueeze(1).float()
        return Condition(maps=torch.cat([from_levels(given[self._image.name]) * known, known], dim=1))
