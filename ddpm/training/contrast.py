"""The task of CLIP: each image of a batch is to find its caption among all captions of the batch, and each caption its
image (Radford et al. 2021, §2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.compute.parallel import ALONE, Ranks
from ddpm.conditioning.columns import Column
from ddpm.diffusion.process import GaussianProcess
from ddpm.nets.clip import CLIP
from ddpm.training.tasks import Batch


def contrastive_losses(
    images: Tensor, texts: Tensor, all_images: Tensor, all_texts: Tensor, scale: Tensor, first: int = 0
) -> Tensor:
    """Of each pair the mean of two cross-entropies: of its text among all texts, and of its image among all images
    (Radford et al. 2021, figure 3). The mean over a batch is the paper's loss.

    Only a pair's own image and text are right for each other, also where the batch has a caption or an image twice.

    Args:
        images: unit vectors [n, D], the rows `first` .. `first + n − 1` of `all_images`.
        texts: likewise, [n, D].
        all_images: of the whole batch, [N, D].
        all_texts: likewise, [N, D].
        scale: what dot products are multiplied by, 1/temperature.

    Returns:
        [n].
    """
    right = first + torch.arange(len(images), device=images.device)
    of_texts = F.cross_entropy(scale * images @ all_texts.T, right, reduction="none")
    of_images = F.cross_entropy(scale * texts @ all_images.T, right, reduction="none")
    return (of_texts + of_images) / 2


@dataclass(frozen=True)
class Contrast:
    """The symmetric cross-entropy of CLIP. It needs the whole batch at once: no micro-batches.

    Several processes share a batch, and each compares its own rows with those of all.

    Attributes:
        columns: the caption alone.
        noised: the images are x_t, so that a gradient with respect to x_t can guide (Nichol et al. 2022, GLIDE, §2.4);
            else they are x_0, at timestep 0.
        batch_size: of all processes together.
    """

    process: GaussianProcess
    columns: Sequence[Column]
    noised: bool
    batch_size: int
    ranks: Ranks = ALONE
    draws: ClassVar[int] = 0
    opponent: ClassVar[None] = None
    distribution: ClassVar[None] = None

    @property
    def timesteps(self) -> int:
        return self.process.timesteps if self.noised else 1

    def losses(self, network: nn.Module, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        """As of `Task`. A scale that the last step took above its limit is set back first."""
        clip = cast(CLIP, network)
        clip.limit_scale()
        (column,) = self.columns
        x, told = self.process.told(self.process.q_sample(batch.x0, t, noise), t) if self.noised else (batch.x0, t)
        images, texts = clip(x, told), clip.texts(batch.given[column.name])
        with torch.autocast(x.device.type, enabled=False):
            # Together, since each meeting of the processes takes its time.
            both = self.ranks.all_rows(torch.cat([images, texts], dim=1), self.batch_size)
            all_images, all_texts = both.chunk(2, dim=1)
            first = self.ranks.part_of(self.batch_size).start
            return contrastive_losses(images, texts, all_images, all_texts, clip.scale, first)
