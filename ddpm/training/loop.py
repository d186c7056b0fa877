"""The training loop: Algorithm 1 of Ho et al. 2020, from any step to the last."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.codecs.scale import encode_pixels
from ddpm.compute.parallel import ALONE, Ranks
from ddpm.data.loader import TrainingImages, batch_indices
from ddpm.data.prefetch import Prefetch
from ddpm.diffusion.objectives import L_SIMPLE, Objective
from ddpm.diffusion.process import GaussianProcess
from ddpm.errors import Interrupted, ran_out
from ddpm.training.adam import Adam
from ddpm.training.checkpoint import Checkpoints
from ddpm.training.ema import EMA
from ddpm.training.memory import OutOfMemoryError, micro_batches
from ddpm.training.speed import autocast, batches
from ddpm.training.timesteps import TIMESTEP_SAMPLERS, TimestepSampler


class DivergedError(Exception):
    """The loss stopped being a number."""


@dataclass(frozen=True)
class LossPoint:
    """A point of the loss curve: the means over `log_every` steps up to and including `step` (counted from 1)."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float


@dataclass
class TrainingState:
    """All that a run carries from one step to the next. Randomness is not: step k's is a function of (seed, k)."""

    network: nn.Module
    optimizer: Adam
    ema: EMA
    timesteps: TimestepSampler
    scaler: torch.amp.GradScaler
    window: Tensor  # [≥ log_every, 2] loss and gradient norm of the steps since the last point, on the device
    at_once: int  # data of a batch that go through the network together
    step: int = 0  # steps done
    pending: int = 0  # rows of the window that are filled
    rewound: int = 0  # times that the run went back after its loss was no number
    curve: list[LossPoint] = field(default_factory=list)


