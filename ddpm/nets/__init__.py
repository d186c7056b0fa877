"""The networks: each maps (x [N, C, ...], t [N]) to an output shaped like x, or with more channels if asked to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.nets.autoencoder import AutoencoderKL
from ddpm.nets.classifier import Classifier
from ddpm.nets.clip import ImageTower
from ddpm.nets.condition import Network, Ports, Shapes
from ddpm.nets.controlled import Control, Controlled
from ddpm.nets.linear_attention import LinearAttentionUNet
from ddpm.nets.mlp import MLP
from ddpm.nets.prior import Prior
from ddpm.nets.unet import UNet
from ddpm.nets.vae import VAE

NETWORKS: dict[str, type[Network]] = {
    "unet": UNet,
    "linear-attention": LinearAttentionUNet,
    "mlp": MLP,
    "prior": Prior,
    "vae": VAE,
    "autoencoder": AutoencoderKL,
    "classifier": Classifier,
    "clip": ImageTower,
}

# What other models are made with, and no `kind` of a model that draws.
ACCESSORIES = ("autoencoder", "classifier", "clip")
DATA = ("points", "sequences", "images")
NO_PORTS = Ports()


def build(
    options: Mapping[str, Any],
    *,
    image_size: int,
    channels: int,
    out_channels: int | None = None,
    dims: int = 2,
    ports: Ports = NO_PORTS,
) -> Network:
    """The network that `options` describes: its `kind`, and that kind's keyword arguments.

    Of images it is channels last, in which convolutions are faster (docs/training-speed.md).

    Args:
        image_size: the side of an image, the length of a sequence; 1 for points.
        dims: axes of the data beside the channels: 2 for images, 1 for sequences, 0 for points.
        ports: that its condition needs; those that the network cannot have are left out.

    Raises:
        ValueError: the options do not fit together or do not fit the images; the message names the key.
    """
    options = dict(options)
    kind = options.pop("kind")
    if dims not in NETWORKS[kind].axes:
        fitting = " and ".join(DATA[axes] for axes in NETWORKS[kind].axes)
        others = " or ".join(
            f"`{other}`" for other, network in NETWORKS.items() if dims in network.axes and other not in ACCESSORIES
        )
        raise ValueError(f"kind: {kind} is for {fitting}; the data are {DATA[dims]}: use {others}")
    takes = NETWORKS[kind].takes
    hints = ports.hints if "residuals" in takes else ()
    length = ports.length if "tokens" in takes else 0
    ports = Ports(**{name: width for name, width in ports._asdict().items() if name in takes}, length=length)
    shapes = Shapes((channels, *[image_size] * dims), out_channels, ports)
    network = NETWORKS[kind](shapes, **options)
    if hints:
        network = Controlled(network, [Control(shapes, hint, **options) for hint in hints])
    if dims == 2:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub left the keyword out
    return network


def training_pass(network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    """What a loss computes with the network: its `forward`, or its own `training_pass` (a VAE's loss encodes too)."""
    return getattr(network, "training_pass", network)(x, t)


def trains_by_forward(network: nn.Module) -> bool:
    """Whether training calls the network's `forward`."""
    return not hasattr(network, "training_pass")
