"""The U-Net with the spatial transformers of latent diffusion."""

from __future__ import annotations

import math
from contextlib import ExitStack

import pytest
import torch
from recorded import assert_parameters
from torch import nn
from weights import awake

from ddpm.config.base import validate
from ddpm.config.network import NetworkConfig
from ddpm.errors import UserError
from ddpm.nets.blocks import Style, initialise_by_fans
from ddpm.nets.condition import Condition, Ports, Shapes
from ddpm.nets.spatial_transformer import CrossAttention, SpatialTransformer
from ddpm.nets.unet import UNet

STABLE = {"width": 320, "multipliers": (1, 2, 4, 4), "attention_resolutions": (64, 32, 16), "attention": "transformer"}
TINY = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,), "groups": 4, "dropout": 0.0}
TINY |= {"attention": "transformer", "heads": 2}
WIDTH = 6


def tokens(count: int = 2, length: int = 5) -> torch.Tensor:
    return torch.randn(count, length, WIDTH, generator=torch.Generator().manual_seed(2))


def inputs(dims: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 2, *[8] * dims, generator=torch.Generator().manual_seed(1)), torch.tensor([7, 307])


def tiny(dims: int = 2, context: int = WIDTH, **options: object) -> nn.Module:
    return awake(UNet(Shapes((2, *[8] * dims), ports=Ports(context)), **{**TINY, **options}))


@pytest.mark.parametrize(
    ("context", "options", "parameters"),
    [
        (768, {"heads": 8}, 859_520_964),
        (1024, {"head_channels": 64, "transformer_projection": "linear"}, 865_910_724),
    ],
)
def test_the_networks_of_stable_diffusion_have_their_sizes(context, options, parameters):
    with torch.device("meta"):
        network = UNet(Shapes((4, 64, 64), ports=Ports(context)), **STABLE, **options)
    assert_parameters(network, parameters, "U-Net")


def test_the_first_transformer_has_the_published_modules_and_shapes():
    """Stable Diffusion 2's at 512×512: 64×64 latents of 320 channels, 5 heads of 64, 77 tokens of 1024 numbers."""
    style = Style(time_width=1280, tokens=1024, head_channels=64, transformer_projection="linear")
    with torch.device("meta"):
        transformer = SpatialTransformer(320, style)
        x, context = torch.zeros(1, 320, 64, 64), torch.zeros(1, 77, 1024)
    (block,) = transformer.blocks
    assert (transformer.norm.num_groups, transformer.norm.num_channels, transformer.norm.eps) == (32, 320, 1e-6)
    layers = [(name, layer) for name, layer in block.named_modules() if isinstance(layer, nn.Linear)]
    assert {name: (layer.in_features, layer.out_features, layer.bias is not None) for name, layer in layers} == {
        "attention1.q": (320, 320, False),
        "attention1.kv": (320, 640, False),
        "attention1.out": (320, 320, True),
        "attention2.q": (320, 320, False),
        "attention2.kv": (1024, 640, False),
        "attention2.out": (320, 320, True),
        "feed_forward.into": (320, 2560, True),
        "feed_forward.out": (1280, 320, True),
    }
    assert block.attention2.heads == 5
    assert [block.norm1.eps, block.norm2.eps, block.norm3.eps] == [1e-5] * 3
    seen = {}

    def watch(name: str):
        return lambda module, arguments, out: seen.update({name: (*(tuple(a.shape) for a in arguments[:2]), out.shape)})

    with ExitStack() as stack:
        for name in ("attention1", "attention2", "feed_forward", "attention2.q", "attention2.kv"):
            stack.callback(block.get_submodule(name).register_forward_hook(watch(name)).remove)
        assert transformer(x, context).shape == x.shape
    positions = (1, 4096, 320)
    assert seen == {
        "attention1": (positions, positions, positions),
        "attention2": (positions, (1, 77, 1024), positions),
        "feed_forward": (positions, positions),
        "attention2.q": (positions, positions),
        "attention2.kv": ((1, 77, 1024), (1, 77, 640)),
    }


