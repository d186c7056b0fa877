"""What a network is conditioned on, and what all networks have in common."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Condition(NamedTuple):
    """What conditions one evaluation of a network. All of it enters by one of four ports; None: nothing enters there.

    Attributes:
        vector: [N, E], added to the embedding of the timestep.
        tokens: [N, L, D], which every attention attends to.
        mask: [N, L] bool, which of the tokens are there; None: all of them.
        maps: [N, K, *sides], more channels of x.
        residuals: added to each of the U-Net's skips, from the first to the last, and to its bottom.
        hints: what each of the controls of a `controlled.Controlled` is shown, [N, K, *sides]; without them it is its
            base. They enter no U-Net: a control makes residuals of them.
        control: [N, 2], the weight of what the controls add, and the factor by which that of each residual is smaller
            than the next one's; None: both 1.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    maps: Tensor | None = None
    residuals: tuple[Tensor, ...] = ()
    hints: tuple[Tensor, ...] = ()
    control: Tensor | None = None


class HintPort(NamedTuple):
    """What a control is shown, and the encoder that makes it as large as the first level of the U-Net.

    Attributes:
        channels: K of the hint.
        widths: channels of the encoder's layers; Stable Diffusion's: 16, 32, 96, 256.
        shrink: sides of the hint / sides of x, a power of 2: 1 for pixels, 8 for Stable Diffusion's latents.
    """

    channels: int
    widths: tuple[int, ...] = (16, 32)
    shrink: int = 1


class Ports(NamedTuple):
    """How wide the ports of a network have to be for its condition; 0: it does not need that one.

    Attributes:
        tokens: D of the tokens.
        maps: K, how many there are.
        hints: of each control.
        length: L of the tokens, of which the prior has a learned position each.
    """

    tokens: int = 0
    maps: int = 0
    hints: tuple[HintPort, ...] = ()
    length: int = 0


class Shapes(NamedTuple):
    """What a network is built for.

    Attributes:
        x: of a datum, (C, *sides), all sides equal; (C,) for points.
        out_channels: of the output; None: the network's default, for most the C of x.
        ports: how wide they are.
    """

    x: tuple[int, ...]
    out_channels: int | None = None
    ports: Ports = Ports()

    @property
    def channels(self) -> int:
        """Of x; for points, their coordinates."""
        return self.x[0]

    @property
    def side(self) -> int:
        """The side of an image, the length of a sequence; points have none."""
        return self.x[1]

    @property
    def dims(self) -> int:
        """Axes beside the channels: 2 for images, 1 for sequences, 0 for points."""
        return len(self.x) - 1


NOTHING = Condition()


def merged(conditions: Sequence[Condition]) -> Condition:
    """Several conditions as one: vectors and residuals are added, the others stand one after the other."""
    return reduce(_both, conditions, NOTHING)


def _both(one: Condition, other: Condition) -> Condition:
    return Condition(
        vector=other.vector if one.vector is None else embedded(one.vector, other),
        **_tokens_of(one, other),
        maps=_beside(one.maps, other.maps),
        residuals=sums(one.residuals, other.residuals),
        hints=one.hints + other.hints,
        control=other.control if one.control is None else one.control,
    )


def _tokens_of(one: Condition, other: Condition) -> dict[str, Tensor | None]:
    """The tokens of both, and the mask, which is needed only if one of them has one."""
    mask = None
    if one.mask is not None or other.mask is not None:
        mask = _beside(*(_mask_of(each) for each in (one, other)))
    return {"tokens": _beside(one.tokens, other.tokens), "mask": mask}


def _mask_of(c: Condition) -> Tensor | None:
    if c.mask is not None or c.tokens is None:
        return c.mask
    return c.tokens.new_ones(c.tokens.shape[:2], dtype=torch.bool)


def sums(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Residuals of both; an empty tuple adds nothing."""
    if not one or not other:
        return one or other
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _beside(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Both along axis 1, or the one that is there."""
    if one is None or other is None:
        return other if one is None else one
    return torch.cat([one, other], dim=1)


class Network(nn.Module):
    """A map from (x [N, C, ...], t [N], condition) to an output shaped like x, or with more channels if asked to.

    Attributes:
        axes: numbers of axes of a datum, beside its channels, that the network can be built for.
        takes: the ports of a `Condition` that it can be built with.
        vector_width: E of the port `vector`.
    """

    axes: ClassVar[tuple[int, ...]]
    takes: ClassVar[frozenset[str]] = frozenset()
    vector_width: int = 0

    def forward(self, x: Tensor, t: Tensor, c: Condition = NOTHING) -> Tensor:
        """One evaluation."""
        raise NotImplementedError


def embedded(time: Tensor, c: Condition) -> Tensor:
    """The embedding of the timestep [N, E] with what comes in by the port `vector`."""
    return time if c.vector is None else time + c.vector
