"""The U-Net of Stable Diffusion, held against diffusers' UNet2DConditionModel."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from networks import UNET_CONDITION, WIDTH
from recorded import assert_equal
from weights import moved

from ddpm.errors import UserError
from ddpm.interop.diffusers.unet_condition import UNet2DConditionConfig, network_config, their_config
from ddpm.interop.diffusers.weights import ours_of, theirs_of
from ddpm.interop.published import network_of
from ddpm.nets import build
from ddpm.nets.condition import Condition, Ports

PEERS = {
    "Stable Diffusion 1, small": UNET_CONDITION,
    "Stable Diffusion 2, small": {**UNET_CONDITION, "attention_head_dim": (2, 4), "use_linear_projection": True},
    "deep, two blocks": {**UNET_CONDITION, "transformer_layers_per_block": 2, "layers_per_block": 2, "dropout": 0.1},
    "attention at the bottom, AdaGN": {
        **UNET_CONDITION,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    "asymmetric": {**UNET_CONDITION, "downsample_padding": 0},
}


def peer(options) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return moved(UNet2DConditionModel(**options))


def config_of(theirs) -> UNet2DConditionConfig:
    return UNet2DConditionConfig.model_validate({**theirs.config, "_class_name": type(theirs).__name__})


def question():
    generator = torch.Generator().manual_seed(1)
    x, tokens = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, WIDTH, generator=generator)
    return x, torch.tensor([3, 977]), tokens


@pytest.mark.parametrize("name", PEERS)
def test_it_is_the_same_network_and_goes_back_as_it_came(name):
    theirs = peer(PEERS[name])
    config, ports = config_of(theirs), Ports(tokens=WIDTH)
    network = network_config(config, 8, "test")
    with torch.device("meta"):
        meta = network_of(network, (4, 8, 8), 4, "test", ports)
    flip = config.flip_sin_to_cos
    weights = ours_of(theirs.state_dict(), network, meta, "test", cosines_first=flip)
    ours = build(network.model_dump(), image_size=8, channels=4, out_channels=4, ports=ports).eval()
    ours.load_state_dict(weights)
    x, t, tokens = question()
    with torch.no_grad():
        found, expected = ours(x, t, Condition(tokens=tokens)), theirs(x, t, tokens).sample
    assert_equal(found, expected, "U-Net")
    back = theirs_of(weights, network, cosines_first=flip)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())
    again = their_config(network, 8, 4, 4, WIDTH) | {"flip_sin_to_cos": flip}
    assert network_config(UNet2DConditionConfig.model_validate(again), 8, "test") == network
    UNet2DConditionModel.from_config(again).load_state_dict(back)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention_head_dim": (2, 2, 4)}, r"its heads are \[2, 2, 4\] at \[8, 16\] channels"),
        ({"attention_head_dim": (2, 8)}, r"its heads are \[2, 8\] at \[8, 16\] channels"),
        ({"down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D")}, "level 0 has SimpleCross"),
    ],
)
def test_what_ours_lacks_is_named(options, words):
    config = UNet2DConditionConfig.model_validate({**UNET_CONDITION, "_class_name": "UNet2DConditionModel", **options})
    with pytest.raises(UserError, match=words):
        network_config(config, 8, "test")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"attention": "plain"}, "attention"),
        ({"middle_attention": False}, "middle_attention"),
        ({"resample": "plain"}, "resample"),
        ({"rescale_residuals": True}, "rescale_residuals"),
        ({"timestep_scale": 0.5}, "timestep_scale"),
        ({"multipliers": (2, 4)}, "multipliers"),
    ],
)
def test_what_theirs_lacks_is_named(options, key):
    network = network_config(config_of(peer(UNET_CONDITION)), 8, "test").model_copy(update=options)
    with pytest.raises(UserError, match=rf"network\.{key} is .*, which diffusers' UNet2DConditionModel does not have"):
        their_config(network, 8, 4, 4, WIDTH)
