"""The first stage of latent diffusion (Rombach et al. 2022): the autoencoder that a model's card names, and its weights
in the model's own file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ddpm.codecs.latent import Latent
from ddpm.codecs.scale import Codec, PixelCodec
from ddpm.config.base import Section
from ddpm.config.network import AutoencoderConfig
from ddpm.nets import build
from ddpm.nets.autoencoder import AutoencoderKL, Frozen
from ddpm.nets.unet import level_sides

PREFIX = "autoencoder."  # of its weights, in a file that has a model's too


class LatentFacts(Section):
    """The autoencoder whose latents a model draws."""

    variant: str
    fingerprint: str  # of its training, or of an import
    sha256: str  # of its own file of weights
    network: AutoencoderConfig
    shape: tuple[int, ...]  # of a latent, (Z, h, w)
    scale: float  # what latents are multiplied by

    def codec(self, pixels: Codec) -> Latent:
        """Of such pictures, without the autoencoder.

        Raises:
            ValueError: they are no pictures, or of a size that gives other latents.
        """
        if not isinstance(pixels, PixelCodec):
            raise ValueError(f"latents are of images, found {pixels.name}")
        if not (len(self.shape) == 3 and self.scale > 0):
            raise ValueError(f"latent: expected a shape of 3 numbers and a scale above 0, found {self}")
        if (found := latent_shape(self.network, pixels)) != self.shape:
            raise ValueError(f"latent.shape is {list(self.shape)}, but this autoencoder's latents are {list(found)}")
        return Latent(pixels, self.shape, self.scale)

    def expected(self, pixels: Codec) -> dict[str, list[int]]:
        """The shapes of the autoencoder's weights by their names in the model's file."""
        return {name: list(each.shape) for name, each in saved(unreal(self.network, pixels)).items()}

    def open(self, pixels: Codec, weights: Mapping[str, Tensor], device: torch.device | str) -> Frozen:
        """The autoencoder with its weights, as the model's file has them."""
        network = _build(self.network, pixels)
        network.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in weights.items()})
        return Frozen(network.to(device))


def latents_in_words(latent: LatentFacts | None) -> str:
    """What a model draws, for errors that compare two."""
    return "pixels" if latent is None else f"latents of {latent.variant} {latent.sha256[:12]}"


def latent_shape(network: AutoencoderConfig, pixels: Codec) -> tuple[int, ...]:
    """(Z, h, w) of such pictures.

    Raises:
        ValueError: the network does not fit them; the message names the key.
    """
    side = level_sides(pixels.network_shape[1], len(network.multipliers))[-1]
    return network.latent_channels, side, side


def unreal(network: AutoencoderConfig, pixels: Codec) -> AutoencoderKL:
    """The autoencoder without memory for its weights."""
    with torch.device("meta"):
        return _build(network, pixels)


def saved(network: AutoencoderKL) -> dict[str, Tensor]:
    """The weights by their names in a model's file."""
    return {f"{PREFIX}{name}": tensor for name, tensor in network.state_dict().items()}


def _build(network: AutoencoderConfig, pixels: Codec) -> AutoencoderKL:
    channels, side, *_ = pixels.network_shape
    built = build(network.model_dump(), image_size=side, channels=channels)
    assert isinstance(built, AutoencoderKL)
    return built
