"""`ddpm train V --dry-run`: what training and evaluation would cost on this machine, by a short trial.

Nothing is written.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ddpm.codecs.embedding import Embedding
from ddpm.codecs.scale import Codec
from ddpm.compute.device import pick_device, resolve_precision
from ddpm.conditioning.columns import Column
from ddpm.config.model import VariantConfig
from ddpm.config.params import PARAMS_FILE, Params
from ddpm.data.store import PreparedData, Split
from ddpm.diffusion.coordinates import Coordinates
from ddpm.diffusion.langevin import enough_levels
from ddpm.diffusion.plans import plan_for
from ddpm.errors import Interrupted, UserError, ran_out
from ddpm.evaluation.classifier import accuracy_evaluations, levels_of
from ddpm.evaluation.distances import chosen
from ddpm.evaluation.likelihood import likelihood_evaluations, ode_evaluations
from ddpm.first_stage import LatentFacts
from ddpm.layout import PREPARED
from ddpm.model.network import codec_of, columns_for
from ddpm.model.process import check_end
from ddpm.stages.encoder import used_encoder, warn_of_pairs_twice
from ddpm.stages.latents import first_stage
from ddpm.stages.memory import fewer_values, free_memory, mib, no_room_for_one, smaller, without_memory
from ddpm.stages.train import data_facts
from ddpm.training.configured import initial, make_fast, parameter_count, train_configured
from ddpm.training.cost import free_bytes, state_bytes, training_bytes, training_flops
from ddpm.training.options import Hooks
from ddpm.training.speed import evaluating

TRIAL_SECONDS, FORWARD_SECONDS = 5.0, 1.0
MOST_DISTANCES = 5000  # data among which the largest distance is looked for
WARM_UP, LEAST = 2, 5  # steps that are not timed, and steps that a trial has at least


def dry_run(params: Params, variant: str, *, root: Path = Path()) -> list[str]:
    """The lines that say parameters, operations, memory, and the time of training and evaluation.

    Where the memory is too small for `micro_batch_size`, it is halved until a step fits, and the lines say so. Where it
    is too small for the network, there is no trial, and the lines say what would fit.

    Raises:
        UserError: as `ddpm train` would, but for want of memory.
    """
    config, data, device = params.variant(variant), PreparedData.open(root / PREPARED), pick_device()
    check_end(config, f"models.{variant}.process")
    where = f"models.{variant}"
    first = first_stage(config, data, where, device, root=root)
    codec = codec_of(config, data.codec, where) if first is None else first.codec
    split = (data if first is None else first.latents).split("train")
    facts, used = data_facts(data, config, where, root), used_encoder(config, data, where, device, root=root)
    if used is not None:
        config, codec, split, facts = (
            used.described(config),
            used.codec(codec),
            used.train_split(split),
            used.told(facts),
        )
    warn_of_pairs_twice(config, len(split), where)
    columns = columns_for(config, facts, where)
    unreal, shape = without_memory(config, codec, columns, f"{PARAMS_FILE}: {where}"), codec.network_shape
    flops, needed, free = training_flops(unreal, shape), state_bytes(unreal), free_bytes(device)
    tried = None
    if free is None or needed <= free:
        try:
            latent = None if first is None else first.facts
            tried = _tried(params, config, data, codec, split, variant, flops, columns, root, latent)
        except Exception as error:
            if not ran_out(error):
                raise
    if tried is None and (free is None or needed <= free):
        advice = f"{no_room_for_one(codec, device)}: {fewer_values(config, variant)}"
    else:
        advice = f"which do not fit ({free_memory(device)}): {smaller(config, variant)}"
    precision = resolve_precision(config.training.precision, device)
    what = "a trial" if tried else "no trial for want of memory"
    return [
        f"{variant} on {device.type}, {precision}; {what}, nothing is written",
        f"  parameters     {parameter_count(unreal):,}",
        *_techniques(config, data, codec),
        *(
            tried
            or [
                f"  operations     {flops / 1e9:.3g} GFLOP for one of the {_kind(codec)}, forward and backward",
                f"  memory         {mib(needed)} for weights, gradients, moments and averages, {advice}",
            ]
        ),
    ]


def _tried(
    params: Params,
    config: VariantConfig,
    data: PreparedData,
    codec: Codec,
    split: Split,
    variant: str,
    flops: int,
    columns: Sequence[Column],
    root: Path,
    latent: LatentFacts | None,
) -> list[str]:
    """The lines that a trial has to say.

    Args:
        split: that is trained on.
        flops: of a datum's forward and backward pass.
        columns: that the network is conditioned on.
        root: the project's folder.
        latent: the autoencoder, of a model of latents.

    Raises:
        MemoryError, RuntimeError, OutOfMemoryError: the memory does not suffice for one datum.
    """
    options, shape, kind = config.training, codec.network_shape, _kind(codec)
    network, device, precision, *_ = initial(
        params.seed, config, codec, columns, where=f"{PARAMS_FILE}: models.{variant}", root=root, latent=latent
    )
    weights, activations = training_bytes(network, shape, options.batch_size, precision)
    make_fast(network, options, codec, precision)
    asked = options.micro_batch_size if isinstance(options.micro_batch_size, int) else options.batch_size
    at_once = _halved(asked, weights, activations / options.batch_size, device)
    trial = _trial(network, params, config, split, codec, precision, at_once)
    speed = options.batch_size / trial.step
    memory = f"{mib(weights)} for weights, gradients, moments and averages; "
    memory += f"about {mib(activations)} for a batch of {options.batch_size}"
    if trial.at_once < asked:
        needed = activations * trial.at_once / options.batch_size
        memory += (
            f", which does not fit ({free_memory(device)}): set models.{variant}.training.micro_batch_size to "
            f"{trial.at_once}, about {mib(needed)}; the trial ran with it"
        )
    return [
        f"  operations     {flops / 1e9:.3g} GFLOP for one of the {kind}, forward and backward; "
        f"{flops * speed / 1e9:,.0f} GFLOP/s",
        f"  memory         {memory}",
        f"  speed          {speed:,.1f} {kind}/s, {1000 * trial.step:,.1f} ms a step, of {trial.steps} steps",
        f"  {options.steps:,} steps  {duration(options.steps * trial.step)}",
        f"  evaluation     {_evaluation(params, config, data, _forward(network, shape, trial.at_once, device))}",
    ]


def _kind(codec: Codec) -> str:
    """What the data are, in the plural."""
    return codec.unit if isinstance(codec, Embedding) else codec.name


def _techniques(config: VariantConfig, data: PreparedData, codec: Codec) -> list[str]:
    """What NCSNv2's techniques 1 and 2 give for the data, of a process of geometric σ (Song & Ermon 2020, §3)."""
    if config.process.kind != "ve":
        return []
    split, sigma_min = data.split("train"), Coordinates.of(config.process.model_dump()).sigma_min
    rows = np.sort(chosen(len(split), MOST_DISTANCES, 0))
    x0 = codec.encode(torch.from_numpy(split.rows(rows))).flatten(1)
    furthest = float(torch.cdist(x0, x0).max())
    levels = enough_levels(x0.shape[1], sigma_min, furthest)
    return [
        f"  noise levels   by NCSNv2's techniques sigma_max {furthest:.3g}, the largest distance between "
        f"{len(rows):,} {codec.name}, and from sigma_min {sigma_min:g} at least {levels} timesteps"
    ]


