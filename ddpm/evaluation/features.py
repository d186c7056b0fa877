"""Features that stream through an extractor, and those of real images kept for the next evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.data.store import Split
from ddpm.evaluation.extractor import Extractor, Features
from ddpm.evaluation.progress import Show, unseen
from ddpm.files import atomic_file

BATCH = 100  # images through the extractor together: InceptionV3 enlarges each to 299×299

_FORMAT = 1  # of the cached files, and of what the extractors make of an image


def extract(
    extractor: Extractor,
    batches: Iterable[NDArray[np.uint8]],
    count: int,
    on_part: Callable[[NDArray[np.uint8], Features], object] = lambda images, features: None,
) -> Features:
    """Run batches [n, H, W, C] uint8, `count` ≥ 1 images in all, through the extractor, and keep their features alone;
    `on_part` gets some of the images at a time with their features.

    The room for them is taken at once: small results left between large activations would keep the allocator from
    using those again.
    """
    whole: Features | None = None
    done = 0
    for images in batches:
        for first in range(0, len(images), BATCH):
            few = images[first : first + BATCH]
            part = extractor(few)
            whole = whole or part.room_for(count)
            whole.put(done, part)
            done += len(part)
            on_part(few, part)
    if whole is None or done != count:
        raise ValueError(f"{done} images, not {count}")
    return whole


def cached_features(extractor: Extractor, split: Split, cache: Path, show: Show = unseen) -> Features:
    """The features of a split's images, from the directory `cache` where they are, else put there.

    A file's name is a hash of all that decides its content. Files are whole or absent, and each array in one has a
    checksum: a damaged file is made anew. Two processes that make the same one write the same bytes.
    """
    path = cache / f"{_key(extractor, split)}.npz"
    if (found := _read(path)) is not None and len(found) == len(split):
        return found
    with show(len(split), "img", "features of real images") as done:
        features = extract(extractor, split.batches(BATCH), len(split), lambda images, _: done(len(images)))
    arrays = {"features": features.features.numpy(), "logits": features.logits.numpy()}
    if features.spatial is not None:
        arrays["spatial"] = features.spatial.numpy()
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    return features


def _key(extractor: Extractor, split: Split) -> str:
    """Devices and versions of torch differ in the last digits."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = (_FORMAT, BATCH, *extractor.identity.values(), split.sha256, torch.__version__, device)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _read(path: Path) -> Features | None:
    try:
        with np.load(path) as arrays:
            # Reading an array to its end compares its checksum.
            return Features(**{name: torch.from_numpy(arrays[name]) for name in arrays.files})
    except Exception:  # what a damaged file leads to depends on the damage
        return None
