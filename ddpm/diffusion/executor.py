"""How a sampling plan is run, once for torch's tensors and numpy's arrays (needs neither library).

`diffusion.sampling` runs it with torch and `deploy.runtime` with numpy. The loop of sampler.onnx is `export.loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from ddpm.diffusion.known import Known
from ddpm.diffusion.plans import Row, SamplingPlan

Array = TypeVar("Array", bound=Any)


class Library(NamedTuple, Generic[Array]):
    """What a plan needs of the library of its arrays, beyond their arithmetic.

    Attributes:
        zeros_like: of an array's shape and type.
        exp: of each number.
        where: (mask, values where it is true, values elsewhere).
        times: (x, t) → the network's input t of each datum, [N] int64, or in x's precision if t is a float.
        hold: (x̂_0, row) → x̂_0 within the row's bounds; NaN and ±∞ become NaN. May write into its input.
    """

    zeros_like: Callable[[Array], Array]
    exp: Callable[[Array], Array]
    where: Callable[[Array, Array, Array], Array]
    times: Callable[[Array, float], Array]
    hold: Callable[[Array, Row], Array]


def trajectory(
    library: Library[Array],
    denoise: Any,
    plan: SamplingPlan,
    x: Array,
    draw: Callable[[], Array],
    known: Known[Array] | None,
) -> Iterator[tuple[Array, Array]]:
    """Run the plan, yielding (x after the row, the row's x̂_0) for every row.

    Args:
        denoise: the network, (its input [N, C, ...], t [N]) → its output, [N, C, ...] or, with a learned variance,
            [N, 2C, ...]. A plan with guidance or control needs one with the methods `guided`, `gradient` or
            `controlled`.
        x: x_T, [N, C, ...].
        draw: gives the z of each row that adds noise, shaped like x.
        known: what is known of x_0.
    """
    state: Any = x
    x0 = previous = library.zeros_like(x)
    for t, row in plan.rows():
        z = draw() if row.to_noise or row.known_noise else 0.0
        if row.x0_from_out:
            state, found = _denoised(library, denoise, t, row, state, (x0, previous), z, known)
            x0, previous = found, x0
        else:  # back into the noise
            state = row.to_x * state + row.to_noise * z
        if known is not None and row.known_x0:
            part: Any = row.known_x0 * known.x0 + row.known_noise * z
            state = library.where(known.mask, part, state)
        yield state, x0


def _denoised(
    library: Library[Array],
    denoise: Any,
    t: float,
    row: Row,
    x: Array,
    before: tuple[Array, Array],
    z: Array | float,
    known: Known[Array] | None,
) -> tuple[Array, Array]:
    """One row that asks the network: (x after it, its x̂_0).

    Args:
        before: x̂_0 of the row before it, and of the one before that.
    """
    times = library.times(x, t)
    seen, channels = x if row.input_scale == 1 else row.input_scale * x, x.shape[1]
    if row.control is not None:  # only a `conditioning.control_weights.Steered` is given such rows
        denoise = denoise.controlled(row.control)
    weight = 0.0 if row.mean_shift else row.guidance
    # Only a `conditioning.guidance.Guided`, or a counterpart of `deploy.guidance`, is given rows with a weight.
    out = denoise.guided(seen, times, weight) if weight else denoise(seen, times)
    shift = _mean_shift(library, denoise, seen, times, row, out[:, channels:]) if row.mean_shift else None
    x0 = library.hold(row.x0_from_x * x + row.x0_from_out * out[:, :channels], row)
    if known is not None:
        x0 = library.where(known.mask, known.x0, x0)
    after: Any = row.to_x0 * x0 + row.to_x * x
    if row.to_prev:
        after += row.to_prev * before[0]
    if row.to_prev2:
        after += row.to_prev2 * before[1]
    if row.log_noise_from_out and row.to_noise:
        after += row.to_noise * library.exp(row.log_noise_from_out * out[:, channels:]) * z
    elif row.to_noise:
        after += row.to_noise * z
    if shift is not None:
        after += shift
    return after, x0


def _mean_shift(library: Library[Array], denoise: Any, x: Array, t: Array, row: Row, v: Array) -> Array:
    """w Σ ∇_x log p(y | x_t); only a guide by gradient is given such rows."""
    shift: Any = row.mean_shift * denoise.gradient(x, t)
    log_factor: Any = 2 * row.log_noise_from_out * v
    return shift * library.exp(log_factor) if row.log_noise_from_out else shift
