"""What a training is asked for, and what it tells meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from ddpm.training.ema import EMA


@dataclass(frozen=True)
class LossPoint:
    """A point of the loss curve: the means over `log_every` steps up to and including `step` (counted from 1)."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float


@dataclass(frozen=True)
class TrainingOptions:
    """The optimiser, and how the work is done. `params.yaml` describes each under `training`."""

    seed: int = 0
    """Of the batches, timesteps, noise and dropout."""
    steps: int = 800_000
    batch_size: int = 128
    """Of all processes together."""
    micro_batch_size: int | Literal["auto"] | None = None
    """Data at once on a device; auto: halved when the memory runs out; None: the whole batch."""
    learning_rate: float = 2e-4
    warmup_steps: int = 5000
    """Linear rise of the learning rate."""
    decay: str = "constant"
    """Of the learning rate after the rise: "constant" or "cosine", to 0 at the last step."""
    weight_decay: float = 0.0
    """AdamW's, of all parameters; 0: none."""
    grad_clip: float | None = 1.0
    """Largest gradient norm; None: no limit."""
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    """A smaller decay in the first steps."""
    ema_snapshots: int = 0
    """Of the averages of `power_ema`; 0: none are kept."""
    timestep_sampler: str = "uniform"
    """Or "importance": by the size of the latest losses."""
    precision: str = "fp32"
    """Autocast of the forward pass: "fp32", "bf16" or "fp16"."""
    prefetch: int = 0
    """Batches gathered ahead, by a thread."""
    log_every: int = 100
    """Steps that a point of the loss curve averages over."""
    checkpoint_every: int = 1000
    rewind: int = 0
    """Times to go back to a checkpoint, and on with other noise, where the loss is NaN or infinite."""


def _nothing(*arguments: object) -> None:
    """A hook that does nothing."""


@dataclass(frozen=True)
class Hooks:
    """What is called during a training."""

    on_resume: Callable[[int], object] = _nothing
    """Once, with the steps that a checkpoint had done."""
    on_rewind: Callable[[str, int], object] = _nothing
    """With the reason, and the steps that the checkpoint had done."""
    on_less_memory: Callable[[int], object] = _nothing
    """With the number of data at once that is tried from now on."""
    on_losses: Callable[[Tensor, Tensor], object] = _nothing
    """Of every step: t and losses, both [N], on the device."""
    on_average: Callable[[int, EMA], object] = _nothing
    """After every step, with the steps done."""
    on_snapshot: Callable[[int, dict[str, Tensor]], object] = _nothing
    """With the steps done and the live averages of `power_ema`, in the first process, before the step's checkpoint."""
    on_step: Callable[[int], object] = _nothing
    """After every step, with the steps done."""
    on_point: Callable[[LossPoint], object] = _nothing
    """After every point of the loss curve."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked after every step."""


NO_HOOKS = Hooks()
