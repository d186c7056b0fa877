"""The training steps that ours are timed against, as their projects run them, and ours.

Each makes, for a case, a function that takes so many training steps.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ddpm.codecs.scale import PixelCodec
from ddpm.compute.device import pick_device
from ddpm.config.network import NetworkConfig
from ddpm.data.loader import InMemoryImages, TrainingData
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.schedules import Schedule
from ddpm.interop.diffusers.unet import their_config
from ddpm.nets import build
from ddpm.training.loop import train
from ddpm.training.options import TrainingOptions
from ddpm.training.speed import accelerate, autocast, batches_ahead, on_cuda
from ddpm.training.tasks import Denoise

Steps = Callable[[int], object]

LEARNING_RATE = 2e-4
EMA_DECAY = 0.9999


@dataclass(frozen=True)
class Case:
    """A network, the images and the batch that all contestants have."""

    name: str
    side: int
    channels: int
    network: dict[str, Any]
    batch: int = 64
    steps: int = 4  # a round
    count: int = 1024  # images there are
    precisions: tuple[str, ...] = field(default=("fp32", "bf16"))

    @property
    def images(self) -> NDArray[np.uint8]:
        """[count, H, W, C], noise: what is in the images costs nothing."""
        shape = (self.count, self.side, self.side, self.channels)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def build(self) -> nn.Module:
        """Our network, on the device."""
        torch.manual_seed(0)
        return build(self.network, image_size=self.side, channels=self.channels).to(pick_device())


def ours(case: Case, precision: str) -> Steps:
    """`ddpm.training.loop.train`, with the defaults of the device."""
    device, network = pick_device(), case.build()
    example = torch.zeros(case.batch, case.channels, case.side, case.side, device=device)
    accelerate(network, example, precision, compiled=on_cuda("auto", device))
    process = GaussianProcess(Schedule.named("linear", 1000), device=device)
    images = TrainingData(InMemoryImages(case.images))

    def run(steps: int) -> None:
        train(
            network,
            Denoise(process),
            images,
            TrainingOptions(
                steps=steps,
                batch_size=case.batch,
                learning_rate=LEARNING_RATE,
                ema_decay=EMA_DECAY,
                precision=precision,
                prefetch=batches_ahead("auto", device),
            ),
        )
        _wait(device)

    return run


def diffusers(case: Case, precision: str) -> Steps:
    """diffusers' UNet2DModel under its DDPMScheduler: the loop of its unconditional example, with its EMAModel."""
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel
    from torch.utils.data import DataLoader, TensorDataset

    device = pick_device()
    kind = PixelCodec((case.side, case.side, case.channels))
    described = their_config(NetworkConfig.model_validate(case.network), kind, case.channels, None)
    described.pop("_class_name")
    network: Any = UNet2DModel(**described)
    network.to(device)
    scheduler: Any = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, betas=(0.95, 0.999), weight_decay=1e-6)
    average = EMAModel(network.parameters(), decay=EMA_DECAY)
    pixels = torch.from_numpy(case.images).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
    loader = _endless(DataLoader(TensorDataset(pixels), case.batch, shuffle=True, drop_last=True))

    def run(steps: int) -> None:
        network.train()
        for _ in range(steps):
            (x0,) = next(loader)
            x0 = x0.to(device)
            noise = torch.randn_like(x0)
            t = torch.randint(0, 1000, (len(x0),), device=device)
            with autocast(device, precision):
                out = network(scheduler.add_noise(x0, noise, t), t).sample
                loss = nn.functional.mse_loss(out.float(), noise)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.step(network.parameters())
            loss.detach().item()  # which the example logs at every step
        _wait(device)

    return run


def lucidrains(case: Case, precision: str) -> Steps:
    """denoising_diffusion_pytorch's Trainer as it is, on image files; `case.network` is its Unet's in our words."""
    from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet  # type: ignore[import-untyped]
    from PIL import Image

    wide = case.network["multipliers"]
    network = Unet(case.network["width"], dim_mults=wide, channels=case.channels)
    diffusion = GaussianDiffusion(network, image_size=case.side, objective="pred_noise", beta_schedule="linear")
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    for index, image in enumerate(case.images):
        Image.fromarray(image.squeeze()).save(folder / f"{index}.png")
    AcceleratorState._reset_state(True)  # one process has Trainers of two precisions
    trainer = Trainer(
        diffusion,
        str(folder),
        train_batch_size=case.batch,
        train_lr=LEARNING_RATE,
        train_num_steps=0,
        ema_decay=EMA_DECAY,
        augment_horizontal_flip=False,
        save_and_sample_every=10**9,
        results_folder=str(folder / "results"),
        amp=precision != "fp32",
        mixed_precision_type="bf16",
        calculate_fid=False,
    )

    def run(steps: int) -> None:
        trainer.train_num_steps += steps
        with contextlib.redirect_stdout(None), _quiet():
            trainer.train()
        _wait(pick_device())

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bar on stderr."""
    with tempfile.TemporaryFile("w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


CONTESTANTS: dict[str, Callable[[Case, str], Steps]] = {
    "ddpm": ours,
    "diffusers": diffusers,
    "denoising_diffusion_pytorch": lucidrains,
}
