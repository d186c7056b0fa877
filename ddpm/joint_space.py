"""The space of a trained CLIP: images and texts as unit vectors, for figures, for a prior, and for variations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.codecs.scale import Codec
from ddpm.conditioning.columns import PromptColumn
from ddpm.nets.clip import CLIP

BATCH = 256  # at once


@dataclass(frozen=True)
class JointSpace:
    """A trained CLIP.

    Attributes:
        codec: of its images.
        variant: its name.
        sha256: of its weights' file.
    """

    network: CLIP
    codec: Codec
    variant: str
    sha256: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image as it is prepared, [H, W, C]."""
        return self.codec.shape

    @property
    def column(self) -> PromptColumn:
        """The captions that it was trained with: their tokenizer, and some of them."""
        return cast(PromptColumn, self.network.answers[0])

    @property
    def dimension(self) -> int:
        """D: how many numbers an embedding has."""
        return self.network.text.projection.out_features

    @property
    def _device(self) -> torch.device:
        return self.network.log_scale.device

    @torch.inference_mode()
    def images(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Unit vectors [N, D] of images as they are prepared, uint8 [N, H, W, C]."""
        found = [np.zeros((0, self.dimension), np.float32)]
        for first in range(0, len(stored), BATCH):
            rows = torch.from_numpy(np.ascontiguousarray(stored[first : first + BATCH])).to(self._device)
            t = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
            found.append(self.network(self.codec.encode(rows), t).cpu().numpy())
        return np.concatenate(found)

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors [N, D] of texts.

        Raises:
            ValueError: one of them cannot be a caption.
        """
        asked = self.column.read(list(texts), len(texts)) if texts else np.zeros((0, *self.column.shape), np.int64)
        return self.tokens(asked)

    @torch.inference_mode()
    def tokens(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Unit vectors [N, D] of texts as the tokens of `column`, int64 [N, L]."""
        found = [np.zeros((0, self.dimension), np.float32)]
        for first in range(0, len(ids), BATCH):
            rows = torch.from_numpy(ids[first : first + BATCH]).to(self._device)
            found.append(self.network.texts(rows).cpu().numpy())
        return np.concatenate(found)
