"""The file of a model's weights, held against what its card describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.codecs.scale import Codec
from ddpm.errors import NotFiniteError, UserError
from ddpm.model.card import ModelCard
from ddpm.model.network import LargerError, at_most, build_network

CLIP_PREFIX = "clip."  # before the names of a CLIP's weights, in the file of a model that it is a part of


def taken_out(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin with the prefix, which the others are then without."""
    return {name: weights.pop(name) for name in list(weights) if name.startswith(prefix)}


def of_clip(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a CLIP, or their shapes, by their names in the file of a model that it is a part of."""
    return {f"{CLIP_PREFIX}{name}": each for name, each in weights.items()}


def refuse_not_finite_weights(weights: Mapping[str, Tensor], where: str) -> None:
    """
    Args:
        where: what they are of, for the error.

    Raises:
        NotFiniteError: there are NaN or infinite values among them; names the first tensor.
    """
    bad = {name: count for name, tensor in weights.items() if (count := int((~tensor.isfinite()).sum()))}
    if bad:
        (name, count), others = next(iter(bad.items())), len(bad) - 1
        more = f" (and {others} more tensors)" if others else ""
        raise NotFiniteError(f"{where}: {count} of {weights[name].numel()} values of {name} are NaN or infinite{more}")


def shapes_in(path: Path) -> dict[str, list[int]]:
    """The shapes of a .safetensors file's tensors by name, from its header."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def check_shapes(card: ModelCard, codec: Codec, found: Mapping[str, list[int]], directory: Path) -> None:
    """Hold the shapes of a model's weights, as of `shapes_in`, against what its card describes.

    Args:
        codec: the card's.
        directory: the model's, for errors.

    Raises:
        UserError: the card is not of a network, or the weights are of another one; says what does not fit.
    """
    where = directory / "model.safetensors"
    expected = _expected_shapes(card, codec, found, directory / "model.json")
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    if missing or unexpected:
        raise UserError(f"{where}: another network: missing {missing[:3]}, unexpected {unexpected[:3]}")
    for name, shape in found.items():
        if shape != expected[name]:
            raise UserError(f"{where}: another network: {name} is {shape}, expected {expected[name]}")


def _expected_shapes(
    card: ModelCard, codec: Codec, found: Mapping[str, list[int]], where: Path
) -> dict[str, list[int]]:
    """The shapes of the weights that a configuration asks for, without memory for them.

    Args:
        found: the shapes that there are: the network is not built further than these allow.

    Raises:
        UserError: the configuration is not of a network, or of a much larger one.
    """
    try:
        # A few more tensors than there are, so that a network that is merely another one is named by what it lacks.
        with torch.device("meta"), at_most(1000 + 2 * len(found)):
            network = build_network(card.config, codec, str(where), card.columns)
            frozen = card.data.latent.expected(card.data.stored) if card.data.latent else {}
            if card.data.encoder and (inner := card.data.encoder.card):
                clip = build_network(inner.config, inner.data.codec, str(where), inner.columns)
                frozen |= of_clip({name: list(tensor.shape) for name, tensor in clip.state_dict().items()})
    except (ArithmeticError, MemoryError, RuntimeError, TypeError) as error:
        raise UserError(f"{where}: damaged: not a network that can be built ({type(error).__name__})") from None
    except LargerError:
        raise UserError(f"{where}: describes a larger network than model.safetensors has weights for") from None
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()} | frozen
