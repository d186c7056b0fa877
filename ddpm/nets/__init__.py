"""The networks: each maps (x [N, C, H, W], t [N]) to an output shaped like x, or with more channels if asked to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ddpm.nets.unet import UNet

NETWORKS: dict[str, Callable[..., nn.Module]] = {"unet": UNet}


def build(options: Mapping[str, Any], *, image_size: int, channels: int, out_channels: int | None = None) -> nn.Module:
    """The network that `options` describes: its `kind`, and that kind's keyword arguments.

    Raises:
        ValueError: the options do not fit together or do not fit the images; the message names the key.
    """
    options = dict(options)
    return NETWORKS[options.pop("kind")](image_size, channels, out_channels=out_channels, **options)
