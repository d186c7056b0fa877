"""Samplers of others and ours around one network: what `bench.sampling` times."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import denoising_diffusion_pytorch.denoising_diffusion_pytorch as lucidrains  # type: ignore[import-untyped]
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline
from torch import Tensor, nn

from ddpm.deploy.runtime import Sampler
from ddpm.export.files import describe_sampler, export_denoiser, export_sampler
from ddpm.interop import diffusers
from ddpm.interop.published import Published
from ddpm.model import Model

# Its progress bar around the steps would be timed too.
lucidrains.tqdm = partial(lucidrains.tqdm, disable=True)

Draw = Callable[[int], Any]
"""Draws so many images; each contestant as its users get them, in memory."""

RUNTIME, TORCH, DIFFUSERS, LUCIDRAINS = "this runtime", "this in torch", "diffusers", "denoising_diffusion_pytorch"
MODEL_FILES, DEPLOY_FILES = "diffusers", "deploy"


def write_files(model: Model, folder: Path) -> None:
    """The model as onnxruntime and as diffusers read it, below `folder`."""
    config = model.card.config
    published = Published(
        config.network, config.process, config.sampling, model.codec, dict(model.network.state_dict())
    )
    theirs, ours = folder / MODEL_FILES, folder / DEPLOY_FILES
    theirs.mkdir(parents=True)
    ours.mkdir()
    diffusers.write(published, theirs)
    export_denoiser(model, ours / "denoiser.onnx")
    export_sampler(model, ours / "denoiser.onnx", ours / "sampler.onnx")
    describe_sampler(model, ours)


def ddim(model: Model, folder: Path, steps: int) -> dict[str, Draw]:
    """All four by DDIM with η = 0 in `steps` steps, on the same weights; ours is the first."""
    runtime, pipeline = Sampler(folder / DEPLOY_FILES), _pipeline(model, folder)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    by_ddim = _quiet(DDIMPipeline(pipeline.unet, scheduler))
    theirs = _lucidrains(model, steps)
    plan: dict[str, Any] = {"sampler": "ddim", "eta": 0.0, "steps": steps}
    # ε̂ follows from the clipped x̂₀, as in improved-diffusion; not diffusers' default, and as fast.
    options = {"num_inference_steps": steps, "eta": 0.0, "use_clipped_model_output": True, "output_type": "np"}
    return {
        RUNTIME: lambda n: runtime.sample(n, batch_size=n, **plan),
        TORCH: lambda n: model.sample(n, batch_size=n, **plan),
        DIFFUSERS: lambda n: by_ddim(batch_size=n, **options).images,
        LUCIDRAINS: lambda n: theirs.sample(batch_size=n).cpu(),
    }


def of_all_steps(model: Model, folder: Path) -> dict[str, Draw]:
    """What others do by default: ancestral sampling through every timestep of the process."""
    pipeline, theirs = _quiet(_pipeline(model, folder)), _lucidrains(model, len(model.schedule))
    steps = len(model.schedule)
    return {
        DIFFUSERS: lambda n: pipeline(batch_size=n, num_inference_steps=steps, output_type="np").images,
        LUCIDRAINS: lambda n: theirs.sample(batch_size=n).cpu(),
    }


def _pipeline(model: Model, folder: Path) -> Any:
    return DDPMPipeline.from_pretrained(folder / MODEL_FILES).to(model.device)


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class _TheirNetwork(nn.Module):
    """A network of ours as `GaussianDiffusion` calls its own."""

    self_condition = False

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.channels = self.out_dim = model.codec.network_shape[0]
        self._network = model.network

    def forward(self, x: Tensor, t: Tensor, x_self_cond: None) -> Tensor:
        return self._network(x, t)


def _lucidrains(model: Model, steps: int) -> Any:
    process = model.card.config.process
    diffusion = lucidrains.GaussianDiffusion(
        _TheirNetwork(model),
        image_size=model.shape[0],
        timesteps=process.timesteps,
        sampling_timesteps=steps,
        objective="pred_noise",
        beta_schedule=process.schedule,
    )
    betas = torch.from_numpy(model.schedule.betas).float()
    torch.testing.assert_close(diffusion.betas, betas, rtol=1e-4, atol=1e-7)  # else it would be another process
    return diffusion.to(model.device)
