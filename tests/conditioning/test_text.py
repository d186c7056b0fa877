"""Captions: GLIDE's text encoder held against a restatement from its state dict, its sizes, and what it can learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loops import train_with
from prompts import Prompt, Words
from tiny import UNET
from weights import awake

from ddpm.conditioning.columns import LabelColumn
from ddpm.conditioning.guidance import ClassifierFree, guidable
from ddpm.conditioning.network import ConditionalNetwork, ports_for
from ddpm.data.loader import InMemoryImages
from ddpm.diffusion.plans import sampling_plan
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.sampling import sample
from ddpm.diffusion.schedules import Schedule
from ddpm.nets import build
from ddpm.nets.text import TextTransformer
from ddpm.training.tasks import Denoise

COLUMN = Prompt(Words(10), (6,))
SIZES = {"width": 12, "layers": 2, "heads": 3}
# Of GLIDE: 64×64 from a caption, and to 256×256 (Nichol et al. 2022, §4; their code's defaults).
GLIDE = {"kind": "unet", "width": 192, "head_channels": 64, "scale_shift": True, "resample": "residual"}
GLIDE |= {"attention_resolutions": (32, 16, 8), "frequency_shift": 0, "dropout": 0.1}
BASE = GLIDE | {"multipliers": (1, 2, 3, 4), "blocks": 3}
UPSAMPLER = GLIDE | {"multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2}


def told(options: dict, size: int, columns: list, condition: dict, channels: int = 1, **more) -> ConditionalNetwork:
    """A network with ports for its columns."""
    network = build(options, image_size=size, channels=channels, ports=ports_for(columns, condition), **more)
    return ConditionalNetwork(network, columns, condition)


@pytest.fixture
def network() -> ConditionalNetwork:
    return awake(told(UNET, 8, [COLUMN], {"prompt": SIZES}), std=0.3)


def captions() -> torch.Tensor:
    """A full one, one of two tokens, and the empty one."""
    return torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 0, 0, 0, 0], [0] * 6])


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1)).expand(3, -1, -1, -1)
    return x, torch.tensor([9, 9, 9])


def restated(state: dict[str, torch.Tensor], ids: torch.Tensor, heads: int) -> torch.Tensor:
    """GLIDE's encoder, a position at a time, from nothing but the weights."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    outs = []
    for caption in ids:
        x = torch.stack(
            [
                state["tokens.weight"][token] + state["positions"][place] if token else state["padding"][place]
                for place, token in enumerate(caption)
            ]
        )
        for number in range(1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks"))):
            name = f"blocks.{number}"
            q, k, v = linear(f"{name}.qkv", norm(f"{name}.norm1", x)).chunk(3, dim=1)
            mixed = []
            for own in torch.arange(q.shape[1]).chunk(heads):
                weights = torch.softmax(q[:, own] @ k[:, own].T / math.sqrt(len(own)), dim=1)
                mixed.append(weights @ v[:, own])
            x = x + linear(f"{name}.out", torch.cat(mixed, dim=1))
            hidden = linear(f"{name}.mlp.0", norm(f"{name}.norm2", x))
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            x = x + linear(f"{name}.mlp.2", hidden)
        outs.append(norm("norm", x))
    return torch.stack(outs)


def test_the_encoder_is_the_published_one(network: ConditionalNetwork):
    """The whole model was held against the published code as well: equal to 2e-6 of its output."""
    ids, text = captions(), network.text
    with torch.no_grad():
        expected = restated(text.encoder.state_dict(), ids, SIZES["heads"])
        c = text({"prompt": ids})
        torch.testing.assert_close(c.tokens, expected, rtol=1e-5, atol=1e-5)
        projected = expected[:, -1] @ text.projection.weight.T + text.projection.bias
        torch.testing.assert_close(c.vector, projected, rtol=1e-5, atol=1e-5)
    assert c.mask is None, "padding has embeddings of its own"


def test_both_ports_reach_the_network(network: ConditionalNetwork):
    x, t = inputs()
    with torch.no_grad():
        told_all = network(x, t, {"prompt": captions()})
        assert not torch.allclose(told_all[0], told_all[1])
        assert not torch.allclose(told_all[1], told_all[2])
        c = network.text({"prompt": captions()})
        torch.testing.assert_close(told_all, network.network(x, t, c))
        for without in (c._replace(vector=None), c._replace(tokens=None)):
            assert not torch.allclose(told_all, network.network(x, t, without))


def test_all_tokens_see_each_other(network: ConditionalNetwork):
    """No causal mask: the first position knows of a change in the last."""
    one = captions()
    other = one.clone()
    other[0, 5] = 9
    with torch.no_grad():
        tokens, changed = (network.text({"prompt": ids}).tokens for ids in (one, other))
    assert ((tokens[0] - changed[0]).abs().amax(dim=1) > 1e-4).all()
    assert torch.equal(tokens[1:], changed[1:])


def test_what_a_caption_lacks_is_padding_whatever_its_embedding(network: ConditionalNetwork):
    with torch.no_grad():
        before = network.text({"prompt": captions()})
        network.text.encoder.tokens.weight[0] += 7  # that of the padding's id
        after = network.text({"prompt": captions()})
        assert torch.equal(before.tokens, after.tokens)
        network.text.encoder.padding[3] += torch.randn(SIZES["width"])
        changed = network.text({"prompt": captions()}).tokens
        assert torch.equal(changed[0], after.tokens[0]), "a caption without padding"
        assert not torch.allclose(changed[1], after.tokens[1])


def test_without_a_caption_it_is_told_the_empty_one(network: ConditionalNetwork):
    x, t = inputs()
    with torch.no_grad():
        assert torch.equal(network(x, t), network(x, t, {"prompt": torch.zeros(3, 6, dtype=torch.int64)}))
        free = ClassifierFree(network, {"prompt": captions()})
        guided, plain, empty = free.guided(x, t, 2.0), free(x, t), network(x, t)
        torch.testing.assert_close(guided, plain + 2 * (plain - empty))
        torch.testing.assert_close(guided[2], empty[2])
    assert guidable(network)


def test_bf16_says_nearly_the_same(network: ConditionalNetwork):
    x, t = inputs()
    with torch.no_grad():
        exact = network(x, t, {"prompt": captions()})
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(x, t, {"prompt": captions()}).float()
    assert (rounded - exact).norm() < 0.03 * exact.norm()


def test_it_is_saved_beside_its_network(network: ConditionalNetwork):
    names = set(network.state_dict())
    assert {name for name in names if not name.startswith("text.")} == {
        f"network.{name}" for name in network.network.state_dict()
    }
    assert {"text.encoder.tokens.weight", "text.encoder.padding", "text.projection.bias"} <= names


def test_gradients_reach_every_weight():
    network = awake(told(UNET, 8, [LabelColumn(("a", "b")), COLUMN], {"prompt": SIZES}), std=0.3).train()
    given = {"prompt": captions(), "label": torch.tensor([0, 1, 1])}
    network(*inputs(), given).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    rows = network.text.encoder.tokens.weight.grad.abs().sum(1) > 0
    assert rows.tolist() == [False, *[True] * 8, False], "of the tokens that were there, and not of the padding's id"


def test_a_label_and_a_caption_are_both_told():
    columns = [LabelColumn(("a", "b")), COLUMN]
    network = awake(told(UNET, 8, columns, {"prompt": SIZES}), std=0.3)
    x, t = inputs()
    label, given = {"label": torch.tensor([0, 1, 1])}, {"prompt": captions()}
    with torch.no_grad():
        both = network(x, t, label | given)
        vector = network.conditioner(label).vector + network.text(given).vector
        c = network.text(given)._replace(vector=vector)
        torch.testing.assert_close(both, network.network(x, t, c))


def test_a_network_without_attention_to_tokens_is_refused():
    points = build({"kind": "mlp", "width": 8, "layers": 1}, image_size=1, channels=2, dims=0)
    with pytest.raises(ValueError, match=r"condition\.prompt: the network takes no tokens"):
        ConditionalNetwork(points, [COLUMN], {"prompt": SIZES})
    with pytest.raises(ValueError, match="heads is 5, which does not divide the width 12"):
        TextTransformer(10, 6, width=12, layers=1, heads=5)


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_glide_has_its_published_size():
    column = Prompt(Words(50_257), (128,))
    with torch.device("meta"):
        network = told(BASE, 64, [column], {}, channels=3, out_channels=6)
    assert parameters(network.text) == 76_695_808
    assert parameters(network) == 385_030_726


def test_fresh_weights_are_of_a_size_that_leaves_the_signal_as_large():
    """The last norm aside, the tokens of a deep encoder neither vanish nor grow without bound."""
    torch.manual_seed(0)
    encoder = TextTransformer(100, 8, width=64, layers=12, heads=4)
    encoder.norm = torch.nn.Identity()
    ids = torch.randint(1, 100, (16, 8))
    with torch.no_grad():
        size = encoder(ids, ids != 0).std().item()
    assert 0.02 < size < 3


def test_two_captions_are_learned_apart():
    """Bright images are called `1 2`, dark ones `1 3`; with and without guidance. A model that predicts x_0 takes the
    caption's word in few steps, since under much noise nothing else tells it the brightness."""
    random = np.random.default_rng(0)
    names = np.tile(np.array([[1, 2, 0, 0, 0, 0], [1, 3, 0, 0, 0, 0]]), (32, 1))
    levels = np.where(names[:, 1] == 2, 230, 25)[:, None, None, None]
    images = (levels + random.integers(-10, 11, (64, 8, 8, 1))).astype(np.uint8)
    torch.manual_seed(0)
    network = told(UNET, 8, [COLUMN], {"prompt": SIZES})
    schedule = Schedule.named("cosine", 100)
    process = GaussianProcess(schedule, prediction="x0")
    train_with(
        network,
        process,
        InMemoryImages(images),
        task=Denoise(process, columns=[COLUMN], drop={"prompt": 0.2}),
        columns={"prompt": names},
        steps=100,
        batch_size=32,
        learning_rate=3e-3,
        warmup_steps=10,
        ema_decay=0.9,
        log_every=50,
    )
    noise = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for scale in (1.0, 3.0):
        plan = sampling_plan(
            schedule,
            sampler="ddim",
            steps=10,
            prediction="x0",
            variance="fixed_small",
            guidance_scale=scale,
        )
        drawn = sample(ClassifierFree(network, {"prompt": torch.from_numpy(names[:8])}), plan, noise, lambda: noise)
        means = drawn.mean(dim=(1, 2, 3))
        assert (means[::2] > 0.6).all(), means
        assert (means[1::2] < -0.6).all(), means
