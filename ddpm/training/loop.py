"""The training loop: Algorithm 1 of Ho et al. 2020, from any step to the last."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpm.compute.parallel import ALONE, Ranks
from ddpm.data.loader import TrainingData, batch_indices
from ddpm.data.prefetch import Prefetch
from ddpm.errors import Interrupted, ran_out
from ddpm.training.adam import Adam
from ddpm.training.checkpoint import Checkpoints
from ddpm.training.ema import EMA, trainable
from ddpm.training.memory import OutOfMemoryError, micro_batches
from ddpm.training.options import NO_HOOKS, Hooks, LossPoint, TrainingOptions
from ddpm.training.power_ema import PowerAverages, snapshot_steps
from ddpm.training.speed import autocast, batches
from ddpm.training.tasks import Batch, Task
from ddpm.training.timesteps import TimestepSampler, timestep_sampler

OPPONENT_BETAS = (0.5, 0.9)  # of Adam, of a discriminator: as in latent diffusion's code


class DivergedError(Exception):
    """The loss stopped being a number."""


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
    power: PowerAverages | None = None  # None: no snapshots are kept
    step: int = 0  # steps done
    pending: int = 0  # rows of the window that are filled
    rewound: int = 0  # times that the run went back after its loss was no number
    curve: list[LossPoint] = field(default_factory=list)
    opponent: nn.Module | None = None  # of an adversarial loss
    opponent_optimizer: Adam | None = None

    @property
    def optimizers(self) -> list[Adam]:
        return [self.optimizer, *([self.opponent_optimizer] if self.opponent_optimizer else [])]


def train(
    network: nn.Module,
    task: Task,
    data: TrainingData,
    options: TrainingOptions,
    hooks: Hooks = NO_HOOKS,
    *,
    checkpoints: Checkpoints | None = None,  # None: nothing is saved, nothing is resumed
    ranks: Ranks = ALONE,  # this process among those that train together
) -> list[LossPoint]:
    """Train the network in place, continuing from the newest checkpoint; at the end it holds the averaged weights.

    Parameters that need no gradient are frozen: they have no Adam, no average, and no place in checkpoints.

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
    parameters = trainable(network)
    device = parameters[0].device
    network.train()
    steps, batch_size = options.steps, options.batch_size
    state = _initial_state(network, task, options)
    if _restored(state, checkpoints, ranks):
        hooks.on_resume(state.step)
    elif checkpoints is not None and options.rewind and ranks.first:
        checkpoints.save(0, *_saved(state))
    part = ranks.part_of(batch_size)

    def indices(step: int) -> NDArray[np.int64]:
        return batch_indices(len(data.images), batch_size, step, options.seed)[part]

    snapshots = snapshot_steps(steps, options.ema_snapshots)
    stored = Prefetch(batches(data, indices, device), options.prefetch, steps)

    while state.step < steps:
        step = state.step
        rate = rate_at(step, steps, options.learning_rate, options.warmup_steps, options.decay)

        # Everything random in a step, dropout too, follows from this one seed. What is drawn of each datum is drawn
        # for the whole batch, so that it does not depend on how many processes share it.
        random_seed = step_seed(options.seed, step, state.rewound)
        torch.manual_seed(random_seed)
        gathered, given = stored(step)
        x0 = data.encode(gathered.to(device, non_blocking=True))
        if data.sample is not None:
            x0 = data.sample(x0, lambda like: _noise_like(like, batch_size)[part])
        given = {name: values.to(device, non_blocking=True) for name, values in given.items()}
        if data.horizontal_flip:
            mirrored = torch.rand(batch_size, *[1] * (x0.ndim - 1), device=device)[part] < 0.5
            x0 = torch.where(mirrored, x0.flip(-1), x0)
        t, weights = state.timesteps.draw(batch_size, device)
        noise = _noise_like(x0, batch_size)[part]
        batch = Batch(x0, given, torch.rand(batch_size, task.draws, device=device)[part], step)
        if not ranks.first:
            torch.manual_seed(ranks.own_seed(random_seed))  # of dropout

        for optimizer in state.optimizers:
            optimizer.zero_grad()
        losses = x0.new_zeros(batch_size)
        try:
            for rows in micro_batches(len(x0), state.at_once):
                with autocast(device, options.precision):
                    some = task.losses(network, batch.rows(rows), t[part][rows], noise[rows])
                    loss = (some if weights is None else some * weights[part][rows]).mean()
                state.scaler.scale(loss * (len(some) / batch_size)).backward()
                losses[part][rows] = some.detach()
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            # Other processes would not know that this one begins its step again.
            if options.micro_batch_size != "auto" or state.at_once == 1 or ranks.count > 1:
                raise OutOfMemoryError(state.at_once) from None
            state.at_once = (state.at_once + 1) // 2
            hooks.on_less_memory(state.at_once)
            continue
        gradients = _gradients(parameters)
        of_opponent = _gradients(state.opponent.parameters()) if state.opponent else []
        ranks.add_up([*gradients, *of_opponent, losses])
        loss = (losses if weights is None else losses * weights).mean()
        state.timesteps.update(t, losses)
        hooks.on_losses(t, losses)
        state.scaler.unscale_(state.optimizer)  # type: ignore[arg-type]  # it has what a scaler asks for
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        if options.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, options.grad_clip, norm, foreach=True)
        state.scaler.step(state.optimizer, rate)  # type: ignore[arg-type]
        if of_opponent:
            state.scaler.step(state.opponent_optimizer, rate)  # type: ignore[arg-type]
        state.scaler.update()
        state.ema.update(step)
        if state.power is not None:
            state.power.update(step)

        # The two numbers stay on the device until a point is due, so that the GPU is not waited for.
        state.window[state.pending] = torch.stack([loss, norm])
        state.pending += 1
        state.step += 1
        hooks.on_average(state.step, state.ema)
        stopping = ranks.any(hooks.should_stop())
        due = checkpoints is not None and (
            stopping or state.step == steps or state.step % options.checkpoint_every == 0
        )
        try:
            if state.step % options.log_every == 0 or state.step == steps:
                state.curve.append(_point(state, rate))
                state.pending = 0
                hooks.on_point(state.curve[-1])
            elif due:
                _check_finite(state)
        except DivergedError as error:
            rewound = state.rewound + 1
            if rewound > options.rewind or not _restored(state, checkpoints, ranks):
                raise
            state.rewound = rewound
            hooks.on_rewind(str(error), state.step)
            continue
        hooks.on_step(state.step)
        if state.step in snapshots and state.power is not None and ranks.first:
            hooks.on_snapshot(state.step, state.power.tensors())
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


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _initial_state(network: nn.Module, task: Task, options: TrainingOptions) -> TrainingState:
    device, at_once = next(network.parameters()).device, options.micro_batch_size
    return TrainingState(
        network,
        Adam(trainable(network), weight_decay=options.weight_decay),
        EMA(network, options.ema_decay, warmup=options.ema_warmup),
        timestep_sampler(options.timestep_sampler, task.timesteps, task.distribution),
        # bf16 has float32's range and needs no loss scaling.
        torch.amp.GradScaler(device.type, enabled=options.precision == "fp16"),
        torch.zeros(options.log_every, 2, device=device),
        at_once if isinstance(at_once, int) else options.batch_size,
        PowerAverages(network) if options.ema_snapshots else None,
        opponent=task.opponent,
        opponent_optimizer=Adam(task.opponent.parameters(), betas=OPPONENT_BETAS) if task.opponent else None,
    )


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    """Every tensor of a state by name; the live ones, not copies."""
    named = {"window": state.window}
    if state.power is not None:
        named |= {f"power.{name}": tensor for name, tensor in state.power.tensors().items()}
    named |= {f"timesteps.{name}": tensor for name, tensor in state.timesteps.state().items()}
    learned = [(name, parameter) for name, parameter in state.network.named_parameters() if parameter.requires_grad]
    for (name, parameter), average in zip(learned, state.ema.averages, strict=True):
        named[f"network.{name}"] = parameter.detach()
        named[f"ema.{name}"] = average
        named |= {f"adam.{key}.{name}": value for key, value in state.optimizer.state[parameter].items()}
    if state.opponent and state.opponent_optimizer:
        for name, parameter in state.opponent.named_parameters():
            named[f"opponent.{name}"] = parameter.detach()
            moments = state.opponent_optimizer.state[parameter]
            named |= {f"opponent.adam.{key}.{name}": value for key, value in moments.items()}
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
