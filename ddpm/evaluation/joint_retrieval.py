"""How well a CLIP finds the caption of an image, and the image of a caption, among all of a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ddpm.data.store import PreparedData, Split, SplitName
from ddpm.errors import UserError
from ddpm.evaluation.bootstrap import share_interval
from ddpm.evaluation.pictures import SHOWN_SIDE, grid
from ddpm.evaluation.retrieval import PLACES, ROWS, chance, ranks
from ddpm.joint_space import BATCH, JointSpace

SHOWN, NEAREST = 12, 6  # captions of the picture, and the images beside each
LONGEST_CAPTION = 40  # characters of it that are shown


class Found(NamedTuple):
    """The places, from 1, of what is right for each image and each caption; and how much is right."""

    captions_of_images: Tensor
    """[N] int64: the place of the first of an image's own captions among all captions."""
    images_of_captions: Tensor
    """[M] int64: the place of the first image with the caption among all images."""
    right_captions: Tensor
    """[N]: how many captions are right for an image."""
    right_images: Tensor
    """[M]: how many images are right for a caption."""

    def figures(self, split: SplitName) -> dict[str, float]:
        """R@1 and R@5 both ways with 95 % intervals, and what a random order has."""
        ways = {
            "caption": (self.captions_of_images, self.right_captions, len(self.images_of_captions)),
            "image": (self.images_of_captions, self.right_images, len(self.captions_of_images)),
        }
        figures: dict[str, float] = {}
        for what, (places, right, count) in ways.items():
            for place in PLACES:
                key, share = f"{split}_{what}_r_{place}", float((places <= place).double().mean())
                low, high = share_interval(share, len(places))
                figures |= {key: share, f"{key}_low": low, f"{key}_high": high}
                figures[f"{key}_chance"] = float(chance(right, count, place).mean())
        return figures


def joint_retrieval(space: JointSpace, split: Split) -> Found:
    """Both ways within a split, nearest first by the angle; of equally near ones the right one comes first.

    Captions that are the same tokens are the same: each image that has one of them is right for it.

    Raises:
        UserError: the data have no captions.
    """
    captions = _captions(space, split)
    ids, _ = space.column.tokenizer.encode(text for own in captions for text in own)
    # Each caption counts once, however many images have it.
    asked, caption = np.unique(ids, axis=0, return_inverse=True)
    image = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
    texts, images = torch.from_numpy(space.tokens(asked)), torch.from_numpy(_images(space, split))
    pairs = torch.from_numpy(np.stack([image, caption.reshape(-1)]))
    captions_of_images, right_captions = _places(images, texts, pairs)
    images_of_captions, right_images = _places(texts, images, pairs.flip(0))
    return Found(captions_of_images, images_of_captions, right_captions, right_images)


def _places(ones: Tensor, others: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """For each of N unit vectors the place, from 1, of the nearest of the M others that are right for it, and how many
    are right, [N] each.

    Args:
        ones: [N, D].
        others: [M, D]. The nearest of them is the one with the largest dot product.
        pairs: what belongs together, [2, P]: the rows of one of the N and of one of the M.
    """
    places, counts = [], []
    for first in range(0, len(ones), ROWS):
        part = ones[first : first + ROWS]
        row, column = pairs[:, (pairs[0] >= first) & (pairs[0] < first + len(part))]
        right = torch.zeros(len(part), len(others), dtype=torch.bool)
        right[row - first, column] = True
        places.append(ranks(part, lambda: others.split(ROWS), right))
        counts.append(right.sum(1))
    return torch.cat(places), torch.cat(counts)


def nearest_pictures(space: JointSpace, data: PreparedData) -> Image.Image:
    """Captions of the validation split, at even distances, beside the images of the split nearest to each."""
    split = data.split("validation")
    captions = _captions(space, split)
    rows = np.unique(np.linspace(0, len(split) - 1, min(SHOWN, len(split))).astype(np.int64))
    shown = [captions[row][0] for row in rows]
    products = space.texts(shown) @ _images(space, split).T
    count = min(NEAREST, len(split))
    nearest = np.argsort(-products, axis=1, kind="stable")[:, :count]
    width = max(SHOWN_SIDE, data.codec.shape[1]) * count
    return grid(split.rows(nearest.reshape(-1)), count, width=width, names=shown, longest_name=LONGEST_CAPTION)


def _captions(space: JointSpace, split: Split) -> Sequence[tuple[str, ...]]:
    if split.captions is None:
        raise UserError(f"models/{space.variant} needs captions, and the prepared data have none")
    return split.captions


def _images(space: JointSpace, split: Split) -> NDArray[np.float32]:
    return np.concatenate([space.images(images) for images in split.batches(BATCH)])
