"""Pictures of a model at work: the way from noise to data, and of values also the way to noise.

t is that of the papers: 0 is data, T is noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ddpm.data.store import PreparedData
from ddpm.diffusion import sampling
from ddpm.evaluation.distances import chosen
from ddpm.evaluation.image_to_image import like_validation, low_column
from ddpm.evaluation.pictures import WIDTH, as_gif, captioned, grid
from ddpm.evaluation.plots import SHOWN, processes, side_by_side
from ddpm.model import Model

STRIP_IMAGES, STRIP_MOMENTS = 8, 11
PANEL_MOMENTS = 5
FILM_SIDE = 64  # pixels of an image in a film at most
# Images, width and states of a film: it is the first of these that is small enough.
FILMS = ((16, 240, 24), (9, 240, 24), (4, 160, 24), (1, 160, 24), (1, 100, 12))
FILM_BYTES = 300_000
FILM_DATA_MOMENTS = 16  # each takes matplotlib a tenth of a second


class State(NamedTuple):
    """Data on their way from noise, [N, *shape] as they are stored."""

    t: int
    data: NDArray[Any]
    position: int = 0
    """On the way, whose first state has 0."""


class Denoising(NamedTuple):
    """A model at work: a still picture of it, and the frames of a film."""

    picture: Image.Image
    films: Iterator[list[Image.Image]]
    """The film, and smaller ones."""

    def film(self, facts: Mapping[str, str]) -> bytes:
        """The first film that is small enough, or the smallest, as a GIF."""
        for frames in self.films:
            encoded = as_gif(frames, facts)
            if len(encoded) <= FILM_BYTES:
                break
        return encoded


def denoising(model: Model, data: PreparedData, seed: int) -> Denoising:
    """What is shown of the model's kind of data."""
    if model.codec.pictures:
        rows = np.arange(FILMS[0][0]) % len(data.split("validation"))
        asked = like_validation(model.columns, data, rows) if low_column(model.columns) else {}
        moments = [STRIP_MOMENTS, *(number for _, _, number in FILMS)]
        states = list(way(model, FILMS[0][0], seed, *moments, asked=asked))
        return Denoising(strip(spread(states, STRIP_MOMENTS)), films(states))
    split = data.split("validation")
    real = split.rows(chosen(len(split), SHOWN, seed))
    states = list(way(model, len(real), seed, PANEL_MOMENTS, FILM_DATA_MOMENTS))
    picture = processes(
        [("forward", _timed(forward(model, real, seed))), ("reverse", _timed(spread(states, PANEL_MOMENTS)))]
    )
    shown = spread(states, FILM_DATA_MOMENTS)
    frames = [side_by_side([("real", real), (f"t = {state.t}", state.data)]) for state in shown]
    return Denoising(picture, iter([frames]))


def _timed(states: list[State]) -> list[tuple[int, NDArray[Any]]]:
    return [(state.t, state.data) for state in states]


def way(model: Model, count: int, seed: int, *moments: int, asked: Mapping[str, Any] | None = None) -> Iterator[State]:
    """The states of `count` data from x_T to x_0, by the model's plan.

    Args:
        asked: of the model's columns.
        moments: numbers of states that are wanted; the states are those of each number, spread over the way.
    """
    noise, plan = model.noise(count, seed), model.plan()
    # In continuous time, the number of the level whose time it is.
    times = [*(np.searchsorted(model.schedule.timesteps, plan.timesteps) + 1).tolist(), 0]
    wanted = {moment for number in moments for moment in _spread(len(times), number)}
    x = noise()
    yield State(times[0], model.codec.decode(x.cpu().numpy()), 0)
    for moment, (state, _) in enumerate(
        sampling.trajectory(model.denoiser(model.given(count, seed=seed, **(asked or {}))), plan, x, noise), start=1
    ):
        if moment in wanted:
            yield State(times[moment], model.codec.decode(state.cpu().numpy()), moment)


def _spread(count: int, number: int) -> list[int]:
    """`number` of the positions 0..count−1 at even distances, or all."""
    return sorted({round(position) for position in np.linspace(0, count - 1, number).tolist()})


def spread(states: list[State], number: int) -> list[State]:
    """`number` of the states at even distances on their way, to whose end they reach."""
    wanted = _spread(states[-1].position + 1, number)
    return [state for state in states if state.position in wanted]


def strip(states: list[State]) -> Image.Image:
    """A row an image, from x_T on the left to x_0 on the right."""
    columns = np.stack([state.data[:STRIP_IMAGES] for state in states], axis=1)
    rows = columns.reshape(-1, *columns.shape[2:])
    return grid(rows, len(states), width=WIDTH, captions=[f"t = {state.t}" for state in states])


def films(states: list[State]) -> Iterator[list[Image.Image]]:
    """Each of FILMS: a square of images, in each frame at one t."""
    factor = -(-states[0].data.shape[1] // FILM_SIDE)
    for count, width, moments in FILMS:
        yield [
            captioned(grid(_reduced(state.data[:count], factor), round(count**0.5), width=width), f"t = {state.t}")
            for state in spread(states, moments)
        ]


def _reduced(images: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Images [N, H, W, C] of which each pixel is the mean of `factor`² pixels."""
    count, height, width, channels = images.shape
    whole = images[:, : height // factor * factor, : width // factor * factor]
    parts = whole.reshape(count, height // factor, factor, width // factor, factor, channels)
    return parts.mean((2, 4)).round().astype(np.uint8)


def forward(model: Model, real: NDArray[np.float32], seed: int) -> list[State]:
    """Real data [N, ...] on their way to noise (as in Sohl-Dickstein et al. 2015, figure 1)."""
    codec = model.codec
    x0 = codec.encode(torch.from_numpy(real)).to(model.device)
    process, noise = model.process(), model.noise(len(x0), seed)
    states = [State(0, real)]
    for t in _spread(process.timesteps + 1, PANEL_MOMENTS)[1:]:
        # The code counts from 0: index t − 1 is the papers' t.
        xt = process.q_sample(x0, torch.full((len(x0),), t - 1, device=model.device), noise())
        states.append(State(t, codec.decode(xt.cpu().numpy())))
    return states
