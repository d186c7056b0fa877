"""What makes a training step fast and leaves what it computes, up to rounding: compilation, CUDA graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.conditioning.network import columns_in
from ddpm.data.loader import TrainingData
from ddpm.nets import training_pass, trains_by_forward
from ddpm.nets.blocks import AttentionBlock, ResidualBlock
from ddpm.nets.linear_attention import FullAttention, LinearAttention, ResNetBlock

# What is compiled by itself: blocks of the same shapes share one compilation, and nothing outside them can break it.
REGIONS = (ResidualBlock, AttentionBlock, ResNetBlock, LinearAttention, FullAttention)

Switch = bool | Literal["auto"]
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}  # precisions under autocast


def batches_ahead(prefetch: int | Literal["auto"], device: torch.device) -> int:
    """`auto` means: two for a GPU, which computes meanwhile; the CPU would share its cores with the thread."""
    if prefetch == "auto":
        return 2 if device.type == "cuda" else 0
    return prefetch


def on_cuda(switch: Switch, device: torch.device) -> bool:
    """`auto` means: on a GPU."""
    return device.type == "cuda" if switch == "auto" else switch


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Of the forward pass: `fp32`: none; `bf16`, `fp16`."""
    return torch.autocast(device.type, HALF[precision]) if precision in HALF else contextlib.nullcontext()


def accelerate(
    network: nn.Module,
    x: Tensor,
    precision: str,
    *,
    compiled: bool,
    graphs: bool = False,
    say: Callable[[str], object] = print,
) -> None:
    """Prepare a network in place for training steps: compiled regions or CUDA graphs, if asked to.

    What cannot be had is left out and said in one line. Neither names nor values of the parameters change.

    Args:
        x: [N, C, ...], a batch of the shape that all have; its values do not matter.
        precision: of the steps to come.
        compiled: compile the blocks; costs seconds to minutes before the first step.
        graphs: record the network's kernels and replay them, which spares their launches; needs CUDA.
    """
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)  # as the images come
    if compiled and (why := _compile(network, x, precision)):
        say(f"training uncompiled: {why}")
    if graphs and (why := _graph(network, x, precision)):
        say(f"training without CUDA graphs: {why}")


def _compile(network: nn.Module, x: Tensor, precision: str) -> str | None:
    """Compile the regions and try them; returns why they are as before, if they are."""
    regions = _regions(network)
    # Each shape is to have its own code, however many there are.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(regions))
    for region in regions:
        region.compile(dynamic=False)
    try:
        _try(network, x, precision)
    except Exception as error:  # a compiler's own, of which there is no end
        for region in regions:
            region._compiled_call_impl = None
        return _first_line(error)
    return None


def _regions(network: nn.Module) -> list[nn.Module]:
    """The modules to compile: all blocks that are worth it, or the largest ones that training calls."""
    blocks: list[nn.Module] = [module for module in network.modules() if isinstance(module, REGIONS)]
    return blocks or ([network] if trains_by_forward(network) else list(network.children()))


def _graph(network: nn.Module, x: Tensor, precision: str) -> str | None:
    """Record the training pass; returns why it is as before, if it is."""
    if x.device.type != "cuda":
        return "they need CUDA"
    if columns_in(network):
        return "they record x and t alone, and this network takes a condition too"
    if not trains_by_forward(network):
        return "they record `forward`, which the training of this network does not call"
    t = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    eager = network.forward
    try:
        # A cache of cast weights would be part of the recording.
        with torch.autocast("cuda", HALF.get(precision), enabled=precision in HALF, cache_enabled=False):
            torch.cuda.make_graphed_callables(network, (x, t))
    except Exception as error:
        network.forward = eager
        return _first_line(error)
    return None


def _try(network: nn.Module, x: Tensor, precision: str) -> None:
    """A step's two passes, of which nothing remains."""
    with autocast(x.device, precision):
        out = training_pass(network, x, torch.zeros(len(x), dtype=torch.int64, device=x.device))
    out.float().square().mean().backward()
    network.zero_grad(set_to_none=True)


def _first_line(error: Exception) -> str:
    """The gist of an exception that may have pages; of a compiler's, that of the one within."""
    error = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# The stored data of a step, and a value of each column.
Gathered = tuple[Tensor, dict[str, Tensor]]


def batches(data: TrainingData, indices: Callable[[int], Any], device: torch.device) -> Callable[[int], Gathered]:
    """step → the stored data at that step's indices and their columns; for a GPU gathered into page-locked memory."""
    datum = data.images.rows(np.zeros(1, np.int64))
    dtype = torch.from_numpy(datum).dtype

    def gather(step: int) -> Gathered:
        chosen = indices(step)
        batch = torch.empty((len(chosen), *datum.shape[1:]), dtype=dtype, pin_memory=device.type == "cuda")
        data.images.rows(chosen, out=batch.numpy())
        return batch, {name: torch.from_numpy(values.at(chosen, step)) for name, values in data.columns.items()}

    return gather


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within the block the network is as for sampling, and nothing is compiled for that; then as for training again."""
    network.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        network.train()
