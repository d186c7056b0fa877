import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.nets import build
from ddpm.nets.condition import Shapes
from ddpm.nets.embeddings import timestep_embedding
from ddpm.nets.unet import UNet


def test_the_cifar10_network_has_the_papers_size():
    network = UNet(Shapes((3, 32, 32)))
    assert sum(parameter.numel() for parameter in network.parameters()) == 35_746_307


@given(
    side=st.sampled_from([4, 8, 12]),
    channels=st.sampled_from([1, 3]),
    multipliers=st.sampled_from([(1,), (1, 2), (2, 1, 1)]),
    blocks=st.integers(1, 2),
    heads=st.sampled_from([1, 2]),
)
@settings(max_examples=15, deadline=None)
def test_output_is_shaped_like_the_input_and_starts_at_zero(side, channels, multipliers, blocks, heads):
    network = UNet(
        Shapes((channels, side, side)),
        width=8,
        multipliers=multipliers,
        blocks=blocks,
        attention_resolutions=(side,),
        heads=heads,
        groups=4,
    )
    x = torch.randn(2, channels, side, side)
    out = network(x, torch.tensor([0, 999]))
    assert out.shape == x.shape
    assert out.abs().max() == 0  # the last convolution starts at zero


def test_every_parameter_learns_and_time_matters():
    torch.manual_seed(0)
    network = UNet(
        Shapes((1, 8, 8)), width=8, multipliers=(1, 2), blocks=1, attention_resolutions=(4,), groups=4, dropout=0.0
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(2, 1, 8, 8)
    network(x, torch.tensor([3, 700])).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())
    with torch.no_grad():
        assert not torch.allclose(network(x, torch.tensor([3, 3])), network(x, torch.tensor([700, 700])))


def test_images_of_a_batch_do_not_see_each_other():
    torch.manual_seed(0)
    network = UNet(Shapes((1, 8, 8)), width=8, multipliers=(1, 2), attention_resolutions=(8,), groups=4).eval()
    torch.nn.init.normal_(network.out_conv.weight)
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([1, 500, 999])
    with torch.no_grad():
        torch.testing.assert_close(network(x, t)[1:2], network(x[1:2], t[1:2]), rtol=1e-5, atol=1e-5)


def test_timestep_embedding():
    embedding = timestep_embedding(torch.tensor([0, 1, 10]), 8)
    assert embedding.shape == (3, 8)
    torch.testing.assert_close(embedding[0], torch.tensor([0.0] * 4 + [1.0] * 4))
    assert embedding[1, 0] == pytest.approx(torch.sin(torch.tensor(1.0)).item())
    assert embedding[2, 3] == pytest.approx(torch.sin(torch.tensor(10 / 10_000)).item())


@pytest.mark.parametrize(
    ("options", "side", "words"),
    [
        ({"width": 20}, 8, "groups is 32, which does not divide a level's 20 channels"),
        ({"width": 33}, 8, "width must be even"),
        ({"attention_resolutions": (16,)}, 8, r"attention_resolutions names \[16\], but the levels are 8, 4, 2, 1"),
        ({}, 28, "28 is not a multiple of 8"),
        ({"heads": 3, "attention_resolutions": (8,)}, 8, "heads is 3, which does not divide the 128 channels"),
    ],
)
def test_impossible_networks_are_refused_in_the_users_words(options, side, words):
    with pytest.raises(ValueError, match=words):
        build({"kind": "unet", "attention_resolutions": (), **options}, image_size=side, channels=1)
