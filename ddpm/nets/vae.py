"""The variational autoencoder (Kingma & Welling 2014) as a process of one step, of images, sequences and points.

Its x_T is standard normal noise of the data's shape, of which the first numbers are the latent z and the others unused;
its x̂_0 is the decoder's mean. So whatever samples, exports and measures a denoiser does the same for it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from ddpm.nets.condition import NOTHING, Condition, Network, Shapes


class VAE(Network):
    """Two multilayer perceptrons: data → (μ, log σ²) of q(z | x_0), and z → the mean of p(x_0 | z)."""

    axes = (0, 1, 2)

    def __init__(self, shapes: Shapes, *, latent: int = 16, hidden: Sequence[int] = (512, 256)) -> None:
        """
        Args:
            shapes: the output has the channels of x: no variance of a reverse step is learned.
            latent: numbers of z, at most those of a datum.
            hidden: widths of the encoder's layers, from the data on; the decoder's are the same in reverse.

        Raises:
            ValueError: a number does not fit; the message names the key.
        """
        super().__init__()
        self.shape = shapes.x
        numbers = math.prod(self.shape)
        if latent > numbers:
            raise ValueError(f"latent is {latent}, but a datum has only {numbers} numbers")
        if shapes.out_channels not in (None, shapes.channels):
            raise ValueError(
                f"kind: vae answers with the data's {shapes.channels} channels, not with {shapes.out_channels}"
            )
        self.latent = latent
        self.encoder = perceptron([numbers, *hidden, 2 * latent])
        self.decoder = perceptron([latent, *reversed(hidden), numbers])

    def encode(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """x0 [N, C, ...] → mean and log variance of q(z | x0), each [N, latent]."""
        mean, log_variance = self.encoder(x0.flatten(1)).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """z [N, latent] → the mean of p(x0 | z), [N, C, ...]."""
        return self.decoder(z).unflatten(1, self.shape)

    def training_pass(self, x0: Tensor, t: Tensor) -> Tensor:
        """What the loss computes, for `ddpm.nets.training_pass`: x0 [N, C, ...] encoded and decoded, [N, C, ...]."""
        return self.decode(self.encode(x0)[0])

    def forward(self, x: Tensor, t: Tensor, c: Condition = NOTHING) -> Tensor:
        """x [N, C, ...] noise, t [N] without meaning here → data [N, C, ...]."""
        return self.decode(x.flatten(1)[:, : self.latent])


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers between the widths, ReLU between the layers."""
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
