"""What training an autoencoder of images minimises (Rombach et al. 2022, §3.1; Esser et al. 2021, §3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ddpm.codecs.latent import posterior_sample
from ddpm.conditioning.columns import Column
from ddpm.diffusion.likelihood import normal_kl
from ddpm.nets.autoencoder import AutoencoderKL
from ddpm.training.perceptual import Perceptual
from ddpm.training.tasks import Batch

MOST_ADVERSARIAL = 1e4  # the adaptive weight of the adversarial loss at most


class Weights(NamedTuple):
    """Of the parts of the loss, beside the mean absolute error of a number."""

    perceptual: float = 1.0
    kl: float = 1e-6
    adversarial: float = 0.5
    adversarial_from: int = 0
    """The step from which there is an adversarial loss."""


@dataclass(frozen=True)
class Compress:
    """Mean absolute error, perceptual distance, KL(q(z | x) ‖ N(0, I)) summed over the latent, and from some step on
    the hinge loss of a discriminator, of an `AutoencoderKL`.

    The discriminator's own loss is added to the autoencoder's. Neither has a gradient in the other's weights, so that
    one backward pass gives both.

    Attributes:
        perceptual: None: no such distance.
        opponent: the discriminator; None: no adversarial loss.
    """

    weights: Weights
    perceptual: Perceptual | None = None
    opponent: nn.Module | None = None
    timesteps: int = 1
    distribution: tuple[float, float] | None = None
    draws: int = 0
    columns: Sequence[Column] = ()

    def losses(self, network: nn.Module, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        """As of `Task`. The first numbers of `noise`, as many as z's, are what z is reparametrised by."""
        network, x = cast(AutoencoderKL, network), batch.x0
        mean, log_variance = (moment.to(x.dtype) for moment in network.encode(x))
        of_z = noise.flatten(1)[:, : mean[0].numel()].reshape(mean.shape)
        decoded = network.decode(posterior_sample(mean, log_variance, of_z)).to(x.dtype)
        likeness = (decoded - x).abs().flatten(1).mean(1)
        if self.perceptual is not None and self.weights.perceptual:
            likeness = likeness + self.weights.perceptual * self.perceptual(x, decoded).to(x.dtype)
        zero = torch.zeros_like(mean)
        losses = likeness + self.weights.kl * normal_kl(mean, log_variance, zero, zero).flatten(1).sum(1)
        if self.opponent is None or batch.step < self.weights.adversarial_from:
            return losses
        fooled = -_scores_of(self.opponent, decoded)
        weight = likeness.new_tensor(self.weights.adversarial)
        if torch.is_grad_enabled():
            weight = weight * adaptive_weight(likeness.mean(), fooled.mean(), network.last_layer)
        return losses + weight * fooled + self._of_opponent(x, decoded.detach())

    def _of_opponent(self, real: Tensor, decoded: Tensor) -> Tensor:
        """The discriminator's hinge loss (Lim & Ye 2017), [N]: of each patch, then their mean."""
        assert self.opponent is not None
        margins = F.relu(1 - self.opponent(real)) + F.relu(1 + self.opponent(decoded))
        return 0.5 * margins.to(real.dtype).flatten(1).mean(1)


def _scores_of(opponent: nn.Module, x: Tensor) -> Tensor:
    """The mean score of each image, [N], with a gradient in x alone and none in the discriminator's weights."""
    weights = {name: each.detach() for name, each in opponent.named_parameters()}
    return functional_call(opponent, weights, (x,)).to(x.dtype).flatten(1).mean(1)


def adaptive_weight(likeness: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """How many times larger the gradient of the one loss is than that of the other, in the decoder's last layer, at
    most `MOST_ADVERSARIAL` (Esser et al. 2021, eq. 7): so both move the decoder alike. It is of the data that go
    through the network together.
    """
    of_likeness, of_adversarial = (
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in (likeness, adversarial)
    )
    return (of_likeness / (of_adversarial + 1e-4)).clamp(0, MOST_ADVERSARIAL).detach()
