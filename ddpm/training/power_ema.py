"""Post-hoc EMA: averages of the weights whose length is chosen after the training (Karras et al. 2024, §3).

Two averages with power-function profiles are kept in training, and snapshots of them. The average of any other length
is a combination of the snapshots: the one whose profile over the training is nearest, by least squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpm.errors import UserError
from ddpm.training.ema import trainable

LENGTHS = (0.05, 0.10)  # σ_rel of the two averages
SNAPSHOTS = "snapshots"  # the folder of a model, or of a training's state
LONGEST = 0.28  # σ_rel of γ → 0, in which all steps count alike, is 1/√12 = 0.289


def exponent(length: float) -> float:
    """γ of the profile τ^γ whose standard deviation is `length` of the training (algorithm 2).

    Raises:
        ValueError: the length is not in (0, 0.28].
    """
    if not 0 < length <= LONGEST:
        raise ValueError(f"a length must be in (0, {LONGEST}], a share of the training, found {length:g}")
    inverse = length**-2.0
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class PowerAverages:
    """Averages of the parameters that a network trains, one for each of `LENGTHS`: of step k with the weight k^γ."""

    def __init__(self, network: nn.Module) -> None:
        self._names = [name for name, each in network.named_parameters() if each.requires_grad]
        self._parameters = trainable(network)
        self._exponents = [exponent(length) for length in LENGTHS]
        self._averages = [[each.detach().clone() for each in self._parameters] for _ in LENGTHS]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step`, counted from 0 (eq. 1: β = (1 − 1/t)^(γ+1))."""
        for gamma, averages in zip(self._exponents, self._averages, strict=True):
            kept = (1 - 1 / (step + 1)) ** (gamma + 1)
            torch._foreach_lerp_(averages, self._parameters, 1 - kept)

    def tensors(self) -> dict[str, Tensor]:
        """The live averages, by length and parameter."""
        return {
            f"{length:g}.{name}": tensor
            for length, averages in zip(LENGTHS, self._averages, strict=True)
            for name, tensor in zip(self._names, averages, strict=True)
        }


def snapshot_steps(steps: int, count: int) -> set[int]:
    """The steps after which a training of `steps` keeps one of `count` snapshots: even, and the last."""
    return {round(steps * (number + 1) / count) for number in range(count)} - {0}


def write_snapshot(directory: Path, step: int, tensors: dict[str, Tensor]) -> None:
    """Write one snapshot as `step-….safetensors`."""
    from safetensors.torch import save_file

    from ddpm.files import atomic_file

    directory.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_file(directory / f"step-{step:09d}.safetensors") as temporary:
        save_file(kept, temporary)


class Profile(NamedTuple):
    """An average: which steps it weighs how."""

    step: int
    length: float


def overlap(one: Profile, other: Profile) -> float:
    """∫ p q of two profiles p(τ) = (γ+1) τ^γ / t^(γ+1) up to t."""
    (first, a), (second, b) = ((each.step, exponent(each.length)) for each in (one, other))
    # In logarithms, since the powers overflow.
    log = (a + b + 1) * np.log(min(first, second)) - (a + 1) * np.log(first) - (b + 1) * np.log(second)
    return float((a + 1) * (b + 1) / (a + b + 1) * np.exp(log))


def combination(snapshots: Sequence[Profile], wanted: Profile) -> NDArray[np.float64]:
    """The weights of snapshots whose sum has the profile nearest to the wanted one (algorithm 3), [K]."""
    among = np.array([[overlap(one, other) for other in snapshots] for one in snapshots])
    return np.linalg.lstsq(among, np.array([overlap(each, wanted) for each in snapshots]), rcond=1e-12)[0]


def reconstructed(directory: Path, length: float) -> dict[str, Tensor]:
    """The average of a length at the end of the training, by parameter, in float32.

    Args:
        directory: of the model; its snapshots are read one by one.

    Raises:
        UserError: it has no snapshots, or one is damaged.
        ValueError: as `exponent`.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted((directory / SNAPSHOTS).glob("step-*.safetensors"))
    if not files:
        raise UserError(
            f"{directory} has no snapshots of averages: set training.ema_snapshots, such as 16, and train it again"
        )
    steps = [int(path.stem.removeprefix("step-")) for path in files]
    profiles = [Profile(step, each) for step in steps for each in LENGTHS]
    weights = iter(combination(profiles, Profile(steps[-1], length)).tolist())
    found: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as snapshot:
                for each in LENGTHS:
                    _add(found, snapshot, f"{each:g}.", next(weights))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: damaged: {error}") from None
    return {name: tensor.float() for name, tensor in found.items()}


def _add(found: dict[str, Tensor], snapshot: object, prefix: str, weight: float) -> None:
    for name in snapshot.keys():  # type: ignore[attr-defined]  # noqa: SIM118  # not a mapping
        if name.startswith(prefix):
            tensor = snapshot.get_tensor(name).double()  # type: ignore[attr-defined]
            short = name.removeprefix(prefix)
            found[short] = tensor * weight if short not in found else found[short].add_(tensor, alpha=weight)
