"""How near the embeddings that a prior draws of captions are to those of the pictures with these captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.conditioning.columns import PromptColumn
from ddpm.data.embeddings import Embeddings
from ddpm.data.store import SPLITS, PreparedData, SplitName
from ddpm.diffusion.noise import stream
from ddpm.directions import unit
from ddpm.drawer import Drawer
from ddpm.errors import UserError
from ddpm.evaluation.bootstrap import NORMAL_95, share_interval
from ddpm.evaluation.progress import Done
from ddpm.evaluation.retrieval import PLACES, AskedPictures, chance, ranks
from ddpm.joint_space import JointSpace

_ROWS = 500  # embeddings between which there are distances at a time


def prior_figures(
    model: Drawer,
    space: JointSpace,
    embeddings: Embeddings,
    data: PreparedData,
    *,
    count: int,
    seed: int,
    batch_size: int,
    on_data: Done = lambda count: None,
) -> dict[str, float]:
    """The figures of a prior, of the captions of validation pictures, which training has not seen, and after `train_`
    of those of training pictures.

    - `cosine`: between the drawn embedding and that of the caption's picture, with a 95 % interval of the mean.
    - `cosine_text`: between the embedding of the caption and that picture's. `cosine_random`: between that of a random
      training picture and that picture's.
    - `r_1`, `r_5`: the share of captions whose picture, or another with the same caption, is the nearest, or among the
      nearest five, of all real ones, with intervals; and what a random order has.

    Args:
        embeddings: of the prepared images, by the CLIP `space`.
        count: captions of each split, at most.

    Raises:
        UserError: the model is not conditioned on captions, or the data have none.
        NotFiniteError: the model draws NaN or infinite values.
    """
    column = next((column for column in model.columns if isinstance(column, PromptColumn)), None)
    if column is None or data.split("train").captions is None:
        raise UserError(f"models/{model.variant}: the figures of a prior need a prompt and data with captions")
    asking = _Asking(model, space, embeddings, data, column, seed, batch_size, on_data)
    return asking.figures("validation", "", count) | asking.figures("train", "train_", count)


class _Asking:
    """A prior that is asked for captions of the data."""

    def __init__(
        self,
        model: Drawer,
        space: JointSpace,
        embeddings: Embeddings,
        data: PreparedData,
        column: PromptColumn,
        seed: int,
        batch_size: int,
        on_data: Done,
    ) -> None:
        self._model, self._space, self._column = model, space, column
        self._seed, self._batch_size, self._on_data = seed, batch_size, on_data
        self._captions = {name: data.split(name).captions or [] for name in SPLITS}
        self._real = {name: _all(embeddings, name) for name in SPLITS}

    def figures(self, split: SplitName, name: str, count: int) -> dict[str, float]:
        """Of pictures of a split at even distances, each by its first caption."""
        total = len(self._captions[split])
        places = np.arange(min(count, total)) * total // min(count, total)
        texts = [self._captions[split][place][0] for place in places]
        drawn, true = self._drawn(texts), self._real[split][places]
        train = self._real["train"]
        chosen = [int(stream(self._seed, row, purpose=5).integers(len(train))) for row in range(len(texts))]
        cosines = {
            "cosine": (drawn * true).sum(1),
            "cosine_text": (self._space.texts(texts) * true).sum(1),
            "cosine_random": (train[chosen] * true).sum(1),
        }
        found = {f"{name}{key}": float(values.mean()) for key, values in cosines.items()}
        half = NORMAL_95 * float(cosines["cosine"].std(ddof=1)) / len(texts) ** 0.5 if len(texts) > 1 else 0.0
        mean = found[f"{name}cosine"]
        found |= {f"{name}cosine_low": mean - half, f"{name}cosine_high": mean + half}
        return found | self._retrieval(name, texts, drawn)

    def _drawn(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """An embedding of each text, of length 1, [N, D]."""
        parts = []
        for batch in self._model.batches(len(texts), seed=self._seed, batch_size=self._batch_size, prompt=list(texts)):
            parts.append(unit(batch))
            self._on_data(len(batch))
        return np.concatenate(parts)

    def _retrieval(self, name: str, texts: Sequence[str], drawn: NDArray[np.float32]) -> dict[str, float]:
        """R@1 and R@5, with intervals and chance. Of vectors of length 1 the nearest one has the largest cosine."""
        captions = [each for split in SPLITS for each in self._captions[split]]
        real = torch.from_numpy(np.concatenate([self._real[split] for split in SPLITS]))
        asked = AskedPictures(self._column.tokenizer.encode(texts)[0], captions, self._column.tokenizer)
        right = asked.of(0, len(texts))
        found = ranks(torch.from_numpy(drawn), lambda: real.split(_ROWS), right)
        figures: dict[str, float] = {}
        for place in PLACES:
            key, share = f"{name}r_{place}", float((found <= place).double().mean())
            low, high = share_interval(share, len(texts))
            by_chance = float(chance(right.sum(1), len(real), place).mean())
            figures |= {key: share, f"{key}_low": low, f"{key}_high": high, f"{key}_chance": by_chance}
        return figures


def _all(embeddings: Embeddings, name: SplitName) -> NDArray[np.float32]:
    split = embeddings.split(name)
    return split.rows(np.arange(len(split)))
