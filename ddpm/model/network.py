"""The network of a configuration, with the codec and the columns that it is built for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ddpm.codecs.scale import Codec, smaller
from ddpm.conditioning.columns import Column, LabelColumn, columns_of
from ddpm.conditioning.network import ConditionalNetwork, ports_for
from ddpm.conditioning.text import clip_of
from ddpm.config.model import ModelConfig
from ddpm.config.network import CLIPConfig
from ddpm.errors import UserError
from ddpm.model.card import DataFacts
from ddpm.nets import build

MOST_TENSORS = 20_000  # of a network; those of the papers have hundreds


def build_network(
    config: ModelConfig, codec: Codec, where: str = "params.yaml", columns: Sequence[Column] = ()
) -> nn.Module:
    """The variant's network for a kind of data, freshly initialised.

    Args:
        where: the file that the configuration is of, for errors.
        columns: that it is conditioned on, as a `ConditionalNetwork`; or of a classifier or a CLIP, that it answers.
            Of a CLIP without them it is the image tower alone.

    Raises:
        UserError: the configuration does not fit the data, or is of a network that no memory could hold.
    """
    channels, *sides = codec.network_shape
    if len(set(sides)) > 1:
        size = "×".join(map(str, sides))
        raise UserError(f"{where}: the images are {size}; the U-Net needs square ones: set data.image_size")
    try:
        condition = _condition_of(config, codec)
        with at_most(MOST_TENSORS):
            network = build(
                config.network.model_dump(),
                image_size=sides[0] if sides else 1,
                channels=channels,
                dims=len(sides),
                out_channels=_outputs(config, channels, columns),
                ports=ports_for(columns, condition),
            )
            if config.classifies:
                network.answers = tuple(columns)  # type: ignore[assignment]  # the stub knows tensors and modules
                return network
            if isinstance(config.network, CLIPConfig) and columns:
                return clip_of(network, columns, condition["prompt"], config.network.embedding)
            if not columns:
                return network
            return ConditionalNetwork(network, columns, condition)
    except ValueError as error:
        raise UserError(f"{where}: {error if columns else f'network: {error}'}") from None
    except LargerError:
        raise UserError(
            f"{where}: network: more than {MOST_TENSORS:,} tensors; expected fewer blocks or layers"
        ) from None
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise UserError(f"{where}: network: one of its tensors is larger than any memory; make it narrower") from None


def _condition_of(config: ModelConfig, codec: Codec) -> dict[str, Any]:
    """The section `condition` as JSON has it, with how much smaller the network's x is than the hint of a control.

    Raises:
        ValueError: the section says otherwise.
    """
    condition = config.condition.model_dump()
    if (control := condition["control"]) is not None and codec.pictures:
        factor = codec.pixels.network_shape[1] // codec.network_shape[1]
        if control["shrink"] not in (None, factor):
            what = "pixels" if factor == 1 else f"latents, whose sides are 1/{factor} of the picture's"
            raise ValueError(f"condition.control.shrink is {control['shrink']}, expected {factor}: x is {what}")
        control["shrink"] = factor
    return condition


def _outputs(config: ModelConfig, channels: int, columns: Sequence[Column]) -> int | None:
    """Channels of the network's output; None: the network's own default."""
    if config.classifies:
        return next((len(column.classes) for column in columns if isinstance(column, LabelColumn)), None)
    # The second half says where each pixel's variance lies in its range.
    return 2 * channels if config.process.variance == "learned_range" else channels


def codec_of(config: ModelConfig, stored: Codec, where: str) -> Codec:
    """What stands between the prepared data and the network of a model, by its section `codec`.

    Args:
        stored: of the prepared data.
        where: the model is described, for errors.

    Raises:
        UserError: the section does not fit the data.
    """
    if config.codec.side is None:
        return stored
    try:
        return smaller(stored, config.codec.side)
    except ValueError as error:
        raise UserError(f"{where}.{error}") from None


def columns_for(config: ModelConfig, facts: DataFacts, where: str) -> tuple[Column, ...]:
    """What a model of such data is conditioned on.

    Args:
        where: the model is described, for errors.

    Raises:
        UserError: the condition does not fit the data.
    """
    try:
        columns = columns_of(config.condition.model_dump(), facts.model_dump())
    except ValueError as error:
        raise UserError(f"{where}.{error}") from None
    if columns and facts.class_counts and facts.classes and 0 in facts.class_counts:
        empty = facts.classes[facts.class_counts.index(0)]
        raise UserError(f"{where}.condition.label: the class {empty!r} has no training data")
    return columns


class LargerError(Exception):
    """A network has more parameters than it may have."""


@contextlib.contextmanager
def at_most(parameters: int) -> Iterator[None]:
    """Within the block, modules that register more parameters raise LargerError."""
    registered = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal registered
        registered += parameter is not None
        if registered > parameters:
            raise LargerError

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
