"""What an import comes down to: the configuration of a network and its process, and the weights under our names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.config import NetworkConfig, ProcessConfig, SamplingConfig
from ddpm.errors import UserError
from ddpm.nets.unet import UNet


@dataclass(frozen=True)
class Published:
    """A published U-Net in our terms."""

    network: NetworkConfig
    process: ProcessConfig
    sampling: SamplingConfig
    image_size: int
    channels: int
    weights: dict[str, Tensor]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors by name of a `.safetensors` file, or of a `.pt` or `.bin` pickle, of which nothing else is loaded.

    Raises:
        UserError: the file is missing, damaged, holds code, or anything but tensors by name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: expected a file of weights, found a directory") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or cut short: {error}") from None
    except Exception as error:  # of pickle, of zipfile, or torch's own
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: damaged, cut short, or more than tensors ({reason})") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path}: expected tensors by name, a network's state_dict")
    return found


def unet_of(network: NetworkConfig, image_size: int, channels: int, out_channels: int, where: str) -> nn.Module:
    """Our network of that configuration without memory for its weights.

    Raises:
        UserError: the options do not fit together.
    """
    options: dict[str, Any] = network.model_dump(exclude={"kind"})
    try:
        with torch.device("meta"):
            return UNet(image_size, channels, out_channels=out_channels, **options)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def refuse_other_keys(found: Iterable[str], expected: Iterable[str], where: str) -> None:
    """Name what is missing and what is too much.

    Raises:
        UserError: the two differ.
    """
    there, wanted = set(found), set(expected)
    missing, unexpected = sorted(wanted - there), sorted(there - wanted)
    if missing or unexpected:
        raise UserError(f"{where}: another network: missing {_some(missing)}; unexpected {_some(unexpected)}")


def shaped_like(weights: Mapping[str, Tensor], network: nn.Module, where: str) -> dict[str, Tensor]:
    """The weights in float32 and in the shapes of the network; kernels of size 1 may lack or have axes of 1.

    Raises:
        UserError: a shape differs.
    """
    shaped = {}
    for name, expected in network.state_dict().items():
        tensor = weights[name]
        if _without_ones(tensor.shape) != _without_ones(expected.shape):
            raise UserError(f"{where}: another network: {name} is {list(tensor.shape)}, not {list(expected.shape)}")
        shaped[name] = tensor.to(torch.float32).reshape(expected.shape).contiguous()
    return shaped


def swap_halves(weight: Tensor) -> Tensor:
    """The first layer of the time embedding, [width × 4, width], for sines and cosines in the other order."""
    first, second = weight.chunk(2, dim=1)
    return torch.cat([second, first], dim=1)


def _without_ones(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
