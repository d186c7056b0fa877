"""The sampler that ships: numpy and onnxruntime, and the same plan tables that torch runs.

A deploy directory holds `denoiser.onnx` (one evaluation of the network) and `sampler.json` (the process, the default
plan, the image's shape).
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.kinds import DataKind, data_kind
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.plans import Row, SamplingPlan, plan_for
from ddpm.errors import UserError

Float32 = NDArray[np.float32]


class Sampler:
    """An exported model, ready to draw images."""

    def __init__(self, directory: Path | str, *, providers: list[str] | None = None, threads: int = 0) -> None:
        """
        Args:
            directory: what `ddpm export` wrote.
            providers: onnxruntime's execution providers, best first; None: CUDA where there is a device, else the CPU.
            threads: of the CPU provider; 0: one a core.

        Raises:
            UserError: a file is missing or damaged.
        """
        onnxruntime = import_onnxruntime()
        directory = Path(directory)
        try:
            self.facts: dict[str, Any] = json.loads((directory / "sampler.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{directory} is not a deploy directory: sampler.json is missing") from None
        except ValueError as error:
            raise UserError(f"{directory / 'sampler.json'} is damaged: {error}") from None
        try:
            data = self.facts.get("data", {})
            self.kind: DataKind = data_kind(
                data.get("kind", "images"), self.facts["shape"], data.get("low"), data.get("high")
            )
        except (KeyError, ValueError) as error:
            raise UserError(f"{directory / 'sampler.json'} is damaged: {error}") from None
        self.shape: tuple[int, ...] = self.kind.shape
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                directory / "denoiser.onnx", options, providers=_described(providers or available_providers())
            )
        except Exception as error:  # onnxruntime's own exception types are not public
            raise UserError(f"{directory / 'denoiser.onnx'} does not load: {error}") from None
        self.providers: list[str] = self._session.get_providers()

    def plan(self, **overrides: Any) -> SamplingPlan:
        """The model's own sampling plan, or one with some of its choices (config's `sampling`) replaced."""
        return plan_for(self.facts["process"], self.facts["sampling"], **overrides)

    def sampled_by(self, sampling: Mapping[str, Any]) -> Sampler:
        """The same network with another plan of its own, `sampling` as in params.yaml."""
        other = copy.copy(self)
        other.facts = {**self.facts, "sampling": dict(sampling)}
        return other

    def sample(
        self,
        count: int,
        *,
        seed: int = 0,
        batch_size: int = 64,
        on_batch: Callable[[int], object] = lambda done: None,
        **overrides: Any,
    ) -> NDArray[Any]:
        """Draw `count` data, images [count, H, W, C] uint8; the same ones whatever the batch size.

        Args:
            seed: of the noise; image i of a seed is always the same.
            on_batch: called with the number of images done after every batch.
            overrides: as for `plan`.

        Raises:
            ValueError: a name or a number that no plan can be made of.
        """
        images = np.empty((count, *self.shape), dtype=self.kind.dtype)
        done = 0
        for batch in self.batches(count, seed=seed, batch_size=batch_size, **overrides):
            images[done : done + len(batch)] = batch
            done += len(batch)
            on_batch(done)
        return images

    def batches(self, count: int, *, seed: int = 0, batch_size: int = 64, **overrides: Any) -> Iterator[NDArray[Any]]:
        """As `sample`, in the memory of one batch: [≤ batch_size, *shape] at a time."""
        plan = self.plan(**overrides)
        for first in range(0, count, batch_size):
            noise = ImageNoise(seed, min(batch_size, count - first), self.kind.network_shape, first=first)
            yield self.kind.decode(self.run(plan, noise.draw(), noise.draw))

    def run(self, plan: SamplingPlan, x: Float32, draw: Callable[[], Float32]) -> Float32:
        """Run a plan from x_T [N, C, H, W] to x_0 in about [−1, 1]; `draw` gives the z of each row that adds noise."""
        return run(self.denoise, plan, x, draw)

    def denoise(self, x: Float32, t: NDArray[np.int64]) -> Float32:
        """One evaluation of the network: x [N, C, H, W], t [N]."""
        return self._session.run(None, {"x": x, "t": t})[0]


def run(
    denoise: Callable[[Float32, NDArray[np.int64]], Float32],
    plan: SamplingPlan,
    x: Float32,
    draw: Callable[[], Float32],
) -> Float32:
    """The numpy executor of a sampling plan; `diffusion.sampling.sample` is torch's, with the same arguments."""
    previous = earlier = np.zeros_like(x)
    channels = x.shape[1]
    for t, row in plan.rows():
        out = denoise(x, np.full(len(x), t, dtype=np.int64))
        x0 = _hold(row.x0_from_x * x + row.x0_from_out * out[:, :channels], row)
        x = row.to_x0 * x0 + row.to_x * x
        if row.to_prev:
            x += row.to_prev * previous
        if row.to_prev2:
            x += row.to_prev2 * earlier
        if row.log_noise_from_out and row.to_noise:
            x += row.to_noise * np.exp(row.log_noise_from_out * out[:, channels:]) * draw()
        elif row.to_noise:
            x += row.to_noise * draw()
        previous, earlier = x0, previous
    return x


def _hold(x0: Float32, row: Row) -> Float32:
    """x̂_0 within the row's bounds."""
    if not row.quantile:
        return np.clip(x0, -row.clip, row.clip)
    magnitudes = np.abs(x0).reshape(len(x0), -1)
    bound = np.quantile(magnitudes, row.quantile, axis=1).clip(1, row.clip).astype(x0.dtype)
    bound = bound.reshape(-1, *[1] * (x0.ndim - 1))
    return np.clip(x0, -bound, bound) / bound


def import_onnxruntime() -> ModuleType:
    """onnxruntime, with its reports to its makers switched off: since 1.29 it sends them unless told not to."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def available_providers() -> list[str]:
    """CUDA where onnxruntime has it and the machine has a device, then the CPU."""
    onnxruntime = import_onnxruntime()
    has_device = Path("/proc/driver/nvidia/version").exists()
    if has_device and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        # The CUDA libraries come as Python packages; onnxruntime finds them only when told to look.
        onnxruntime.preload_dlls()
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]


def _described(providers: list[str]) -> list[Any]:
    """Providers with their options: full float32 on CUDA, since TF32's ten bits would break parity."""
    return [(name, {"use_tf32": "0"}) if name == "CUDAExecutionProvider" else name for name in providers]
