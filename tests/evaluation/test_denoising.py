"""The way from noise to data: which t its pictures name, and how large its film is."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ddpm.config.model import VariantConfig
from ddpm.evaluation.denoising import (
    FILM_BYTES,
    PANEL_MOMENTS,
    Denoising,
    State,
    films,
    forward,
    spread,
    strip,
    way,
)
from ddpm.evaluation.pictures import WIDTH, as_gif
from ddpm.evaluation.plots import side_by_side
from ddpm.model import Model
from ddpm.model.card import DataFacts, ModelCard, TrainingFacts

POINTS = DataFacts(name="dots", shape=(2,), classes=None, kind="points", low=(-1.0, -1.0), high=(1.0, 1.0))


class Silent(nn.Module):
    """Predicts no noise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * self.weight


def model(timesteps: int, steps: int, facts: DataFacts = POINTS) -> Model:
    config = VariantConfig.model_validate(
        {
            "network": {"kind": "mlp"} if facts.kind == "points" else {},
            "process": {"timesteps": timesteps, "variance": "fixed_small"},
            "sampling": {"steps": steps},
        }
    )
    training = TrainingFacts(fingerprint="none")
    return Model(Silent(), ModelCard(variant="dots", config=config, data=facts, training=training, parameters=1))


@pytest.mark.parametrize("timesteps", [4, 50, 200, 1000])
def test_forward_and_reverse_name_the_same_t(timesteps: int) -> None:
    """0 is data and T is noise, in both."""
    built = model(timesteps, timesteps)
    there = [state.t for state in forward(built, np.zeros((3, 2), np.float32), seed=0)]
    back = [state.t for state in spread(list(way(built, 3, 0, PANEL_MOMENTS)), PANEL_MOMENTS)]
    assert (there[0], there[-1]) == (0, timesteps)
    assert there == sorted(back)


def test_t_names_the_noise_there_is() -> None:
    built = model(200, 200)
    for state in forward(built, np.zeros((2000, 2), np.float32), seed=0)[1:]:
        assert state.data.std() == pytest.approx(np.sqrt(1 - built.schedule.alphas_cumprod[state.t - 1]), rel=0.05)


@pytest.mark.parametrize("steps", [1, 5, 40])
def test_the_way_ends_in_the_samples(steps: int) -> None:
    built = model(100, steps)
    states = list(way(built, 3, 7, 5, 11))
    np.testing.assert_array_equal(states[-1].data, built.sample(3, seed=7))
    assert [states[0].t, states[-1].t] == [100, 0]
    assert len(spread(states, 11)) == min(11, steps + 1)


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (80, 80, 3)])
def test_a_film_of_noise_is_small(shape: tuple[int, ...]) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (24, 16, *shape)).astype(np.uint8)
    states = [State(t, data, t) for t, data in enumerate(noise)]
    shown = Denoising(strip(states[:11]), films(states))
    encoded = shown.film({"Model": "dots"})
    assert len(encoded) <= FILM_BYTES
    film = Image.open(io.BytesIO(encoded))
    assert (film.n_frames, film.info["comment"], film.width >= 100) == (24, b"Model: dots", True)


def test_equal_frames_are_equal_bytes() -> None:
    frames = [Image.linear_gradient("L"), Image.radial_gradient("L")]
    assert as_gif(frames, {"Seed": "1"}) == as_gif(frames, {"Seed": "1"})


@pytest.mark.parametrize("panels", [1, 2, 5])
def test_plots_are_wide_enough(panels: int) -> None:
    values = np.random.RandomState(0).randn(9, 2).astype(np.float32)
    assert side_by_side([("dots", values)] * panels).width >= WIDTH
