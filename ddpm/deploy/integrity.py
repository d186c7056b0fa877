"""Whether a deploy directory is still what was registered, and draws what it drew then: numpy and onnxruntime alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddpm.deploy.runtime import Float32, Sampler, import_onnxruntime
from ddpm.diffusion.noise import ImageNoise
from ddpm.files import sha256_of

COUNT, MOST_STEPS = 4, 20

# One of the 256 levels of a pixel, in [−1, 1]: what another processor's rounding does not reach.
TOLERANCE = 2 / 255


@dataclass(frozen=True)
class Fingerprint:
    """What a deploy directory was when it was registered."""

    files: Mapping[str, str]
    """The SHA-256 of each file."""
    samples: Float32
    """What it drew from fixed noise, in [−1, 1]: [4, *network_shape]."""
    runtime: str
    """The onnxruntime that drew it, and on what."""

    @classmethod
    def of(cls, deploy: Path) -> Fingerprint:
        """
        Raises:
            UserError: a file is missing or damaged.
        """
        sampler = Sampler(deploy)
        version = import_onnxruntime().__version__
        return cls(
            files={path.name: sha256_of(path) for path in sorted(deploy.iterdir())},
            samples=_draw(sampler),
            runtime=f"onnxruntime {version}, {sampler.providers[0]}",
        )


def _draw(sampler: Sampler) -> Float32:
    """A few samples from noise that is always the same, by the model's own plan, shortened if it is long."""
    plan = sampler.plan(steps=min(sampler.facts["sampling"]["steps"], MOST_STEPS))
    noise = ImageNoise(0, COUNT, sampler.kind.network_shape)
    return sampler.run(plan, noise.draw(), noise.draw)


def find_fault(deploy: Path, recorded: Fingerprint) -> str | None:
    """What is wrong with a deploy directory, in one line; None: its files and its samples are those recorded."""
    faults = _changed_files(deploy, recorded.files)
    try:
        present = Fingerprint.of(deploy)
    except Exception as error:  # a damaged file can lead to any
        return "; ".join([*faults, f"it does not run: {' '.join(str(error).split())}"])
    if present.samples.shape != recorded.samples.shape:
        return "; ".join([*faults, f"it draws {present.samples.shape}, at registration {recorded.samples.shape}"])
    difference = float(np.abs(present.samples - recorded.samples).max())
    if not difference <= TOLERANCE:  # nor where it is not a number
        where = present.runtime if faults else f"{present.runtime}, at registration {recorded.runtime}"
        faults.append(f"from the same noise it draws samples that differ by up to {difference:.3g} ({where})")
    return "; ".join(faults) or None


def _changed_files(deploy: Path, recorded: Mapping[str, str]) -> list[str]:
    faults = []
    for name, sha256 in recorded.items():
        if not (deploy / name).is_file():
            faults.append(f"{name} is missing")
        elif (found := sha256_of(deploy / name)) != sha256:
            faults.append(f"{name} is not the file that was registered: SHA-256 {found[:12]}…, recorded {sha256[:12]}…")
    return faults
