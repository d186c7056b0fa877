"""The hints of a ControlNet as a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm.conditioning.conditioner import Conditioner
from ddpm.nets.condition import NOTHING, Condition, HintPort, Ports


class Control(Conditioner):
    """Hints as what controls are shown, and the weight of what the control adds. It has no weights of its own: the
    control is a part of the network (`nets.controlled`)."""

    saved_as = "control"
    fills = frozenset({"hints"})

    @classmethod
    def needs(cls, columns: Sequence[Any], options: Mapping[str, Any]) -> Ports:
        widths, shrink = (options.get(name, HintPort._field_defaults[name]) for name in ("widths", "shrink"))
        return Ports(hints=tuple(HintPort(hint.channels, tuple(widths), shrink) for hint in columns[:-1]))

    def __init__(self, columns: Sequence[Any], width: int, options: Mapping[str, Any]) -> None:
        """
        Args:
            columns: as `hints.control_columns` makes them.
        """
        super().__init__()
        *self._hints, self._weights = columns

    def forward(self, given: Mapping[str, Tensor]) -> Condition:
        """`control` [N, *shape] → `hints` [N, K, H, W]; with `control_weights` [N, 3] also `control`. Nothing, where no
        hint is given: the network then is the one that is controlled."""
        if self._hints[0].name not in given:
            return NOTHING
        weights = given.get(self._weights.name)
        hints = tuple(hint.as_maps(given[hint.name]) for hint in self._hints)
        return Condition(
            hints=hints, control=None if weights is None else torch.stack([weights[:, 0], weights[:, 2]], 1)
        )
