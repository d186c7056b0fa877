"""The ports of the U-Net: tokens with their mask, maps, and residuals."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from weights import awake

from ddpm.nets import build
from ddpm.nets.blocks import AttentionBlock, Style, attend, initialise_by_fans
from ddpm.nets.condition import Condition, Ports, Shapes
from ddpm.nets.unet import UNet

TINY = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,), "groups": 4, "dropout": 0.0}
WIDTH, MAPS = 6, 3


def inputs(count: int = 2, dims: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 2, *[8] * dims, generator=generator), torch.arange(count) * 300 + 7


def tokens(count: int = 2, length: int = 5) -> torch.Tensor:
    return torch.randn(count, length, WIDTH, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def network() -> UNet:
    return awake(UNet(Shapes((2, 8, 8), ports=Ports(WIDTH, MAPS)), **TINY))


@pytest.fixture
def maps() -> torch.Tensor:
    return torch.randn(2, MAPS, 8, 8, generator=torch.Generator().manual_seed(3))


def test_a_network_without_ports_has_the_weights_it_had():
    plain, wide = (
        {name: tensor.shape for name, tensor in UNet(Shapes((2, 8, 8), ports=ports), **TINY).state_dict().items()}
        for ports in (Ports(), Ports(WIDTH, MAPS))
    )
    added = {name: wide[name] for name in wide.keys() - plain.keys()}
    assert {name: wide[name] for name in plain} == plain
    assert added.pop("stem_maps.weight") == (8, MAPS, 3, 3)
    assert set(added) == {
        f"{attention}.token_kv.{part}"
        for attention in ("down.1.attentions.0", "middle_attention", "up.0.attentions.0", "up.0.attentions.1")
        for part in ("weight", "bias")
    }
    assert {shape for name, shape in added.items() if name.endswith("weight")} == {(32, WIDTH)}


def test_a_port_is_built_only_where_the_network_can_have_it():
    options = {"kind": "mlp", "width": 8, "layers": 1}
    assert build(options, image_size=1, channels=2, dims=0, ports=Ports(tokens=4, maps=1)).takes == {"vector"}
    unet = build({"kind": "unet", **TINY}, image_size=8, channels=2, ports=Ports(tokens=4))
    assert unet.middle_attention.token_kv.in_features == 4
    assert unet.stem_maps is None


# --- maps


@pytest.mark.parametrize("dims", [1, 2])
def test_maps_are_more_channels_of_x(dims: int):
    """A convolution of x and maps side by side, whose weights are those of both side by side."""
    network = awake(UNet(Shapes((2, *[8] * dims), ports=Ports(maps=MAPS)), **TINY))
    x, t = inputs(dims=dims)
    maps = torch.randn(2, MAPS, *[8] * dims)
    one = awake(UNet(Shapes((2 + MAPS, *[8] * dims), 2), **TINY))
    state = network.state_dict()
    joined = torch.cat([state["stem.weight"], state.pop("stem_maps.weight")], dim=1)
    one.load_state_dict(state | {"stem.weight": joined})
    with torch.no_grad():
        torch.testing.assert_close(network(x, t, Condition(maps=maps)), one(torch.cat([x, maps], dim=1), t))


def test_zero_weights_for_maps_are_the_network_without_them_to_the_last_bit(maps):
    network = awake(UNet(Shapes((2, 8, 8), ports=Ports(maps=MAPS)), **TINY))
    torch.nn.init.zeros_(network.stem_maps.weight)
    base = UNet(Shapes((2, 8, 8)), **TINY).eval()
    base.load_state_dict({name: w for name, w in network.state_dict().items() if name != "stem_maps.weight"})
    x, t = inputs()
    for memory in (torch.contiguous_format, torch.channels_last):
        told = network(x.contiguous(memory_format=memory), t, Condition(maps=maps))
        assert torch.equal(told, base(x.contiguous(memory_format=memory), t))
    told.square().mean().backward()
    assert network.stem_maps.weight.grad.abs().sum() > 0, "it can learn"


# --- tokens


def test_tokens_stand_before_the_positions_in_an_attention():
    """Restated: softmax over the tokens' keys and the positions' own."""
    block = awake(AttentionBlock(8, Style(time_width=8, groups=4, heads=2, tokens=WIDTH)))
    x, own = torch.randn(1, 8, 2, 2), tokens(1, 3)
    mask = torch.tensor([[True, False, True]])
    with torch.no_grad():
        q, k, v = block.qkv(block.norm(x)).flatten(2)[0].chunk(3)
        token_k, token_v = block.token_kv(own[0, [0, 2]]).T.chunk(2)
        k, v = torch.cat([token_k, k], dim=1), torch.cat([token_v, v], dim=1)
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            weights = torch.softmax(q[head].T @ k[head] / math.sqrt(4), dim=1)
            heads.append(weights @ v[head].T)
        expected = x + block.out(torch.cat(heads, dim=1).T.reshape(1, 8, 2, 2))
        torch.testing.assert_close(block(x, own, mask), expected)


def test_a_token_that_is_masked_out_has_no_influence(network: UNet):
    x, t = inputs()
    mask = torch.tensor([[True, True, False, True, False], [True, False, False, False, False]])
    one, other = tokens(), tokens()
    other[~mask] = 100 * torch.randn(6, WIDTH)
    with torch.no_grad():
        told = network(x, t, Condition(tokens=one, mask=mask))
        assert torch.equal(told, network(x, t, Condition(tokens=other, mask=mask)))
        other = one.clone()
        other[0, 3] += 1
        assert not torch.allclose(told, network(x, t, Condition(tokens=other, mask=mask)))
        # Other datums of the batch are not touched by it.
        assert torch.equal(told[1], network(x, t, Condition(tokens=other, mask=mask))[1])
    own = one.clone().requires_grad_()
    network(x, t, Condition(tokens=own, mask=mask)).square().sum().backward()
    assert torch.equal(own.grad.abs().sum(-1) > 0, mask)


def test_with_all_tokens_masked_out_it_is_the_network_without_tokens(network: UNet):
    x, t = inputs()
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    with torch.no_grad():
        plain, masked = network(x, t), network(x, t, Condition(tokens=tokens(), mask=nothing))
        torch.testing.assert_close(plain, masked)
        everything = network(x, t, Condition(tokens=tokens(), mask=~nothing))
        torch.testing.assert_close(everything, network(x, t, Condition(tokens=tokens())))
        assert not torch.allclose(plain, everything)


def test_the_order_of_tokens_does_not_matter_to_the_network(network: UNet):
    """Their places are the encoder's knowledge."""
    x, t = inputs()
    with torch.no_grad():
        told = network(x, t, Condition(tokens=tokens()))
        torch.testing.assert_close(told, network(x, t, Condition(tokens=tokens().flip(1))))


