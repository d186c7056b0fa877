"""The low image of an upsampler as a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.conditioning.conditioner import Conditioner
from ddpm.conditioning.pictures import from_levels
from ddpm.nets.blocks import zero_initialised
from ddpm.nets.condition import Condition, Ports
from ddpm.nets.embeddings import timestep_embedding

LEVELS = 1000  # that a noise of 1 counts as, in the embedding of a timestep


class LowResolution(Conditioner):
    """The low image in the size of x, bilinear, as C maps (Nichol & Dhariwal 2021, appendix C; Dhariwal & Nichol 2021).

    With noise added to it, by which an upsampler learns not to trust what a first stage drew in each detail, the amount
    is a vector that the network is conditioned on (Ho et al. 2022; Saharia et al. 2022, "Imagen").
    """

    saved_as = "low"
    fills = frozenset({"maps", "vector"})

    @classmethod
    def needs(cls, columns: Sequence[Any], options: Mapping[str, Any]) -> Ports:
        return Ports(maps=columns[0].shape[2])

    def __init__(self, columns: Sequence[Any], width: int, options: Mapping[str, Any]) -> None:
        """
        Args:
            columns: as `pictures.low_columns` makes them.
            width: of the vector, a multiple of 8.
        """
        super().__init__()
        self._low, *self._noise = columns
        self._width = width // 4
        # Its last layer starts at zero, so that a network that was trained without begins as it was.
        layers = [nn.Linear(self._width, width), nn.SiLU(), zero_initialised(nn.Linear(width, width))]
        self.level = nn.Sequential(*layers) if self._noise else None

    def forward(self, given: Mapping[str, Tensor]) -> Condition:
        """`low` [N, h, w, C] uint8 → the port `maps`, [N, C, H, W]; with `low_noise` [N] and `low_gauss` [N, h, w, C]
        also `vector`."""
        low, vector = from_levels(given[self._low.name]), None
        if self.level is not None:
            std, gauss = (given[column.name] for column in self._noise)
            share = std.view(-1, 1, 1, 1)
            low = (1 - share**2).sqrt() * low + share * gauss.permute(0, 3, 1, 2)
            vector = self.level(timestep_embedding(LEVELS * std, self._width))
        return Condition(vector=vector, maps=F.interpolate(low, self._low.size, mode="bilinear", align_corners=False))
