"""The autoencoder of latent diffusion: its size, its shapes, and diffusers' AutoencoderKL as its oracle."""

import pytest
import torch
from diffusers import AutoencoderKL as Theirs
from recorded import assert_equal, assert_parameters
from weights import moved

from ddpm.config.network import AutoencoderConfig
from ddpm.errors import UserError
from ddpm.interop.diffusers.autoencoder import (
    read_autoencoder,
    their_autoencoder_config,
    their_autoencoder_weights,
)
from ddpm.nets import build
from ddpm.nets.autoencoder import AutoencoderKL
from ddpm.nets.condition import Shapes

SMALL = {"width": 8, "multipliers": (1, 2, 2), "blocks": 1, "latent_channels": 3, "groups": 4}
VARIANTS = {
    "f4": {},
    "one level": {"multipliers": (1,)},
    "f2, two blocks": {"multipliers": (1, 3), "blocks": 2},
    "without attention": {"middle_attention": False},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def config(request) -> AutoencoderConfig:
    return AutoencoderConfig(kind="autoencoder", **(SMALL | request.param))


def network_of(config: AutoencoderConfig) -> AutoencoderKL:
    return build(config.model_dump(), image_size=16, channels=3)


def test_f8_is_the_papers():
    with torch.device("meta"):
        network = AutoencoderKL(Shapes((3, 256, 256)))
    assert_parameters(network, 83_653_863, "autoencoder")
    assert network.latent_shape == (4, 32, 32)
    with torch.device("meta"):
        mean, log_variance = network.encode(torch.zeros(2, 3, 256, 256))
        assert mean.shape == log_variance.shape == (2, 4, 32, 32)
        assert network.decode(mean).shape == (2, 3, 256, 256)


def test_it_equals_diffusers(config):
    ours = moved(network_of(config)).eval()
    theirs = Theirs.from_config(their_autoencoder_config(config, 3, 16, 0.5)).eval()
    theirs.load_state_dict(their_autoencoder_weights(config, ours.state_dict()))
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        posterior, (mean, log_variance) = theirs.encode(x).latent_dist, ours.encode(x)
        pairs = [
            (posterior.mean, mean),
            (posterior.logvar, log_variance),
            (theirs.decode(mean).sample, ours.decode(mean)),
        ]
    for expected, found in pairs:
        assert_equal(found, expected, "autoencoder")
        assert expected.std() > 1e-3  # not all alike, which would equal anything


def test_their_directory_comes_back_as_ours(config, tmp_path):
    ours = moved(network_of(config))
    theirs = Theirs.from_config(their_autoencoder_config(config, 3, 16, 0.5))
    theirs.load_state_dict(their_autoencoder_weights(config, ours.state_dict()))
    found, described, weights = read_autoencoder(dict(theirs.config), theirs.state_dict(), "vae")
    assert (found, described.scaling_factor, described.sample_size) == (config, 0.5, 16)
    assert weights.keys() == ours.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")}, "down_block_types"),
        ({"block_out_channels": (8, 12)}, "block_out_channels"),
        ({"use_quant_conv": False}, "use_quant_conv"),
        ({"shift_factor": 0.1}, "shift_factor"),
        ({"latent_channels": 4}, r"out_conv.weight is \[6, 16, 3, 3\]"),
    ],
)
def test_what_ours_lacks_is_named(changed, named):
    config = AutoencoderConfig(kind="autoencoder", **(SMALL | {"multipliers": (1, 2)}))
    described = their_autoencoder_config(config, 3, 16, 0.5) | changed
    weights = their_autoencoder_weights(config, network_of(config).state_dict())
    with pytest.raises(UserError, match=named):
        read_autoencoder(described, weights, "vae/config.json")


def test_weights_that_are_missing_or_too_many_are_named():
    config = AutoencoderConfig(kind="autoencoder", **SMALL)
    weights = their_autoencoder_weights(config, network_of(config).state_dict())
    weights["loss.logvar"] = weights.pop("quant_conv.bias")
    with pytest.raises(UserError, match=r"missing quant_conv\.bias; unexpected loss\.logvar"):
        read_autoencoder(their_autoencoder_config(config, 3, 16, 0.5), weights, "vae")


@pytest.mark.parametrize(
    ("options", "named"), [({"groups": 3}, "groups"), ({"multipliers": (1, 1, 1, 1, 1, 1)}, "multipliers")]
)
def test_numbers_that_do_not_fit_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        build({"kind": "autoencoder", **SMALL, **options}, image_size=16, channels=3)
