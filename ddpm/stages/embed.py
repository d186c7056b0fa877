"""`ddpm embed A`: the prepared images in the space of a trained CLIP, once for all that needs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ddpm.compute.device import pick_device
from ddpm.config.params import Params
from ddpm.data.derived import MANIFEST
from ddpm.data.embeddings import VECTORS, EmbeddingManifest
from ddpm.data.store import PreparedData, RowWriter, array_name, read_chunks
from ddpm.evaluation.accessory import open_space
from ddpm.files import atomic_directory, sha256_of, write_json
from ddpm.joint_space import BATCH
from ddpm.layout import EMBEDDINGS, PREPARED
from ddpm.stages.progress import bar


def embed(params: Params, encoder: str, *, root: Path = Path()) -> EmbeddingManifest:
    """Write `embeddings/A/`: vectors.npy and manifest.json.

    Raises:
        UserError: there is no such CLIP, or it is of other images, or the prepared data are missing.
    """
    params.variant(encoder)
    data = PreparedData.open(root / PREPARED)
    _, space = open_space(encoder, data.codec, f"models/{encoder}", root, pick_device())
    manifest, total = data.manifest, data.manifest.counts.train + data.manifest.counts.validation
    with atomic_directory(root / EMBEDDINGS / encoder) as out:
        with (
            RowWriter(out / VECTORS, (space.dimension,), np.float32) as writer,
            bar(total, data.codec.unit, f"embeddings of {encoder}") as progress,
        ):
            for images in read_chunks(root / PREPARED / array_name(manifest.kind), BATCH):
                for vector in space.images(images):
                    writer.append(vector)
                progress.update(len(images))
        written = EmbeddingManifest(
            encoder=encoder,
            encoder_sha256=space.sha256,
            images_sha256=manifest.images_sha256,
            count=total,
            dimension=space.dimension,
            vectors_sha256=sha256_of(out / VECTORS),
        )
        write_json(out / MANIFEST, written.model_dump(mode="json"))
    return written
