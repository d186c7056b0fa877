"""`ddpm train V --dry-run`: what a training would cost on this machine, told by a short trial that writes nothing."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path

import torch

from ddpm.config import Params
from ddpm.data.store import PreparedData
from ddpm.errors import Interrupted
from ddpm.layout import PREPARED
from ddpm.model import build_process, check_end
from ddpm.stages.train import initial, loop_options, make_fast
from ddpm.training.cost import training_bytes, training_flops
from ddpm.training.loop import train

TRIAL_SECONDS = 5.0
WARM_UP, LEAST = 2, 5  # steps that are not timed, and steps that a trial has at least


def dry_run(params: Params, variant: str, *, root: Path = Path()) -> list[str]:
    """The lines that tell parameters, operations, memory and time.

    Raises:
        UserError: as `ddpm train` would.
    """
    config, data = params.variant(variant), PreparedData.open(root / PREPARED)
    check_end(config, f"models.{variant}.process")
    options, shape = config.training, data.kind.network_shape
    network, device, precision = initial(params.seed, config, data.kind)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    flops = training_flops(network, shape)
    weights, activations = training_bytes(network, shape, options.batch_size, precision)
    make_fast(network, options, data.kind, precision)

    ends: list[float] = []
    with contextlib.suppress(Interrupted):
        train(
            network,
            build_process(config, device, data.kind.levels),
            data.split("train"),
            seed=params.seed,
            encode=data.kind.encode,
            precision=precision,
            on_step=lambda step: ends.append(_now(device)),
            should_stop=lambda: len(ends) > LEAST and ends[-1] - ends[0] > TRIAL_SECONDS,
            **loop_options(config, device),
        )
    timed = ends[min(WARM_UP, len(ends) - 1) :]
    step = (timed[-1] - timed[0]) / max(len(timed) - 1, 1) or math.nan
    speed = options.batch_size / step
    return [
        f"{variant} on {device.type}, {precision}; a trial, nothing is written",
        f"  parameters     {parameters:,}",
        f"  operations     {flops / 1e9:.3g} GFLOP an image, forward and backward; {flops * speed / 1e9:,.0f} GFLOP/s",
        f"  memory         {_mib(weights)} for weights, gradients, moments and averages; "
        f"about {_mib(activations)} for a batch of {options.batch_size}",
        f"  speed          {speed:,.1f} images/s, {1000 * step:,.1f} ms a step, of {len(timed) - 1} steps",
        f"  {options.steps:,} steps  {_duration(options.steps * step)}",
    ]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def _duration(seconds: float) -> str:
    """In the units that people plan in."""
    if not math.isfinite(seconds):
        return "in no time that could be measured"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"about {hours // 24} d {hours % 24} h" if hours >= 48 else f"about {hours} h {minutes} min"
