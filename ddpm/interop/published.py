"""What an import comes down to: the configuration of a network and its process, and the weights under our names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddpm.config import AnyNetworkConfig, ProcessConfig, SamplingConfig
from ddpm.data.kinds import DataKind
from ddpm.errors import UserError
from ddpm.nets import build


@dataclass(frozen=True)
class Flags:
    """What a checkpoint may not tell, by the names it had where the network was trained; None where it was not given.

    The first is of any images, the next two are GaussianDiffusion1D's, the others OpenAI's.
    """

    image_size: int | None = None
    seq_length: int | None = None
    auto_normalize: bool = True
    num_heads: int | None = None
    num_head_channels: int | None = None
    noise_schedule: Literal["linear", "cosine"] | None = None
    diffusion_steps: int | None = None
    rescale_timesteps: bool | None = None
    use_new_attention_order: bool = False
    predict_xstart: bool = False
    sigma_small: bool = False
    dropout: float = 0.0


@dataclass(frozen=True)
class Published:
    """A published network in our terms."""

    network: AnyNetworkConfig
    process: ProcessConfig
    sampling: SamplingConfig
    kind: DataKind
    weights: dict[str, Tensor]


def read_saved(path: Path) -> dict[str, Any]:
    """What a `.safetensors` file holds, or a `.pt` or `.bin` pickle, of which only tensors and plain values are loaded.

    Raises:
        UserError: the file is missing, damaged, or holds code or no dictionary.
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
        raise UserError(f"{path}: damaged, cut short, or more than tensors ({in_short(error)})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a dictionary of tensors, found {type(found).__name__}")
    return found


def tensors_alone(found: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """What was read, as a network's state_dict.

    Raises:
        UserError: it holds anything but tensors by name.
    """
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{where}: expected tensors by name, a network's state_dict; {name!r} is none")
    return dict(found)


def network_of(network: AnyNetworkConfig, kind: DataKind, out_channels: int, where: str) -> nn.Module:
    """Our network of that configuration, for that kind of data, without memory for its weights.

    Raises:
        UserError: the options do not fit together, or do not fit the data.
    """
    channels, side, *others = kind.network_shape
    options = network.model_dump()
    try:
        with torch.device("meta"):
            return build(options, image_size=side, channels=channels, out_channels=out_channels, dims=1 + len(others))
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


def parts_of(ours: str, theirs: str, parts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Our name and theirs of every part of a module."""
    return ((f"{ours}.{part}", f"{theirs}.{their_part}") for part, their_part in parts.items())


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


def in_short(error: Exception) -> str:
    """Another's error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def _without_ones(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
