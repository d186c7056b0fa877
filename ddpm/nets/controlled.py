"""ControlNet (Zhang et al. 2023): a trained network, steered by a picture through a trainable copy of its way down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.nets.blocks import CONVOLUTIONS, zero_initialised
from ddpm.nets.condition import NOTHING, Condition, HintPort, Network, Shapes, sums
from ddpm.nets.unet import Encoder


class HintEncoder(nn.Module):
    """A hint [N, K, *sides] → [N, C, *sides / shrink], 0 until it is trained (Zhang et al. 2023, §3.3, "E(·)").

    Each width has a convolution, and one that leads to the next width. As many of the latter as the hint has to be
    halved, from the first on, have stride 2.
    """

    def __init__(self, port: HintPort, out_channels: int, dims: int = 2) -> None:
        """
        Raises:
            ValueError: the hint cannot be shrunk so far by as many widths.
        """
        super().__init__()
        halvings = port.shrink.bit_length() - 1
        if port.shrink < 1 or port.shrink != 1 << halvings:
            raise ValueError(f"condition.control.shrink is {port.shrink}, expected a power of 2")
        if halvings >= len(port.widths):
            raise ValueError(
                f"condition.control.widths are {len(port.widths)}, expected at least {halvings + 1}: the hint is "
                f"{port.shrink} times as large as what the network sees, and each but the last halves it"
            )
        conv, first, last = CONVOLUTIONS[dims], port.widths[0], port.widths[-1]
        layers: list[nn.Module] = [conv(port.channels, first, 3, padding=1)]
        for number, (width, wider) in enumerate(zip(port.widths, port.widths[1:], strict=False)):
            stride = 2 if number < halvings else 1
            layers += [conv(width, width, 3, padding=1), conv(width, wider, 3, padding=1, stride=stride)]
        self.layers = nn.ModuleList(layers)
        self.out = zero_initialised(conv(last, out_channels, 3, padding=1))

    def forward(self, hint: Tensor) -> Tensor:
        """As of the class."""
        for layer in self.layers:
            hint = F.silu(layer(hint))
        return self.out(hint)


class Control(Encoder):
    """A copy of a U-Net's way down and bottom, whose outputs become residuals of that U-Net by convolutions of kernel 1
    that start at zero."""

    def __init__(self, shapes: Shapes, hint: HintPort, *, init: str = "torch", **options: Any) -> None:
        """
        Args:
            shapes, init, options: of the U-Net. `init` is of no use: the weights become the U-Net's, by `copy`.
            hint: what it is shown.

        Raises:
            ValueError: the numbers do not fit together; the message names the key.
        """
        super().__init__(shapes, **options)
        self.hint = HintEncoder(hint, self.stem.out_channels, shapes.dims)
        bottom = self._levels[-1][0]
        self.zero = nn.ModuleList([zero_initialised(self._style.conv(c, c, 1)) for c in [*self._skips, bottom]])

    def forward(self, x: Tensor, t: Tensor, c: Condition = NOTHING) -> tuple[Tensor, ...]:  # type: ignore[override]
        """The residuals of the U-Net's skips, from the first to the last, and of its bottom.

        Args:
            c: the U-Net's condition; of the hints this control's alone.
        """
        (hint,) = c.hints
        h, _, skips = self.encode(x, t, c, self.hint(hint))
        return tuple(zero(each) for zero, each in zip(self.zero, [*skips, h], strict=True))

    @torch.no_grad()
    def copy(self, base: nn.Module) -> None:
        """Take over the U-Net's weights, of all that it has in common with this."""
        own = self.state_dict()
        for name, tensor in base.state_dict().items():
            if name in own:
                own[name].copy_(tensor)


class Controlled(Network):
    """A frozen network and its controls, which add residuals to it. One that is not trained yet changes nothing."""

    def __init__(self, base: Network, controls: Sequence[Control]) -> None:
        """
        Args:
            base: takes residuals; its parameters get no gradients any more.
            controls: of the same architecture, one for each hint.
        """
        super().__init__()
        self.base = base.requires_grad_(False)
        self.controls = nn.ModuleList(controls)
        self.axes, self.vector_width = base.axes, base.vector_width  # type: ignore[misc]
        self.takes = base.takes | {"hints"}  # type: ignore[misc]

    def forward(self, x: Tensor, t: Tensor, c: Condition = NOTHING) -> Tensor:
        """The base's output; without hints the base's alone."""
        return self.base(x, t, self.with_residuals(c, self.residuals(x, t, c)))

    def residuals(self, x: Tensor, t: Tensor, c: Condition) -> tuple[Tensor, ...]:
        """What the controls add to the base, together; nothing without hints."""
        found: tuple[Tensor, ...] = ()
        if c.hints:
            for control, hint in zip(self.controls, c.hints, strict=True):
                own = control(x, t, c._replace(residuals=(), hints=(hint,), control=None))
                found = sums(found, _weighted(own, c.control))
        return found

    @staticmethod
    def with_residuals(c: Condition, residuals: tuple[Tensor, ...]) -> Condition:
        """The base's condition."""
        return c._replace(residuals=sums(c.residuals, residuals), hints=(), control=None)

    def copy_base(self) -> None:
        """Begin anew: each control becomes a copy of the base."""
        for control in self.controls:
            cast(Control, control).copy(self.base)

    def train(self, mode: bool = True) -> Self:
        """As of `nn.Module`; the base, which is not trained, stays as it is evaluated, without dropout."""
        super().train(mode)
        self.base.eval()
        return self


def _weighted(residuals: tuple[Tensor, ...], control: Tensor | None) -> tuple[Tensor, ...]:
    """Residuals times their weights: the last, of the bottom, has the weight itself.

    Args:
        control: as of `Condition`.
    """
    if control is None:
        return residuals
    weight, factor = (numbers.view(-1, *[1] * (residuals[0].ndim - 1)) for numbers in control.unbind(1))
    last = len(residuals) - 1
    return tuple(each * (weight * factor ** (last - number)) for number, each in enumerate(residuals))
