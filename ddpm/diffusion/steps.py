"""What a sampler is asked for, and the rows that it answers with (numpy only)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddpm.diffusion.schedules import Float64, Schedule

Columns = dict[str, Float64]
MOST_LANGEVIN_STEPS = 1000
LANGEVIN_STEPS = 5  # at each level, where none are asked for: NCSNv2's


class Choices(NamedTuple):
    """What a plan asks of its sampler; each sampler uses some of it.

    Attributes:
        steps: rows of the table, which are evaluations of the network.
        variance: one of `VARIANCES`.
        eta: DDIM's share of noise, 0..1.
        churn: S_churn of Karras et al. 2022, algorithm 2; 0: none.
        churn_interval: S_tmin and S_tmax: the σ between which there is churn; None: everywhere.
        churn_noise: S_noise.
        langevin_steps: at each level.
        langevin_epsilon: ε of Song & Ermon 2019, algorithm 1; None: by NCSNv2's technique 4.
    """

    steps: int
    variance: str = "fixed_small"
    eta: float = 0.0
    churn: float = 0.0
    churn_interval: Sequence[float] | None = None
    churn_noise: float = 1.0
    langevin_steps: int = LANGEVIN_STEPS
    langevin_epsilon: float | None = None


class Steps(NamedTuple):
    """The rows of a sampler, from the last to the first.

    Attributes:
        columns: [S] each.
        levels: those at which the network is evaluated, ascending.
        at: [S], which of them each row is at.
    """

    columns: Columns
    levels: Schedule
    at: NDArray[np.int64]
