"""A training watched: what is seen of it, beside its loss, while it runs. It decides no weight."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.codecs.scale import Codec
from ddpm.conditioning.columns import Accompanied, Column, derived, derived_draws, needed, stored
from ddpm.conditioning.guidance import by_itself
from ddpm.conditioning.network import columns_in, tensors
from ddpm.config.model import VariantConfig
from ddpm.config.sampling import SamplingConfig
from ddpm.data.loader import Images
from ddpm.diffusion import sampling
from ddpm.diffusion.coordinates import Coordinates
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.plans import plan_for
from ddpm.training.ema import EMA
from ddpm.training.speed import evaluating

if TYPE_CHECKING:
    from PIL.Image import Image

QUARTILES = 4
COLUMNS = 4  # of the grid of samples, and its rows


class Watch:
    """Figures since the last point of the loss curve, collected on the device, so that no step waits for them."""

    def __init__(
        self, config: VariantConfig, codec: Codec, device: torch.device, seed: int, images: Images | None = None
    ) -> None:
        """
        Args:
            images: real ones, for samples of a network that is conditioned on what is derived from them.
        """
        self._config, self._codec, self._device, self._seed = config, codec, device, seed
        self._images = images
        self._spread = Coordinates.of(config.process.model_dump()).distribution
        self._sums = torch.zeros(2, QUARTILES, device=device)  # of the losses, and how many they are
        self._ema: EMA | None = None
        self._began, self._steps = time.monotonic(), 0

    def losses(self, t: Tensor, losses: Tensor) -> None:
        """Take in a step: t as the loop draws it and the losses, [N] each."""
        quartile = (t * QUARTILES // self._config.process.timesteps) if self._spread is None else self._quartile(t)
        self._sums.index_add_(1, quartile, torch.stack([losses, torch.ones_like(losses)]))
        self._steps += 1

    def _quartile(self, t: Tensor) -> Tensor:
        """Of training's own distribution."""
        mean, std = cast("tuple[float, float]", self._spread)
        return (torch.special.ndtr((t - mean) / std) * QUARTILES).long().clamp(max=QUARTILES - 1)

    def average(self, ema: EMA) -> None:
        """Take in the averages, whose distance is logged at the next point."""
        self._ema = ema

    def figures(self) -> dict[str, float]:
        """Since the last call: the mean loss of each quarter of the timesteps, from the least noise on, and the speed.

        Besides, as of now: the distance of the averages from the weights as a share of these, and the most memory that
        the GPU has held.
        """
        sums, counts = self._sums.tolist()
        self._sums.zero_()
        now = time.monotonic()
        figures = {f"loss_t_quarter_{q + 1}": sums[q] / counts[q] for q in range(QUARTILES) if counts[q]}
        figures["images_per_second"] = self._steps * self._config.training.batch_size / max(now - self._began, 1e-9)
        self._began, self._steps = now, 0
        if self._ema is not None:
            figures["ema_distance"] = self._ema.distance().item()
        if self._device.type == "cuda":
            figures["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self._device) / 2**30
        return figures

    def due(self, step: int) -> bool:
        """Whether samples are to be drawn after so many steps."""
        every = self._config.training.sample_every
        return every > 0 and step % every == 0

    def samples(self, network: nn.Module, ema: EMA) -> Image:
        """A grid of what the averaged weights make of the same noise as ever, by the model's own plan."""
        from ddpm.evaluation.pictures import WIDTH, grid

        config = self._config
        noise = ImageNoise(self._seed, COLUMNS**2, self._codec.network_shape)
        plan = plan_for(config.process.model_dump(), _plain(config.sampling).model_dump(), bounded=self._codec.bounded)

        def draw() -> Tensor:
            return torch.from_numpy(noise.draw()).to(self._device)

        with ema.in_place(), evaluating(network):
            denoiser = by_itself(network, self._given(columns_in(network)))
            drawn = sampling.sample(denoiser, plan, draw(), draw)
        return grid(self._codec.decode(drawn.cpu().numpy()), COLUMNS, width=WIDTH)

    def _given(self, columns: Sequence[Column]) -> dict[str, Tensor]:
        """What the samples are conditioned on: the same of each grid."""
        count = COLUMNS**2
        shown = needed(columns)
        drawn = [column for column in stored(columns) if column not in shown]
        given = tensors({column.name: column.draw(count, seed=self._seed) for column in drawn}, self._device)
        if self._images is None or len(given) == len(columns):
            return given
        rows = np.arange(count) % len(self._images)
        beside = {column.name: column.of_data(cast(Accompanied, self._images)).at(rows) for column in stored(shown)}
        given |= tensors(beside, self._device)
        chosen = self._images.rows(rows)
        uniform = torch.rand(count, derived_draws(columns), generator=torch.Generator().manual_seed(self._seed))
        x0 = self._codec.pixels.encode(torch.from_numpy(chosen).to(self._device))
        return given | derived(columns, x0, uniform.to(self._device))


def _plain(sampling: SamplingConfig) -> SamplingConfig:
    """The plan as it is without its guide, which is not loaded for training, and with a control as it is trained."""
    plain: dict[str, Any] = {"control_scale": 1.0, "control_interval": None, "guess": False}
    if sampling.guide is not None:
        plain |= {"guide": None, "guidance_scale": 1.0}
    return sampling.model_copy(update=plain)
