"""What training minimises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ddpm.diffusion.likelihood import normal_kl, vlb_terms
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.sampling import Denoiser

LOSSES = ("simple", "vlb", "hybrid")
WEIGHTINGS = ("none", "min_snr")
VLB_WEIGHT = 0.001  # λ of L_hybrid


class Autoencoder(Protocol):
    """What `negative_elbo` trains: a network with an encoder beside its decoder."""

    def encode(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """x0 [N, C, ...] → mean and log variance of q(z | x0), each [N, latent]."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """z [N, latent] → the mean of p(x0 | z), [N, C, ...]."""
        ...


@dataclass(frozen=True)
class Objective:
    """A loss and how it weighs the timesteps.

    Attributes:
        loss: `simple`: mean squared error on the target (Ho et al. 2020, eq. 14); `vlb`: the variational bound in bits
            per dimension, less its constant prior term; `hybrid`: simple + λ vlb, in which the vlb moves only the
            variance (Nichol & Dhariwal 2021, eq. 16).
        weighting: of the squared error: `none`, or `min_snr`: min(SNR, γ) on x_0's, whatever the target (Hang et al.
            2023).
        gamma: γ of `min_snr`.
    """

    loss: str = "simple"
    weighting: str = "none"
    gamma: float = 5.0

    def __post_init__(self) -> None:
        for kind, value, known in (("loss", self.loss, LOSSES), ("weighting", self.weighting, WEIGHTINGS)):
            if value not in known:
                raise ValueError(f"no {kind} {value!r}; there are: {', '.join(known)}")

    def training_losses(
        self, process: GaussianProcess, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor
    ) -> Tensor:
        """The loss of each image, [N] in x0's precision; its mean over uniform t estimates the objective."""
        xt = process.q_sample(x0, t, noise)
        # A network under autocast answers in half precision; losses are not computed in it.
        out = denoise(*process.told(xt, t)).to(x0.dtype)
        if self.loss == "vlb":
            return _vlb(process, out, x0, xt, t)
        prediction, _ = process.split(out)
        error = (prediction - process.target(x0, t, noise)) ** 2
        losses = error.flatten(1).mean(1)
        if self.weighting == "min_snr":
            losses = losses * self._min_snr_weight(process, t)
        if self.loss == "hybrid":
            losses = losses + VLB_WEIGHT * _vlb(process, out, x0, xt, t, detach_mean=True)
        return losses

    def _min_snr_weight(self, process: GaussianProcess, t: Tensor) -> Tensor:
        """min(SNR, γ) over what an error of x_0 weighs in the target already, [N]."""
        at = process.at(t)
        snr = (at.signal / at.noise) ** 2
        return snr.clamp(max=self.gamma) * at.x0_from_out**2


L_SIMPLE = Objective()


def negative_elbo(network: Autoencoder, x0: Tensor, noise: Tensor, reconstruction_weight: float) -> Tensor:
    """C ‖x_0 − f(z)‖² + KL(q(z | x_0) ‖ N(0, I)) with one z ~ q (Kingma & Welling 2014, eq. 10). [N], in nats.

    It is the bound on −log p(x_0), but for a constant, of a decoder N(f(z), I/(2C)).

    Args:
        noise: shaped like x0; its first numbers, as many as z's, are what z is reparametrised by.
        reconstruction_weight: C.
    """
    mean, log_variance = (moment.to(x0.dtype) for moment in network.encode(x0))
    z = mean + torch.exp(log_variance / 2) * noise.flatten(1)[:, : mean.shape[1]]
    error = (network.decode(z).to(x0.dtype) - x0).square().flatten(1).sum(1)
    zero = torch.zeros_like(mean)
    return reconstruction_weight * error + normal_kl(mean, log_variance, zero, zero).sum(1)


def _vlb(
    process: GaussianProcess, out: Tensor, x0: Tensor, xt: Tensor, t: Tensor, *, detach_mean: bool = False
) -> Tensor:
    """T L_t, whose mean over uniform t is the bound: with it λ means the same for every T, as in the paper's code."""
    return process.timesteps * vlb_terms(process, out, x0, xt, t, clip=False, detach_mean=detach_mean)