def test_the_spelt_out_attention_of_bf16_masks_alike():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 2, 4, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    mask = (torch.rand(2, 1, 1, 7) < 0.5).index_fill(-1, torch.tensor([6]), True)
    spelt = attend(*(each.bfloat16() for each in (q, k, v)), mask)
    torch.testing.assert_close(spelt.float(), attend(q, k, v, mask), rtol=0.05, atol=0.02)
    torch.testing.assert_close(attend(q, k, v, mask)[0], F.scaled_dot_product_attention(q[0], k[0], v[0], mask[0]))


def test_the_weights_of_tokens_are_drawn_as_two_layers_by_their_fans():
    block = AttentionBlock(64, Style(time_width=8, groups=4, heads=2, tokens=32))
    initialise_by_fans(block)
    expected = math.sqrt(2 / (32 + 64))
    assert [half.std().item() for half in block.token_kv.weight.chunk(2)] == pytest.approx([expected] * 2, rel=0.05)


# --- residuals


def residuals_of(network: UNet) -> list[torch.Tensor]:
    """One for each skip and one for the bottom."""
    torch.manual_seed(4)
    x, t = inputs()
    bottom, _, skips = network.encode(x, t, Condition())
    return [torch.randn_like(each) for each in [*skips, bottom]]


def test_residuals_are_added_to_the_skips_and_the_bottom(network: UNet):
    x, t = inputs()
    added = residuals_of(network)
    with torch.no_grad():
        plain = network(x, t)
        assert torch.equal(plain, network(x, t, Condition(residuals=tuple(0 * each for each in added))))
        for number in range(len(added)):
            alone = tuple(each if number == place else 0 * each for place, each in enumerate(added))
            assert not torch.allclose(plain, network(x, t, Condition(residuals=alone))), number


def test_residuals_reach_the_way_up_alone(network: UNet):
    x, t = inputs()
    added = tuple(each.requires_grad_() for each in residuals_of(network))
    network(x, t, Condition(residuals=added)).square().sum().backward()
    assert all(each.grad.abs().sum() > 0 for each in added)


def test_another_number_of_residuals_is_refused(network: UNet):
    x, t = inputs()
    with pytest.raises(ValueError, match="residuals: expected 4 and one of the bottom, found 4"):
        network(x, t, Condition(residuals=tuple(residuals_of(network)[1:])))


# --- all of them


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_weight(checkpointing: bool, maps):
    network = awake(UNet(Shapes((2, 8, 8), ports=Ports(WIDTH, MAPS)), **TINY, checkpointing=checkpointing)).train()
    x, t = inputs()
    told = tokens().requires_grad_()
    c = Condition(vector=torch.ones(2, network.vector_width), tokens=told, maps=maps)
    network(x, t, c).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert (told.grad.abs().sum(-1) > 0).all()


def test_checkpointing_has_the_same_gradients(maps):
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        network = awake(UNet(Shapes((2, 8, 8), ports=Ports(WIDTH, MAPS)), **TINY, checkpointing=checkpointing)).train()
        told = tokens().requires_grad_()
        network(*inputs(), Condition(tokens=told, maps=maps)).square().mean().backward()
        return [told.grad, *(p.grad for p in network.parameters())]

    for one, other in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    "told", [Condition(tokens=torch.zeros(2, 1, WIDTH)), Condition(maps=torch.zeros(2, MAPS, 8, 8))]
)
def test_a_condition_for_which_there_is_no_port_is_refused(told: Condition):
    with pytest.raises(ValueError, match="the network was built without this port"):
        UNet(Shapes((2, 8, 8)), **TINY)(*inputs(), told)


def test_tokens_without_an_attention_are_refused():
    with pytest.raises(ValueError, match="nothing attends to tokens"):
        UNet(Shapes((2, 8, 8), ports=Ports(WIDTH)), **{**TINY, "attention_resolutions": (), "middle_attention": False})
