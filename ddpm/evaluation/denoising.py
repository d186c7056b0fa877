"""Pictures of a model at work: from noise to data, and of values also the way there."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ddpm.data.store import PreparedData
from ddpm.diffusion import sampling
from ddpm.evaluation.distances import chosen
from ddpm.evaluation.pictures import grid
from ddpm.evaluation.plots import SHOWN, processes
from ddpm.model import Model

STRIP_IMAGES, STRIP_MOMENTS = 8, 11
PANEL_MOMENTS = 5


def denoising(model: Model, data: PreparedData, seed: int) -> Image.Image:
    """The picture for the model's kind of data."""
    if model.kind.name == "images":
        return denoising_strip(model, seed)
    split = data.split("validation")
    return forward_and_reverse(model, split.rows(chosen(len(split), SHOWN, seed)), seed)


def denoising_strip(model: Model, seed: int) -> Image.Image:
    """A row an image, from x_T on the left to x_0 on the right."""
    noise = model.noise(STRIP_IMAGES, seed)
    x = noise()
    plan = model.plan()
    states = [x, *(state for state, _ in sampling.trajectory(model.network, plan, x, noise))]
    moments = np.unique(np.linspace(0, len(states) - 1, STRIP_MOMENTS).round().astype(int))
    columns = [model.kind.decode(states[moment].cpu().numpy()) for moment in moments]
    rows = np.stack(columns, axis=1).reshape(-1, *model.shape)
    return grid(rows, len(moments))


def forward_and_reverse(model: Model, real: NDArray[np.float32], seed: int) -> Image.Image:
    """Real data [N, ...] on their way to noise, t rising, above noise on its way to data, t falling (as in
    Sohl-Dickstein et al. 2015, figure 1).
    """
    kind = model.kind
    x0 = kind.encode(torch.from_numpy(real)).to(model.device)
    process, noise = model.process(), model.noise(len(x0), seed)
    forward = [(0, real)]
    for t in np.unique(np.linspace(0, process.timesteps - 1, PANEL_MOMENTS).round().astype(int))[1:]:
        xt = process.q_sample(x0, torch.full((len(x0),), int(t), device=model.device), noise())
        forward.append((int(t) + 1, kind.decode(xt.cpu().numpy())))

    plan = model.plan()
    x = noise()
    states = [x, *(state for state, _ in sampling.trajectory(model.network, plan, x, noise))]
    times = [*(t + 1 for t, _ in plan.rows()), 0]
    moments = np.unique(np.linspace(0, len(states) - 1, PANEL_MOMENTS).round().astype(int))
    reverse = [(times[moment], kind.decode(states[moment].cpu().numpy())) for moment in moments]
    return processes([("forward", forward), ("reverse", reverse)])
