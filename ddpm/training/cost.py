"""What training costs: operations and memory, known before a step is taken."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm.nets import training_pass
from ddpm.training.ema import trainable
from ddpm.training.speed import autocast


def training_flops(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Floating-point operations of a datum's forward and backward pass: convolutions and matrix products, a
    multiplication and an addition each, as torch counts them.

    Args:
        shape: of a datum as the network sees it, [C, ...].
    """
    # On no device, where only shapes are computed: on the CPU torch does not count attention.
    unreal = copy.deepcopy(network).to("meta").train()
    if not trainable(unreal):
        unreal.requires_grad_()
    x, t = torch.zeros(1, *shape, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        training_pass(unreal, x, t).sum().backward()
    return int(counter.get_total_flops())


def state_bytes(network: nn.Module) -> int:
    """Bytes that a training holds all the time: the weights, and of those that it changes their gradients, Adam's two
    moments, and averages.
    """
    return sum(each.nbytes for each in network.parameters()) + 4 * sum(each.nbytes for each in trainable(network))


def training_bytes(network: nn.Module, shape: tuple[int, ...], batch: int, precision: str) -> tuple[int, int]:
    """Bytes that a step holds: `state_bytes`, and what the backward pass needs.

    The second is what autograd keeps of a forward pass; what is computed in between comes on top.
    """
    one, two = (_kept(network, (count, *shape), precision) for count in (1, 2))
    return state_bytes(network), one + (batch - 1) * (two - one)


def _kept(network: nn.Module, shape: tuple[int, ...], precision: str) -> int:
    """Bytes that autograd keeps of a forward pass on x of this shape, beside the weights."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in parameters:
            kept[place] = tensor  # held, so that nothing else takes its place
        return tensor

    device = next(network.parameters()).device
    x, t = torch.zeros(shape, device=device), torch.zeros(shape[0], dtype=torch.int64, device=device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(device, precision):
        training_pass(network, x, t)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def free_bytes(device: torch.device) -> int | None:
    """Memory that a device can still give; None where that is unknown.

    On the CPU under Linux: what the kernel calls available, or less where this container or this process (`ulimit -v`)
    has a lower limit.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [count for count in (_available(), _left_to_the_process()) if count is not None]
    return min(free) if free else None


def _available() -> int | None:
    """On this machine, or in this container."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["anon"]
        return max(0, min(free, limit - int(used)))
    except (OSError, ValueError, KeyError):  # no limit, or not this kind of groups
        return free


def _left_to_the_process() -> int | None:
    """Of its address space, where that is limited."""
    try:
        import resource  # not on Windows

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return None
    return None if limit == resource.RLIM_INFINITY else max(0, limit - used)
