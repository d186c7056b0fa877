"""How well an autoencoder keeps images, and what its latents are like."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ddpm.data.store import PreparedData
from ddpm.diffusion.likelihood import normal_kl
from ddpm.errors import UserError
from ddpm.evaluation.extractor import Extractor
from ddpm.evaluation.features import extract
from ddpm.evaluation.image_to_image import psnr
from ddpm.evaluation.metrics import frechet_distance
from ddpm.evaluation.pictures import in_turn
from ddpm.evaluation.tables import csv_table
from ddpm.model import Model
from ddpm.nets.autoencoder import AutoencoderKL

SHOWN = 32  # images, with what became of them
# A channel is dead if less than this share of its variance tells one image from another: the rest is σ's.
DEAD = 0.01
# Of SSIM (Wang et al. 2004, §III.B and C): the window's standard deviation and side, and the two constants.
SIGMA, WINDOW, C1, C2 = 1.5, 11, (0.01 * 255) ** 2, (0.03 * 255) ** 2


class Channel(NamedTuple):
    """What a channel of the latents is like, over the validation split."""

    channel: int
    mean: float
    std: float
    """Of z."""
    told: float
    """The share of z's variance that is the mean's of q(z | x)."""
    kl: float
    """In nats, of the channel's part of a latent."""


class Reconstruction(NamedTuple):
    """What `reconstruct` found."""

    figures: dict[str, float]
    channels: list[Channel]
    picture: Image.Image


@torch.no_grad()
def reconstruct(
    model: Model,
    data: PreparedData,
    extractor: Extractor,
    *,
    batch_size: int,
    on_data: Callable[[int], object] = lambda done: None,
) -> Reconstruction:
    """The figures of an autoencoder over the whole validation split, each image decoded from the mean of its q(z | x).

    - `rfid`: FID of the reconstructions against the images themselves.
    - `psnr` in decibels, `ssim`, and `mean_absolute_error` in levels of 255: means over the images.
    - `latent_kl`: in nats, of a latent. `dead_channels`: the share of channels that tell nothing of an image.

    Raises:
        UserError: the model is no autoencoder, or of other images.
    """
    if not model.card.config.reconstructs:
        raise UserError(f"models/{model.card.variant} is no autoencoder; run `ddpm train {model.card.variant}`")
    if model.shape != data.codec.shape:
        raise UserError(f"models/{model.card.variant} is an autoencoder of other images than the prepared ones")
    split, network = data.split("validation"), cast(AutoencoderKL, model.network)
    of_latents = _Moments(network.latent_shape[0])
    real, decoded, sums = [], [], np.zeros(3)
    for images in split.batches(batch_size):
        mean, log_variance = network.encode(model.codec.encode(torch.from_numpy(images).to(model.device)))
        of_latents.add(mean.double(), log_variance.double())
        again = model.codec.decode(network.decode(mean).cpu().numpy())
        errors = (again.astype(np.float64) - images).reshape(len(images), -1)
        sums += [psnr(again, images).sum(), ssim(again, images).sum(), np.abs(errors).mean(1).sum()]
        real.append(extract(extractor, [images], len(images)).features)
        decoded.append(extract(extractor, [again], len(again)).features)
        on_data(len(images))
    signal, similarity, error = sums / len(split)
    channels = of_latents.channels()
    figures = {
        "rfid": frechet_distance(torch.cat(decoded), torch.cat(real)),
        "psnr": float(signal),
        "ssim": float(similarity),
        "mean_absolute_error": float(error),
        "latent_kl": sum(channel.kl for channel in channels),
        "dead_channels": sum(channel.told < DEAD for channel in channels) / len(channels),
    }
    return Reconstruction(figures, channels, _picture(model, split.rows(np.arange(min(SHOWN, len(split))))))


class _Moments:
    """Sums over images and positions, of each channel."""

    def __init__(self, channels: int) -> None:
        self._sums = torch.zeros(4, channels, dtype=torch.float64)
        self._positions, self._images = 0, 0

    def add(self, mean: Tensor, log_variance: Tensor) -> None:
        zero = torch.zeros_like(mean)
        parts = (mean, mean**2, log_variance.exp(), normal_kl(mean, log_variance, zero, zero))
        self._sums += torch.stack([part.sum((0, 2, 3)) for part in parts]).cpu()
        self._positions += mean[:, 0].numel()
        self._images += len(mean)

    def channels(self) -> list[Channel]:
        mean, square, variance = (self._sums[:3] / self._positions).numpy()
        between = np.maximum(square - mean**2, 0)
        whole, kl = between + variance, (self._sums[3] / self._images).numpy()
        found = zip(mean, np.sqrt(whole), between / whole, kl, strict=True)
        return [Channel(number, *map(float, values)) for number, values in enumerate(found)]


def ssim(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Structural similarity of images [N, H, W, C], in −1..1, [N] (Wang et al. 2004, eq. 13): the mean over channels
    and those positions at which the window, smaller in small images, lies within the image.
    """
    x, y = (torch.from_numpy(each).permute(0, 3, 1, 2).double() for each in (one, other))
    channels, side = x.shape[1], min(x.shape[2:])
    width = min(WINDOW, side - (side + 1) % 2)
    away = torch.arange(width, dtype=torch.float64) - width // 2
    line = torch.exp(-(away**2) / (2 * SIGMA**2))
    window = (line[:, None] * line / line.sum() ** 2).expand(channels, 1, -1, -1)
    mean_x, mean_y, xx, yy, xy = (F.conv2d(each, window, groups=channels) for each in (x, y, x * x, y * y, x * y))
    var_x, var_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    alike = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    return (alike / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))).mean((1, 2, 3)).numpy()


def _picture(model: Model, images: NDArray[np.uint8]) -> Image.Image:
    """Images, each beside what became of it."""
    x = model.codec.encode(torch.from_numpy(images).to(model.device))
    return in_turn([images, model.codec.decode(model.network(x).cpu().numpy())])


def table(channels: list[Channel]) -> str:
    """As CSV, a row a channel."""
    return csv_table(Channel._fields, channels)