def train(
    network: nn.Module,
    process: GaussianProcess,
    images: TrainingImages,
    *,
    seed: int,  # of the batches, timesteps, noise and dropout
    steps: int = 800_000,  # optimiser steps
    batch_size: int = 128,  # of all processes together
    micro_batch_size: int | Literal["auto"] | None = None,  # as many at once, for want of memory; auto: halved at need
    learning_rate: float = 2e-4,
    warmup_steps: int = 5000,  # linear rise of the learning rate
    decay: str = "constant",  # of the learning rate after the rise: "constant" or "cosine", to 0 at the last step
    grad_clip: float | None = 1.0,  # largest gradient norm; None: no limit
    ema_decay: float = 0.9999,
    ema_warmup: bool = True,  # a smaller decay in the first steps
    encode: Callable[[Tensor], Tensor] = encode_pixels,  # stored data → [N, C, ...] in about [−1, 1]
    horizontal_flip: bool = False,
    objective: Objective = L_SIMPLE,
    timestep_sampler: str = "uniform",  # or "importance": by the size of the latest losses
    precision: str = "fp32",  # autocast of the forward pass: "fp32", "bf16" or "fp16"
    prefetch: int = 0,  # batches gathered ahead, by a thread
    log_every: int = 100,  # steps a point of the loss curve averages over
    checkpoint_every: int = 1000,
    checkpoints: Checkpoints | None = None,  # None: nothing is saved, nothing is resumed
    rewind: int = 0,  # times to go back to a checkpoint, and on with other noise, where the loss is no number
    ranks: Ranks = ALONE,  # this process among those that train together
    on_resume: Callable[[int], object] = lambda step: None,  # once, with the steps that a checkpoint had done
    on_rewind: Callable[[str, int], object] = lambda why, step: None,  # with the steps that the checkpoint had done
    on_less_memory: Callable[[int], object] = lambda at_once: None,  # with as many as are tried at once from now on
    on_losses: Callable[[Tensor, Tensor], object] = lambda t, losses: None,  # of every step: both [N], on the device
    on_average: Callable[[int, EMA], object] = lambda step, ema: None,  # after every step, with the steps done
    on_step: Callable[[int], object] = lambda step: None,  # after every step, with the steps done
    on_point: Callable[[LossPoint], object] = lambda point: None,  # after every point of the loss curve
    should_stop: Callable[[], bool] = lambda: False,  # asked after every step
) -> list[LossPoint]:
    """Train the network in place, continuing from the newest checkpoint; at the end it holds the averaged weights.

    On the CPU, with the same number of threads and of processes, an interrupted and continued run ends in the same bits
    as an uninterrupted one. Several processes take the steps that one would take, up to rounding; their dropout is as
    good, but not the same. So it is with micro-batches.

    Returns:
        The loss curve from the first step.

    Raises:
        DivergedError: the loss is NaN or infinite; the checkpoint before it stays.
        OutOfMemoryError: as many data at once do not fit, and fewer are not to be tried.
        Interrupted: `should_stop` said so; the state is saved.
    """
    device = next(network.parameters()).device
    network.train()
    sampler = TIMESTEP_SAMPLERS[timestep_sampler](process.timesteps)
    at_once = micro_batch_size if isinstance(micro_batch_size, int) else batch_size
    ema = EMA(network, ema_decay, warmup=ema_warmup)
    state = _initial_state(network, sampler, ema, log_every, at_once, fp16=precision == "fp16")
    if _restored(state, checkpoints, ranks):
        on_resume(state.step)
    elif checkpoints is not None and rewind and ranks.first:
        checkpoints.save(0, *_saved(state))
    part = ranks.part_of(batch_size)

    gather = batches(images, lambda step: batch_indices(len(images), batch_size, step, seed)[part], device)
    stored = Prefetch(gather, prefetch, steps)

    while state.step < steps:
        step = state.step
        rate = rate_at(step, steps, learning_rate, warmup_steps, decay)

        # Everything random in a step, dropout too, follows from this one seed. What is drawn of each datum is drawn
        # for the whole batch, so that it does not depend on how many processes share it.
        random_seed = step_seed(seed, step, state.rewound)
        torch.manual_seed(random_seed)
        x0 = encode(stored(step).to(device, non_blocking=True))
        if horizontal_flip:
            mirrored = torch.rand(batch_size, *[1] * (x0.ndim - 1), device=device)[part] < 0.5
            x0 = torch.where(mirrored, x0.flip(-1), x0)
        t, weights = state.timesteps.draw(batch_size, device)
        noise = _noise_like(x0, batch_size)[part]
        if not ranks.first:
            torch.manual_seed(ranks.own_seed(random_seed))  # of dropout

        state.optimizer.zero_grad()
        losses = x0.new_zeros(batch_size)
        try:
            for rows in micro_batches(len(x0), state.at_once):
                with autocast(device, precision):
                    some = objective.training_losses(process, network, x0[rows], t[part][rows], noise[rows])
                    loss = (some if weights is None else some * weights[part][rows]).mean()
                state.scaler.scale(loss * (len(some) / batch_size)).backward()
                losses[part][rows] = some.detach()
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            # Other processes would not know that this one begins its step again.
            if micro_batch_size != "auto" or state.at_once == 1 or ranks.count > 1:
                raise OutOfMemoryError(state.at_once) from None
            state.at_once = (state.at_once + 1) // 2
            on_less_memory(state.at_once)
            continue
        ranks.add_up([*(p.grad for p in network.parameters() if p.grad is not None), losses])
        loss = (losses if weights is None else losses * weights).mean()
        state.timesteps.update(t, losses)
        on_losses(t, losses)
        state.scaler.unscale_(state.optimizer)  # type: ignore[arg-type]  # it has what a scaler asks for
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        if grad_clip is not None:
            nn.utils.clip_grads_with_norm_(network.parameters(), grad_clip, norm, foreach=True)
        state.scaler.step(state.optimizer, rate)  # type: ignore[arg-type]
        state.scaler.update()
        state.ema.update(step)

        # The two numbers stay on the device until a point is due, so that the GPU is not waited for.
        state.window[state.pending] = torch.stack([loss, norm])
        state.pending += 1
        state.step += 1
        on_average(state.step, state.ema)
        stopping = ranks.any(should_stop())
        due = checkpoints is not None and (stopping or state.step == steps or state.step % checkpoint_every == 0)
        try:
            if state.step % log_every == 0 or state.step == steps:
                state.curve.append(_point(state, rate))
                state.pending = 0
                on_point(state.curve[-1])
            elif due:
                _check_finite(state)
        except DivergedError as error:
            rewound = state.rewound + 1
            if rewound > rewind or not _restored(state, checkpoints, ranks):
                raise
            state.rewound = rewound
            on_rewind(str(error), state.step)
            continue
        on_step(state.step)
        if due and checkpoints is not None and ranks.first:
            checkpoints.save(state.step, *_saved(state))
        if stopping:
            raise Interrupted(f"stopped at step {state.step} of {steps}; the same command continues from there")

    state.ema.copy_to(network)
    network.eval()
    return state.curve


