"""What holds on a CUDA device."""

from pathlib import Path

import numpy as np
import pytest
import torch
from loops import train_with

from ddpm.compute.device import pick_device, resolve_precision
from ddpm.data.loader import InMemoryImages
from ddpm.deploy.runtime import CPU, CUDA, Sampler
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.plans import sampling_plan
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.sampling import sample
from ddpm.diffusion.schedules import Schedule
from ddpm.nets import build

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

OPTIONS = {"kind": "unet", "width": 32, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (8,)}
SCHEDULE = Schedule.named("linear", 100)
IMAGES = InMemoryImages(np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_on_the_device(precision):
    device = pick_device()
    assert device.type == "cuda"
    network = build(OPTIONS, image_size=16, channels=3).to(device)
    process = GaussianProcess(SCHEDULE, device=device)
    curve = train_with(
        network,
        process,
        IMAGES,
        seed=0,
        steps=40,
        batch_size=32,
        learning_rate=1e-3,
        warmup_steps=5,
        log_every=10,
        precision=precision,
    )
    assert curve[-1].loss < curve[0].loss


def test_auto_is_bf16_where_there_is_bf16():
    expected = "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    assert resolve_precision("auto", pick_device()) == expected


def test_the_device_draws_what_the_cpu_draws():
    torch.manual_seed(0)
    network = build(OPTIONS, image_size=16, channels=3).eval()
    torch.nn.init.normal_(network.out_conv.weight, std=0.05)
    plan = sampling_plan(SCHEDULE, sampler="ddim", steps=10, prediction="epsilon", variance="fixed_small", eta=1.0)
    images = []
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for device in ("cpu", "cuda"):
        noise = ImageNoise(0, 4, (3, 16, 16))
        images.append(
            sample(
                network.to(device),
                plan,
                torch.from_numpy(noise.draw()).to(device),
                lambda noise=noise, device=device: torch.from_numpy(noise.draw()).to(device),
            ).cpu()
        )
    torch.testing.assert_close(*images, rtol=0, atol=1e-3)


def test_the_exported_sampler_draws_on_the_device_what_it_draws_on_the_cpu(trained: Path):
    deploy, options = trained / "deploy/tiny", {"sampler": "ancestral", "steps": 20, "seed": 3}
    on_device = Sampler(deploy)
    assert (on_device.providers[0], on_device.in_graph) == (CUDA, True)
    drawn = on_device.sample(5, **options).astype(int)
    np.testing.assert_allclose(drawn, Sampler(deploy, providers=[CPU]).sample(5, **options).astype(int), atol=1)
