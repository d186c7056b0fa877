"""Guidance: how a network's output moves away from that of a weaker one, or along the gradient of a classifier or a
CLIP.

The weight w of a step is a number of its row in the sampling plan. `guidance_scale` s is the number that a user gives:

- away from a weaker model, or from the model without its condition, w = s − 1: 1 is the model itself, 0 the weaker one;
- along a gradient w = s, the papers' scale: 0 is the model itself, and of a classifier 1 is what Bayes' rule says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.conditioning.network import bind, columns_in, unconditional
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.sampling import Denoiser
from ddpm.nets.clip import CLIP


class Guided(Protocol):
    """A denoiser that can be guided. Executors call it with a weight where a row has one, else as any denoiser."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor: ...

    def guided(self, x: Tensor, t: Tensor, weight: float) -> Tensor:
        """The output at guidance weight w, [N, C or 2C, ...]. Costs two evaluations, of the network or of the guide."""
        ...


class ClassifierFree:
    """ε(x, c) + w (ε(x, c) − ε(x, ∅)) (Ho & Salimans 2022, eq. 6).

    A column without a null value, such as the low image of an upsampler, stands in ∅ as it is given.

    Of a network that learns its variance the first half of the channels is guided; the variance is the conditional
    one's.

    Both halves are one batch.
    """

    def __init__(self, network: nn.Module, given: Mapping[str, Tensor]) -> None:
        self._network = network
        self._conditional = bind(network, given)
        null = unconditional(columns_in(network), given)
        self._both = {name: torch.cat([value, null[name]]) for name, value in given.items()}

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self._conditional(x, t)

    def guided(self, x: Tensor, t: Tensor, weight: float) -> Tensor:
        conditional, weak = self._network(torch.cat([x, x]), torch.cat([t, t]), self._both).chunk(2)
        return away_from(conditional, weak, weight, x.shape[1])


class Autoguidance:
    """D₁(x) + w (D₁(x) − D₀(x)) with a weaker model D₀ of the same data, process and condition (Karras et al. 2024)."""

    def __init__(self, strong: Denoiser, weak: Denoiser) -> None:
        self._strong, self._weak = strong, weak

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self._strong(x, t)

    def guided(self, x: Tensor, t: Tensor, weight: float) -> Tensor:
        return away_from(self._strong(x, t), self._weak(x, t), weight, x.shape[1])


class Gradient:
    """ε − w √(1−ᾱ_t) ∇_x f(x_t, t), where f says how well noisy data agree with what is asked for.

    For a model that predicts x_0 or v it is the same change of the score: x̂_0 moves by w (1−ᾱ_t)/√ᾱ_t ∇ in any case. A
    learned variance stays as it is. Rows that move the ancestral sampler's mean instead ask for `gradient`.
    """

    def __init__(self, denoise: Denoiser, agreement: Denoiser, process: GaussianProcess) -> None:
        """
        Args:
            denoise: the model, with its condition if it has one.
            agreement: f, (x [N, C, ...] as the network sees it, t [N]) → [N].
            process: of both.
        """
        self._denoise, self._agreement = denoise, agreement
        self._from_score = from_score(process)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self._denoise(x, t)

    def guided(self, x: Tensor, t: Tensor, weight: float) -> Tensor:
        out, channels = self._denoise(x, t), x.shape[1]
        step = weight * self._from_score[t].view(-1, *[1] * (x.ndim - 1)) * self.gradient(x, t)
        return torch.cat([out[:, :channels] + step, out[:, channels:]], dim=1)

    def gradient(self, x: Tensor, t: Tensor) -> Tensor:
        """∇_x f(x_t, t), shaped like x; also where gradients are switched off, as in sampling."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self._agreement(x, t).sum(), x)[0]


class ClassifierGradient(Gradient):
    """f = log p(y | x_t) of a classifier of noisy data (Dhariwal & Nichol 2021, algorithm 2)."""

    def __init__(self, denoise: Denoiser, classifier: nn.Module, label: Tensor, process: GaussianProcess) -> None:
        """
        Args:
            classifier: (x [N, C, ...] as the network sees it, t [N]) → logits [N, K].
            label: [N] int64, the class y of each datum.
        """

        def log_p(x: Tensor, t: Tensor) -> Tensor:
            return F.log_softmax(classifier(x, t).to(x.dtype), dim=1).gather(1, label.view(-1, 1))

        super().__init__(denoise, log_p, process)


class CLIPGradient(Gradient):
    """f = the dot product of the embeddings of x_t and of a caption, times the CLIP's scale, of a CLIP that was trained
    on noisy data (Nichol et al. 2022, GLIDE, §2.4)."""

    def __init__(self, denoise: Denoiser, clip: nn.Module, tokens: Tensor, process: GaussianProcess) -> None:
        """
        Args:
            clip: a `nets.clip.CLIP`.
            tokens: [N, L] int64, the caption of each datum.
        """
        assert isinstance(clip, CLIP)
        with torch.no_grad():
            texts = clip.scale * clip.texts(tokens)
        super().__init__(denoise, lambda x, t: (clip(x, t) * texts).sum(dim=1), process)


# By the guide's network.kind.
GRADIENTS: dict[str, Callable[[Denoiser, nn.Module, Tensor, GaussianProcess], Gradient]] = {
    "classifier": ClassifierGradient,
    "clip": CLIPGradient,
}


def from_score(process: GaussianProcess) -> Tensor:
    """By which the output moves along the gradient of log p(y) with respect to the network's input, [T]: x̂_0 moves by
    (1−ᾱ_t)/√ᾱ_t times that with respect to x.
    """
    return process.noise**2 / (process.signal * process.x0_from_out) * process.table.input_scale


def away_from(strong: Tensor, weak: Tensor, weight: float, channels: int) -> Tensor:
    """The first `channels` of the strong output moved away from those of the weak one; the others are the strong's."""
    prediction = strong[:, :channels] + weight * (strong[:, :channels] - weak[:, :channels])
    return torch.cat([prediction, strong[:, channels:]], dim=1)


def by_itself(network: nn.Module, given: Mapping[str, Tensor]) -> Denoiser:
    """The network with its condition, guided away from itself without the condition if that can be."""
    return ClassifierFree(network, given) if guidable(network) else bind(network, given)


def guidable(network: nn.Module) -> bool:
    """Whether classifier-free guidance can be had: some condition was dropped in training."""
    return any(column.null is not None for column in columns_in(network))