class Trial(NamedTuple):
    """What a trial has found."""

    step: float  # seconds
    steps: int  # that were timed
    at_once: int  # of a batch that go through the network together


def _trial(
    network: nn.Module,
    params: Params,
    config: VariantConfig,
    split: Split,
    codec: Codec,
    precision: str,
    at_once: int,
) -> Trial:
    """Steps for some seconds; where the memory runs out, again with half as many at once."""
    device, ends = next(network.parameters()).device, list[float]()
    try:
        with contextlib.suppress(Interrupted):
            train_configured(
                network,
                config,
                codec,
                split,
                Hooks(
                    on_step=lambda step: ends.append(_now(device)),
                    should_stop=lambda: len(ends) > LEAST and ends[-1] - ends[0] > TRIAL_SECONDS,
                ),
                seed=params.seed,
                precision=precision,
                micro_batch_size=at_once,
            )
    except Exception as error:
        if at_once == 1 or not ran_out(error):
            raise
    else:
        timed = ends[min(WARM_UP, len(ends) - 1) :]
        step = (timed[-1] - timed[0]) / max(len(timed) - 1, 1) or math.nan
        return Trial(step, len(timed) - 1, at_once)
    network.zero_grad(set_to_none=True)
    return _trial(network, params, config, split, codec, precision, (at_once + 1) // 2)


def _halved(at_once: int, weights: float, each: float, device: torch.device) -> int:
    """As many at once, or so often halved that they may fit. On the CPU the kernel would end the process instead."""
    free = free_bytes(device)
    while free is not None and at_once > 1 and weights + at_once * each > free:
        at_once = (at_once + 1) // 2
    return at_once


@torch.inference_mode()
def _forward(network: nn.Module, shape: tuple[int, ...], count: int, device: torch.device) -> float:
    """Seconds of an evaluation of the network for a datum, as in sampling."""
    x, t = torch.zeros(count, *shape, device=device), torch.zeros(count, dtype=torch.int64, device=device)
    with evaluating(network):
        network(x, t)
        begin, done = _now(device), 0
        while done < 2 or _now(device) - begin < FORWARD_SECONDS:
            network(x, t)
            done += 1
        return (_now(device) - begin) / (done * count)


def _evaluation(params: Params, config: VariantConfig, data: PreparedData, each: float) -> str:
    """What `ddpm evaluate` will ask of the network, and how long that takes.

    Args:
        each: seconds of an evaluation of the network for a datum.
    """
    if config.codec.side is not None:
        return "as a part of a cascade"
    kinds = {"classifier": _accuracy, "autoencoder": _reconstruction, "clip": _embedding}
    what, total = kinds.get(config.network.kind, _drawing)(params, config, data)
    return f"{what}: {total:,} evaluations of the network, {duration(total * each)}, and the figures"


def _accuracy(params: Params, config: VariantConfig, data: PreparedData) -> tuple[str, int]:
    """What is evaluated of a classifier, and how many evaluations of the network that takes."""
    levels = len(levels_of(config.process.timesteps))
    what = f"{len(data.split('validation')):,} {data.codec.name} at {levels} levels of noise"
    return what, accuracy_evaluations(data, config.process.timesteps)


def _reconstruction(params: Params, config: VariantConfig, data: PreparedData) -> tuple[str, int]:
    """As `_accuracy`, of an autoencoder."""
    count = len(data.split("validation"))
    return f"{count:,} {data.codec.name}, encoded and decoded", count


def _embedding(params: Params, config: VariantConfig, data: PreparedData) -> tuple[str, int]:
    """As `_accuracy`, of a CLIP."""
    counts = data.manifest.counts
    return f"all {data.codec.name} and their captions, embedded", counts.train + counts.validation


def _drawing(params: Params, config: VariantConfig, data: PreparedData) -> tuple[str, int]:
    """As `_accuracy`, of a model that draws."""
    options = params.evaluation
    sampling = options.sampling or config.sampling
    try:
        chosen, bounded = sampling.model_dump(exclude={"guide"}), config.codec.bounded
        steps = plan_for(config.process.model_dump(), chosen, bounded=bounded).evaluations
    except ValueError as error:
        raise UserError(f"sampling: {error}") from None
    process = config.process.timesteps, config.process.continuous
    # Of latents there is none.
    likelihood = (
        likelihood_evaluations(data, options, *process) + ode_evaluations(data, options, *process) if bounded else 0
    )
    of_likelihood = f", and {likelihood:,} for the likelihood" if likelihood else ""
    what = f"{options.samples:,} {data.codec.name} in {steps} steps{of_likelihood}"
    return what, options.samples * steps + likelihood


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def duration(seconds: float) -> str:
    """In the units that people plan in."""
    if not math.isfinite(seconds):
        return "in no time that could be measured"
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"about {hours // 24} d {hours % 24} h" if hours >= 48 else f"about {hours} h {minutes} min"
