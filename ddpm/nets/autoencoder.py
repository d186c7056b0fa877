"""The autoencoder of latent diffusion (Rombach et al. 2022, §3.1 and appendix G): images ↔ latents of a smaller side.

With the defaults it is the one called KL-f8: 83,653,863 parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpm.nets.blocks import AttentionBlock, Downsample, NoAttention, ResidualBlock, Style, Upsample
from ddpm.nets.condition import NOTHING, Condition, Network, Shapes
from ddpm.nets.unet import Level, check_groups, level_sides

# Of log σ², as in the published code: beyond it exp overflows or σ² is 0.
LOG_VARIANCE = (-30.0, 20.0)
PIXELS_AT_ONCE = 2**20  # that are decoded together


class AutoencoderKL(Network):
    """Images [N, C, H, W] → mean and log σ² of q(z | x), [N, Z, h, w], and z → images, h = H / 2^(levels − 1).

    Attributes:
        latent_shape: of the z of one image, (Z, h, w).
        pixels: of one image.
        last_layer: the weights of the decoder's last convolution, where training weighs two losses' gradients.
    """

    axes = (2,)

    def __init__(
        self,
        shapes: Shapes,
        *,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 4, 4),
        blocks: int = 2,
        latent_channels: int = 4,
        middle_attention: bool = True,
        groups: int = 32,
        norm_epsilon: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        """
        Args:
            shapes: the side must halve evenly once a level but the last.
            width: a level has width × multiplier channels.
            blocks: residual blocks a level of the encoder; the decoder has one more.
            latent_channels: Z.
            middle_attention: self-attention, of one head, between the two blocks at the bottom of each half.
            groups: of every GroupNorm; must divide every level's channels.
            norm_epsilon: of every GroupNorm.

        Raises:
            ValueError: the numbers do not fit together; the message names the key.
        """
        super().__init__()
        widths = [width * multiplier for multiplier in multipliers]
        side = level_sides(shapes.side, len(widths))[-1]
        check_groups(widths, groups)
        if shapes.out_channels not in (None, shapes.channels):
            raise ValueError(
                f"kind: autoencoder answers with the {shapes.channels} channels of the images, "
                f"not with {shapes.out_channels}"
            )
        if latent_channels * side**2 > shapes.channels * shapes.side**2:
            raise ValueError(f"latent_channels is {latent_channels}: a latent would have more numbers than an image")
        style = Style(
            time_width=0,
            groups=groups,
            norm_epsilon=norm_epsilon,
            dropout=dropout,
            downsample_padding="asymmetric",
        )
        self.latent_shape = (latent_channels, side, side)
        self.pixels = shapes.side**2
        self.encoder = LatentEncoder(shapes.channels, widths, blocks, 2 * latent_channels, middle_attention, style)
        self.decoder = LatentDecoder(latent_channels, widths, blocks, shapes.channels, middle_attention, style)
        self.to_moments = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.from_latent = nn.Conv2d(latent_channels, latent_channels, 1)

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.out_conv.weight

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, C, H, W] → mean and log σ² of q(z | x), each [N, Z, h, w]."""
        mean, log_variance = self.to_moments(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def decode(self, z: Tensor) -> Tensor:
        """z [N, Z, h, w] → the image, [N, C, H, W]."""
        return self.decoder(self.from_latent(z))

    def forward(self, x: Tensor, t: Tensor | None = None, c: Condition = NOTHING) -> Tensor:
        """The image of the mean of q(z | x): x [N, C, H, W] → [N, C, H, W]. An autoencoder has no timesteps."""
        return self.decode(self.encode(x)[0])

    def training_pass(self, x: Tensor, t: Tensor) -> Tensor:
        """What the loss computes, for `ddpm.nets.training_pass`: both halves, each called by itself."""
        return self(x, t)


class LatentEncoder(nn.Module):
    """Residual blocks at halving resolutions, without skips: [N, C, H, W] → [N, out_channels, h, w]."""

    def __init__(
        self, channels: int, widths: Sequence[int], blocks: int, out_channels: int, attention: bool, style: Style
    ) -> None:
        super().__init__()
        self.stem = style.conv(channels, widths[0], 3, padding=1)
        c, self.down = widths[0], nn.ModuleList()
        for number, c_level in enumerate(widths):
            last = number == len(widths) - 1
            self.down.append(_level(c, c_level, blocks, None if last else Downsample(c_level, style), style))
            c = c_level
        self.middle = Middle(c, attention, style)
        self.out_norm = style.norm(c)
        self.out_conv = style.conv(c, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.middle(_run(self.down, self.stem(x)))
        return self.out_conv(F.silu(self.out_norm(h)))


class LatentDecoder(nn.Module):
    """The mirror of `LatentEncoder`: [N, Z, h, w] → [N, out_channels, H, W]."""

    def __init__(
        self, channels: int, widths: Sequence[int], blocks: int, out_channels: int, attention: bool, style: Style
    ) -> None:
        super().__init__()
        c = widths[-1]
        self.stem = style.conv(channels, c, 3, padding=1)
        self.middle = Middle(c, attention, style)
        self.up = nn.ModuleList()
        for number, c_level in reversed(list(enumerate(widths))):
            self.up.append(_level(c, c_level, blocks + 1, Upsample(c_level, style) if number else None, style))
            c = c_level
        self.out_norm = style.norm(c)
        self.out_conv = style.conv(c, out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = _run(self.up, self.middle(self.stem(z)))
        return self.out_conv(F.silu(self.out_norm(h)))


class Middle(nn.Module):
    """A residual block, attention, a residual block."""

    def __init__(self, c: int, attention: bool, style: Style) -> None:
        super().__init__()
        self.residual_in = ResidualBlock(c, c, style)
        self.attention = AttentionBlock(c, style) if attention else NoAttention()
        self.residual_out = ResidualBlock(c, c, style)

    def forward(self, h: Tensor) -> Tensor:
        return self.residual_out(self.attention(self.residual_in(h)))


def _level(c: int, c_level: int, blocks: int, resample: nn.Module | None, style: Style) -> Level:
    """Residual blocks from c to c_level channels, and the way to the next resolution."""
    inputs = [c, *[c_level] * (blocks - 1)]
    return Level([ResidualBlock(each, c_level, style) for each in inputs], [], resample)


def _run(levels: nn.ModuleList, h: Tensor) -> Tensor:
    for level in cast("Iterable[Level]", levels):
        for residual in level.residuals:
            h = residual(h)
        if level.resample is not None:
            h = level.resample(h)
    return h


class Frozen:
    """A trained autoencoder as `codecs.latent.Latent` takes it."""

    def __init__(self, network: AutoencoderKL) -> None:
        self.network = network.eval().requires_grad_(False)

    def to(self, device: torch.device) -> None:
        """Move it to where it is to compute."""
        self.network.to(device)

    @torch.inference_mode()
    def encode(self, x: Tensor) -> Tensor:
        """Pictures [N, C, H, W] in [−1, 1] → the means of their latents, [N, Z, h, w], where they are."""
        return self.network.encode(x)[0]

    @torch.inference_mode()
    def decode(self, z: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latents [N, Z, h, w] → pictures [N, C, H, W], few of them at once, since each takes much memory."""
        device = next(self.network.parameters()).device
        at_once = max(1, PIXELS_AT_ONCE // self.network.pixels)
        parts = torch.from_numpy(np.ascontiguousarray(z)).split(at_once)
        return torch.cat([self.network.decode(part.to(device)).cpu() for part in parts]).numpy()
