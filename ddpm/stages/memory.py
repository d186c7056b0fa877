"""What to say where the memory is too small for a training, and to say it before the memory is taken."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ddpm.codecs.scale import Codec
from ddpm.conditioning.columns import Column
from ddpm.config.model import VariantConfig
from ddpm.errors import UserError, ran_out
from ddpm.model.network import build_network
from ddpm.training.cost import free_bytes, state_bytes
from ddpm.training.memory import OutOfMemoryError


def without_memory(
    config: VariantConfig, codec: Codec, columns: Sequence[Column] = (), where: str = "params.yaml"
) -> nn.Module:
    """The network on the meta device: its shapes, and no memory for its weights.

    Args:
        where: what the configuration is of, for errors.

    Raises:
        UserError: the configuration does not fit the data.
    """
    with torch.device("meta"):
        return build_network(config, codec, where, columns)


def check_room(config: VariantConfig, codec: Codec, device: torch.device, variant: str) -> None:
    """Refuse a network that cannot be trained in the memory that is free. On the CPU the kernel would give the memory,
    and end the process when it is used.

    Raises:
        UserError: its state is larger; names the key that helps.
    """
    needed, free = state_bytes(without_memory(config, codec)), free_bytes(device)
    if free is not None and needed > free:
        raise UserError(f"{variant}: {no_room(needed, device)}; {smaller(config, variant)}")


@contextlib.contextmanager
def explained(config: VariantConfig, codec: Codec, device: torch.device, variant: str) -> Iterator[None]:
    """Turn running out of memory within the block into one line with the key that helps.

    Raises:
        UserError: the memory did not suffice.
    """
    try:
        yield
    except OutOfMemoryError as error:
        if error.at_once == 1:
            raise UserError(f"{variant}: {no_room_for_one(codec, device)}; {fewer_values(config, variant)}") from None
        if config.contrasts:
            raise UserError(f"{variant}: {error}; lower models.{variant}.training.batch_size") from None
        raise UserError(
            f"{variant}: {error}; set models.{variant}.training.micro_batch_size to {max(1, error.at_once // 2)}, "
            "or to auto: the batch stays what it is, and is computed in parts"
        ) from None
    except Exception as error:
        if not ran_out(error):
            raise
        needed = state_bytes(without_memory(config, codec))
        raise UserError(f"{variant}: {no_room(needed, device)}; {smaller(config, variant)}") from None


def no_room(needed: int, device: torch.device) -> str:
    """That the weights, with all that is held beside each of them, do not fit."""
    return f"out of memory: weights, gradients, moments and averages take {mib(needed)}, and {free_memory(device)}"


def no_room_for_one(codec: Codec, device: torch.device) -> str:
    """That a step does not fit even with a micro-batch of 1."""
    return f"out of memory with a single one of the {codec.name} at once, {free_memory(device)}"


def smaller(config: VariantConfig, variant: str) -> str:
    """The advice where the weights do not fit."""
    key = "hidden" if config.network.kind == "vae" else "width"
    return f"make models.{variant}.network smaller, for example its {key}"


def fewer_values(config: VariantConfig, variant: str) -> str:
    """The advice where the weights fit, but not what a step keeps of the layers in between."""
    can_forget = getattr(config.network, "checkpointing", None) is False
    return smaller(config, variant) + (", or set its `checkpointing: true`" if can_forget else "")


def free_memory(device: torch.device) -> str:
    """How much of it a device has left, in words."""
    free = free_bytes(device)
    return "the free memory is unknown" if free is None else f"{mib(free)} are free"


def mib(count: float) -> str:
    """Bytes in mebibytes."""
    return f"{count / 2**20:,.0f} MiB"
