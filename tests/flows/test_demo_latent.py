"""`make demo-latent`: its project, and its models through the stages for a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.config.params import load_params
from ddpm.first_stage import latent_shape
from ddpm.model.network import build_network
from flows import demo_latent, demo_text


@pytest.fixture(scope="module")
def project(repository: Callable[..., Path]) -> Path:
    return demo_text.make_project(repository(demo_latent.FOLDER), demo_latent.DEMO, demo_latent.FOLDER)


def test_the_project_builds_the_model_of_latents_after_its_autoencoder(project: Path):
    assert project.name == ".demo-latent"
    params = load_params(project / "params.yaml")
    assert params.built == (demo_latent.MODEL,)
    assert params.trained == (demo_latent.AUTOENCODER, demo_latent.MODEL)
    assert params.data.dataset_name == "emoji"


def test_its_latents_have_an_eighth_of_an_images_numbers_or_fewer(project: Path):
    from ddpm.codecs.scale import PixelCodec

    params, pixels = load_params(project / "params.yaml"), PixelCodec((32, 32, 3))
    autoencoder = params.variant(demo_latent.AUTOENCODER)
    with torch.device("meta"):
        network = build_network(autoencoder, pixels)
    assert network.latent_shape == latent_shape(autoencoder.network, pixels) == (4, 8, 8)
    assert np.prod(network.latent_shape) <= 32 * 32 * 3 / 8
