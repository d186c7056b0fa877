"""`ddpm encode A`: the latents of the prepared images by a trained autoencoder, once for all trainings on them."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch

from ddpm.compute.device import pick_device
from ddpm.config.params import Params
from ddpm.data.derived import MANIFEST
from ddpm.data.latents import MOMENTS, LatentManifest
from ddpm.data.store import PreparedData, RowWriter, Split, array_name, read_chunks
from ddpm.errors import UserError
from ddpm.evaluation.accessory import open_accessory
from ddpm.files import atomic_directory, write_json
from ddpm.layout import LATENTS, PREPARED
from ddpm.nets.autoencoder import AutoencoderKL
from ddpm.stages.progress import bar

BATCH = 64  # images at once


def encode(params: Params, autoencoder: str, *, root: Path = Path()) -> LatentManifest:
    """Write `latents/A/`: moments.npy and manifest.json.

    Raises:
        UserError: there is no such autoencoder, or it is of images of another size, or the prepared data are missing.
    """
    params.variant(autoencoder)
    device, data = pick_device(), PreparedData.open(root / PREPARED)
    where = f"models/{autoencoder}"
    model, sha256 = open_accessory("autoencoder", autoencoder, data.codec, where, root, device)
    network = cast(AutoencoderKL, model.network)
    channels, *sides = network.latent_shape
    manifest, total = data.manifest, data.manifest.counts.train + data.manifest.counts.validation
    with atomic_directory(root / LATENTS / autoencoder) as out:
        with (
            RowWriter(out / MOMENTS, (2 * channels, *sides), np.float32) as writer,
            bar(total, data.codec.unit, f"latents of {autoencoder}") as progress,
        ):
            for images in read_chunks(root / PREPARED / array_name(manifest.kind), BATCH):
                with torch.inference_mode():
                    x = model.codec.encode(torch.from_numpy(images).to(device))
                    moments = torch.cat(network.encode(x), dim=1).cpu().numpy()
                for row in moments:
                    writer.append(np.ascontiguousarray(row))
                progress.update(len(images))
        mean, std, overall = _statistics(data.split("train").of(np.load(out / MOMENTS, mmap_mode="r")))
        if not overall > 0:
            raise UserError(f"models/{autoencoder}: its latents are all alike; train it for longer")
        written = LatentManifest(
            autoencoder=autoencoder,
            autoencoder_sha256=sha256,
            images_sha256=manifest.images_sha256,
            count=total,
            shape=network.latent_shape,
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
            scale=1 / overall,
        )
        write_json(out / MANIFEST, written.model_dump(mode="json"))
    return written


def _statistics(split: Split) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and standard deviation of z over a split, a channel each, and the deviation of all channels together.

    z varies by its mean from image to image, and within q(z | x) by σ.
    """
    sums, count = np.zeros((3, split.rows(np.zeros(1, np.int64)).shape[1] // 2)), 0
    for moments in split.batches(BATCH):
        mean, log_variance = np.split(moments.astype(np.float64), 2, axis=1)
        parts = (mean, mean**2, np.exp(log_variance))
        sums += [part.sum((0, 2, 3)) for part in parts]
        count += mean[:, 0].size
    means, squares, variances = sums / count
    std = np.sqrt(np.maximum(squares - means**2, 0) + variances)
    overall = np.sqrt(max(squares.mean() - means.mean() ** 2, 0) + variances.mean())
    return means, std, float(overall)
