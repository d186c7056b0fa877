"""The patch discriminator of an autoencoder's adversarial loss (Isola et al. 2017, §3.2.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GROUPS = 8
SLOPE = 0.2  # of LeakyReLU


class PatchDiscriminator(nn.Module):
    """Images [N, C, H, W] → a score of each patch, [N, 1, h, w]: high where it looks real.

    The norms are GroupNorms, not the paper's BatchNorms: an image's scores do not depend on the others of its batch,
    nor a training on how many images go through the network at once.
    """

    def __init__(self, channels: int, *, width: int = 64, layers: int = 3) -> None:
        """
        Args:
            width: channels of the first layer, a multiple of 8; they double with every further layer, up to 8 times.
            layers: that halve the side; each makes the patches that are judged larger.

        Raises:
            ValueError: a number does not fit; the message names the key.
        """
        super().__init__()
        if width % GROUPS:
            raise ValueError(f"discriminator_width is {width}, expected a multiple of {GROUPS}")
        parts: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        c = width
        for layer in range(1, layers + 1):
            wider, stride = width * min(2**layer, 8), 2 if layer < layers else 1
            parts += [
                nn.Conv2d(c, wider, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(GROUPS, wider),
                nn.LeakyReLU(SLOPE),
            ]
            c = wider
        self.layers = nn.Sequential(*parts, nn.Conv2d(c, 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub left the keyword out

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] in [−1, 1]."""
        return self.layers(x)