def test_attention_is_the_papers_formula():
    """softmax(Q Kᵀ / √d) V of each head, with what is masked left out."""
    attention = awake(CrossAttention(6, WIDTH, heads=3), std=0.7)
    x, context, mask = torch.randn(2, 4, 6), tokens(), torch.tensor([[True] * 5, [True, True, False, True, False]])
    k, v = (context @ weight.T for weight in attention.kv.weight.chunk(2))
    expected = torch.zeros_like(x)
    for row, there in enumerate(mask):
        for head in range(3):
            own = slice(2 * head, 2 * head + 2)
            scores = (x[row] @ attention.q.weight.T)[:, own] @ k[row][there][:, own].T / math.sqrt(2)
            expected[row][:, own] = scores.softmax(1) @ v[row][there][:, own]
    torch.testing.assert_close(attention(x, context, mask), attention.out(expected))


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transformer_depth": 2},
        {"transformer_projection": "linear"},
        {"head_channels": 4, "heads": 1},
        {"rescale_residuals": True},
        {"context": 0},
    ],
    ids=lambda options: "-".join(options) or "defaults",
)
def test_every_option_learns_with_every_parameter(options, dims):
    network = tiny(dims, **options)
    x, t = inputs(dims)
    c = Condition() if options.get("context") == 0 else Condition(tokens=tokens())
    out = network(x, t, c)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_both_projections_are_the_same_function():
    x, t = inputs()
    conv, linear = tiny(), tiny(transformer_projection="linear")
    linear.load_state_dict(
        {name: tensor.reshape(linear.state_dict()[name].shape) for name, tensor in conv.state_dict().items()}
    )
    c = Condition(tokens=tokens())
    with torch.no_grad():
        torch.testing.assert_close(linear(x, t, c), conv(x, t, c))
        other = c._replace(tokens=tokens().flip(0))
        assert not torch.allclose(conv(x, t, c), conv(x, t, other)), "the tokens matter"


def test_masked_tokens_are_not_seen_and_no_image_sees_anothers():
    network, (x, t), given = tiny(), inputs(), tokens()
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    changed = torch.where(mask[..., None], given, 9.0)
    with torch.no_grad():
        both = network(x, t, Condition(tokens=given, mask=mask))
        torch.testing.assert_close(network(x, t, Condition(tokens=changed, mask=mask)), both)
        alone = network(x[:1], t[:1], Condition(tokens=given[:1, :3]))
        torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-4)


def test_a_fresh_transformer_is_the_identity():
    transformer = SpatialTransformer(8, Style(time_width=8, tokens=WIDTH, groups=4))
    x = torch.randn(2, 8, 3, 3)
    assert torch.equal(transformer(x, tokens()), x)


def test_tokens_go_with_a_network_that_was_built_for_them():
    x, t = inputs()
    with pytest.raises(ValueError, match="tokens: the network was built with this port"):
        tiny()(x, t)
    with pytest.raises(ValueError, match="tokens: the network was built without this port"):
        tiny(context=0)(x, t, Condition(tokens=tokens()))


@pytest.mark.parametrize("key", [{"transformer_depth": 2}, {"transformer_projection": "linear"}])
def test_the_options_of_transformers_are_refused_without_them(key):
    with pytest.raises(UserError, match=f"{next(iter(key))} is of attention: transformer, found attention: plain"):
        validate(NetworkConfig, key, "test")
    assert validate(NetworkConfig, key | {"attention": "transformer"}, "test")


def test_keys_and_values_are_two_layers_to_the_initialisation_of_ho():
    attention = CrossAttention(64, 64, heads=1)
    initialise_by_fans(attention)
    bound = math.sqrt(6 / 128)
    for weight in (attention.q.weight, *attention.kv.weight.chunk(2)):
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
