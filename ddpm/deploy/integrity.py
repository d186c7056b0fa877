"""Whether a deploy directory is still what was registered, and draws what it drew then: numpy and onnxruntime alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ddpm.conditioning.columns import Column, Given, needed
from ddpm.conditioning.image_embedding import EmbeddingColumn
from ddpm.deploy.runtime import Float32, Sampler, import_onnxruntime, open_exported
from ddpm.diffusion.noise import ImageNoise, stream
from ddpm.files import sha256_of

COUNT, MOST_STEPS = 4, 20
DENSITY = 0.1  # share of the pixels of a hint that are white

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
        samples, runtime = _draw(deploy)
        paths = [path for path in sorted(deploy.rglob("*")) if path.is_file()]
        files = {path.relative_to(deploy).as_posix(): sha256_of(path) for path in paths}
        return cls(files, samples, runtime)


def _draw(deploy: Path) -> tuple[Float32, str]:
    """A few samples from noise that is always the same, by the model's own plan, shortened if it is long; and on what
    they were drawn.
    """
    opened = open_exported(deploy)
    asked: dict[str, Any] = {each.name: _picture(each) for each in needed(opened.columns)}
    asked |= {each.name: each.example(COUNT) for each in opened.columns if isinstance(each, EmbeddingColumn)}
    part, links = opened.part(COUNT, seed=0, given=opened.given(COUNT, **asked)), opened.links
    found: dict[str, Float32] = {}
    for name, link in links.items():
        drawn = {earlier: links[earlier].decode(x) for earlier, x in found.items()}
        found[name] = _run(cast(Sampler, link), opened.part_of(name, part, drawn).given)
    *_, (last, samples) = found.items()
    provider = cast(Sampler, links[last]).providers[0]
    return samples, f"onnxruntime {import_onnxruntime().__version__}, {provider}"


def _run(sampler: Sampler, given: Given) -> Float32:
    plan = sampler.plan(steps=min(sampler.choices[1]["steps"], MOST_STEPS))
    noise = ImageNoise(0, COUNT, sampler.codec.network_shape)
    return sampler.run(plan, noise.draw(), noise.draw, given)


def _picture(column: Column) -> NDArray[Any]:
    """Small images or hints, for a model that draws nothing without: noise that is always the same."""
    noise = stream(0, 0, purpose=4).random((COUNT, *column.shape))
    return noise < DENSITY if column.dtype == np.bool_ else (256 * noise).astype(np.uint8)


def find_fault(deploy: Path, recorded: Fingerprint) -> str | None:
    """What is wrong with a deploy directory, in one line; None: its files and its samples are those recorded."""
    faults = _changed_files(deploy, recorded.files)
    try:
        samples, runtime = _draw(deploy)
    except Exception as error:  # a damaged file can lead to any
        return "; ".join([*faults, f"it does not run: {' '.join(str(error).split())}"])
    if samples.shape != recorded.samples.shape:
        return "; ".join([*faults, f"it draws {samples.shape}, at registration {recorded.samples.shape}"])
    difference = float(np.abs(samples - recorded.samples).max())
    if not difference <= TOLERANCE:  # nor where it is not a number
        faults.append(
            f"from the same noise it draws samples that differ by up to {difference:.3g} ({runtime}; at registration "
            f"{recorded.runtime})"
        )
    return "; ".join(faults) or None


def _changed_files(deploy: Path, recorded: Mapping[str, str]) -> list[str]:
    faults = []
    for name, sha256 in recorded.items():
        if not (deploy / name).is_file():
            faults.append(f"{name} is missing")
        elif (found := sha256_of(deploy / name)) != sha256:
            faults.append(f"{name} is not the file that was registered: SHA-256 {found[:12]}…, recorded {sha256[:12]}…")
    return faults