def rate_at(step: int, steps: int, peak: float, warmup_steps: int, decay: str) -> float:
    """The learning rate of a step: a linear rise over the first `warmup_steps`, then constant or a half cosine to 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if decay == "constant":
        return peak
    done = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def step_seed(seed: int, step: int, rewound: int = 0) -> int:
    """The seed of one step; no two steps of a run share one (below 2³² steps). Each rewinding has seeds of its own."""
    base = int(np.random.SeedSequence([seed, rewound] if rewound else seed).generate_state(1)[0])
    return (base + step) % 2**32


def _noise_like(x0: Tensor, count: int) -> Tensor:
    """Noise for `count` data like those of x0 and laid out as they are, which decides where a drawn number goes."""
    datum = x0.shape[1:]
    return torch.randn_like(x0.new_empty_strided((count, *datum), (math.prod(datum), *x0.stride()[1:])))


def _initial_state(
    network: nn.Module,
    timesteps: TimestepSampler,
    ema: EMA,
    log_every: int,
    at_once: int,
    *,
    fp16: bool,
) -> TrainingState:
    device = next(network.parameters()).device
    return TrainingState(
        network,
        Adam(network.parameters()),
        ema,
        timesteps,
        # bf16 has float32's range and needs no loss scaling.
        torch.amp.GradScaler(device.type, enabled=fp16),
        torch.zeros(log_every, 2, device=device),
        at_once,
    )


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    """Every tensor of a state by name; the live ones, not copies."""
    named = {"window": state.window}
    named |= {f"timesteps.{name}": tensor for name, tensor in state.timesteps.state().items()}
    for (name, parameter), average in zip(state.network.named_parameters(), state.ema.averages, strict=True):
        named[f"network.{name}"] = parameter.detach()
        named[f"ema.{name}"] = average
        named |= {f"adam.{key}.{name}": value for key, value in state.optimizer.state[parameter].items()}
    return named


def _saved(state: TrainingState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    # The curve is a tensor, since JSON has no word for the norm of a gradient that overflowed.
    curve = torch.tensor([list(vars(point).values()) for point in state.curve], dtype=torch.float64).reshape(-1, 4)
    facts = {
        "scaler": state.scaler.state_dict(),
        "at_once": state.at_once,
        "rewound": state.rewound,
        "pending": state.pending,
    }
    return {**_tensors(state), "curve": curve}, facts


@torch.no_grad()
def _restored(state: TrainingState, checkpoints: Checkpoints | None, ranks: Ranks) -> bool:
    """Fill the state from the newest checkpoint, if there is one, and make it the same in all processes."""
    tensors, facts = (checkpoints.latest() if checkpoints is not None and ranks.first else None) or ({}, {})
    curve, window, facts = ranks.of_first(
        (tensors["curve"].tolist(), _unfinished(tensors["window"], facts), facts)
        if facts
        else ([], torch.zeros(0, 2), {})
    )
    if not facts:
        ranks.copy_first(_tensors(state).values())
        return False
    # The checkpoint may be of a run with another log_every.
    state.pending = len(window)
    state.window = torch.cat([window.to(state.window), torch.zeros_like(state.window)])
    live = _tensors(state)
    del live["window"]
    for name in live if ranks.first else ():
        live[name].copy_(tensors[name])
    ranks.copy_first(live.values())
    state.step, state.at_once, state.rewound = facts["step"], facts["at_once"], facts["rewound"]
    state.curve = [LossPoint(int(step), *values) for step, *values in curve]
    if facts["scaler"]:
        state.scaler.load_state_dict(facts["scaler"])
    return True


def _unfinished(window: Tensor, facts: Mapping[str, Any]) -> Tensor:
    """The filled rows of a saved window. A state without their number has a window of log_every rows."""
    return window[: facts.get("pending", facts.get("step", 0) % len(window))]


def _check_finite(state: TrainingState) -> Tensor:
    """The losses and norms since the last point, [k, 2] on the CPU.

    Raises:
        DivergedError: one of them is not finite. Under loss scaling a norm may be: that step was skipped.
    """
    window = state.window[: state.pending].cpu()
    names = ("loss",) if state.scaler.is_enabled() else ("loss", "gradient norm")
    for column, name in enumerate(names):
        bad = (~torch.isfinite(window[:, column])).nonzero()
        if len(bad):
            step = state.step - state.pending + int(bad[0]) + 1
            raise DivergedError(f"the {name} is {window[bad[0], column].item()} at step {step}")
    return window


def _point(state: TrainingState, rate: float) -> LossPoint:
    losses, norms = _check_finite(state).double().unbind(1)
    return LossPoint(state.step, losses.mean().item(), norms[torch.isfinite(norms)].mean().item(), rate)
