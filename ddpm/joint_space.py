"""The space of a trained CLIP: images and texts as unit vectors, for figures, for a prior, and for variations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.accessory import open_accessory
from ddpm.codecs.scale import Codec
from ddpm.conditioning.columns import PromptColumn
from ddpm.model import Model
from ddpm.nets.clip import CLIP

BATCH = 256  # at once


@dataclass(frozen=True)
class JointSpace:
    """A trained CLIP.

    Attributes:
        sha256: of its weights' file.
    """

    model: Model
    sha256: str

    @classmethod
    def open(cls, name: str, codec: Codec, where: str, root: Path, device: torch.device) -> JointSpace:
        """
        Args:
            name: the model, such as models/clip-emoji.
            codec: of the images to be embedded.
            where: what names it, for errors.
            root: the project's folder.

        Raises:
            UserError: there is no such model, or it is no CLIP, or of other images.
        """
        return cls(*open_accessory("clip", name, codec, where, root, device))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image as it is prepared, [H, W, C]."""
        return self.model.codec.shape

    @property
    def network(self) -> CLIP:
        return cast(CLIP, self.model.network)

    @property
    def column(self) -> PromptColumn:
        """The captions that it was trained with: their tokenizer, and some of them."""
        return cast(PromptColumn, self.network.answers[0])

    @property
    def dimension(self) -> int:
        """D: how many numbers an embedding has."""
        return self.network.text.projection.out_features

    @torch.inference_mode()
    def images(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Unit vectors [N, D] of images as they are prepared, uint8 [N, H, W, C]."""
        found = [np.zeros((0, self.dimension), np.float32)]
        for first in range(0, len(stored), BATCH):
            rows = torch.from_numpy(np.ascontiguousarray(stored[first : first + BATCH])).to(self.model.device)
            t = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
            found.append(self.network(self.model.codec.encode(rows), t).cpu().numpy())
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
            rows = torch.from_numpy(ids[first : first + BATCH]).to(self.model.device)
            found.append(self.network.texts(rows).cpu().numpy())
        return np.concatenate(found)
