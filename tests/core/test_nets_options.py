"""The U-Net's options: improved DDPM's, ADM's, one dimension, class labels, and the presets that put them together."""

from pathlib import Path

import numpy as np
import pytest
import torch
from loops import train_with
from weights import awake

from ddpm.codecs.scale import ValueCodec
from ddpm.conditioning.columns import LabelColumn
from ddpm.conditioning.network import ConditionalNetwork
from ddpm.config.model import VariantConfig
from ddpm.config.params import load_params
from ddpm.data.loader import InMemoryImages
from ddpm.errors import UserError
from ddpm.model.network import build_network
from ddpm.model.process import build_process
from ddpm.nets.blocks import ResidualBlock, Style
from ddpm.nets.condition import Shapes
from ddpm.nets.embeddings import timestep_embedding
from ddpm.nets.linear_attention import LinearAttentionUNet
from ddpm.nets.unet import UNet
from ddpm.nets.vae import VAE

PARAMS = Path(__file__).parents[2] / "params.yaml"
TINY = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,), "groups": 4, "dropout": 0.0}
BLOCK = {"time_width": 6, "groups": 2, "dropout": 0.0}
OPTIONS = [
    {},
    {"scale_shift": True},
    {"head_channels": 4},
    {"resample": "residual"},
    {"resample": "plain"},
    {"downsample_padding": "asymmetric"},
    {"rescale_residuals": True},
    {"middle_attention": False},
    {"frequency_shift": 0},
    {"scale_shift": True, "resample": "residual", "head_channels": 2, "rescale_residuals": True, "multipliers": (2, 3)},
]


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "defaults")
def test_every_option_in_every_dimension(options, dims):
    network = awake(UNet(Shapes((3, *[8] * dims), 6), **{**TINY, **options}))
    x, t = torch.randn(2, 3, *[8] * dims), torch.tensor([3, 700])
    out = network(x, t)
    assert out.shape == (2, 6, *[8] * dims)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    with torch.no_grad():
        torch.testing.assert_close(network(x[1:], t[1:]), out[1:].detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [*OPTIONS[1:4], *OPTIONS[5:9]], ids="-".join)
def test_every_option_changes_what_is_computed(options):
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    with torch.no_grad():
        plain = awake(UNet(Shapes((1, 8, 8)), **TINY))(x, t)
        changed = awake(UNet(Shapes((1, 8, 8)), **{**TINY, **options}))(x, t)
    assert not torch.allclose(plain, changed, rtol=1e-3)


def test_the_published_networks_have_their_sizes():
    """The CIFAR-10 network of improved DDPM, 52.5 M, also counted layer by layer; ADM's for ImageNet-64, 296 M."""
    options = load_params(PARAMS).models["improved-ddpm-cifar10"].network.model_dump(exclude={"kind"})
    with torch.device("meta"):
        improved = UNet(Shapes((3, 32, 32), 6), **options)
    assert parameters(improved) == published_size(
        3, 6, width=128, multipliers=(1, 2, 2, 2), blocks=3, attended={1, 2}, scale_shift=True, residual=False
    )
    assert round(parameters(improved) / 1e5) == 525
    with torch.device("meta"):
        adm = UNet(
            Shapes((3, 64, 64), 6),
            width=192,
            multipliers=(1, 2, 3, 4),
            blocks=3,
            attention_resolutions=(32, 16, 8),
            head_channels=64,
            scale_shift=True,
            resample="residual",
        )
    assert parameters(adm) == 295_904_454 - 1000 * 4 * 192  # without the embedding of the classes


def published_size(
    channels: int,
    out_channels: int,
    *,
    width: int,
    multipliers: tuple[int, ...],
    blocks: int,
    attended: set[int],
    scale_shift: bool,
    residual: bool,
) -> int:
    """Parameters of the papers' U-Net, layer by layer."""

    def conv(a: int, b: int, k: int) -> int:
        return a * b * k * k + b

    def block(a: int, b: int) -> int:
        time = (4 * width + 1) * b * (2 if scale_shift else 1)
        return 2 * a + conv(a, b, 3) + time + 2 * b + conv(b, b, 3) + (conv(a, b, 1) if a != b else 0)

    def attention(c: int) -> int:
        return 2 * c + conv(c, 3 * c, 1) + conv(c, c, 1)

    total = (width + 1) * 4 * width + (4 * width + 1) * 4 * width + conv(channels, width, 3)
    skips, c = [width], width
    for level, multiplier in enumerate(multipliers):
        for _ in range(blocks):
            total += block(c, width * multiplier)
            c = width * multiplier
            total += attention(c) if level in attended else 0
            skips.append(c)
        if level < len(multipliers) - 1:
            total += block(c, c) if residual else conv(c, c, 3)
            skips.append(c)
    total += 2 * block(c, c) + attention(c)
    for level, multiplier in reversed(list(enumerate(multipliers))):
        for _ in range(blocks + 1):
            total += block(c + skips.pop(), width * multiplier)
            c = width * multiplier
            total += attention(c) if level in attended else 0
        if level:
            total += block(c, c) if residual else conv(c, c, 3)
    return total + 2 * c + conv(c, out_channels, 3)


def test_scale_shift_is_equation_3_of_adm():
    """AdaGN(h, y) = y_s GroupNorm(h) + y_b, with y_s around 1."""
    block = awake(ResidualBlock(4, 4, Style(**BLOCK, scale_shift=True)))
    x, time = torch.randn(2, 4, 3, 3), torch.randn(2, 6)
    scale, shift = block.time(time)[:, :, None, None].chunk(2, dim=1)
    h = block.norm2(block.conv1(torch.nn.functional.silu(block.norm1(x)))) * (1 + scale) + shift
    torch.testing.assert_close(block(x, time), x + block.conv2(torch.nn.functional.silu(h)))


def test_rescaled_residuals_keep_the_variance():
    torch.manual_seed(0)
    block = awake(ResidualBlock(4, 4, Style(**BLOCK, rescale_residuals=True)))
    plain = ResidualBlock(4, 4, Style(**BLOCK))
    plain.load_state_dict(block.state_dict())
    x, time = torch.randn(2, 4, 3, 3), torch.randn(2, 6)
    torch.testing.assert_close(block(x, time) * 2**0.5, plain(x, time))


def test_a_one_dimensional_network_is_the_two_dimensional_one_on_a_line():
    """A kernel that looks along one axis alone: every row of the image is then the sequence's answer."""
    line = awake(UNet(Shapes((1, 8)), **TINY))
    plane = UNet(Shapes((1, 8, 8)), **{**TINY, "resample": "conv"}).eval()
    weights = {}
    for name, tensor in plane.state_dict().items():
        value = line.state_dict()[name]
        if tensor.ndim == 4:
            weights[name] = torch.zeros_like(tensor)
            weights[name][:, :, tensor.shape[2] // 2] = value
        else:
            weights[name] = value
    plane.load_state_dict(weights)
    sequence, t = torch.randn(2, 1, 8), torch.tensor([5, 900])
    with torch.no_grad():
        rows = plane(sequence[:, :, None, :].expand(-1, -1, 8, -1).contiguous(), t)
        torch.testing.assert_close(rows, line(sequence, t)[:, :, None, :].expand_as(rows), rtol=1e-3, atol=1e-3)


def test_recomputed_activations_give_the_same_gradients():
    """Dropout included: what is computed anew draws the same."""
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    gradients = []
    for checkpointing in (False, True):
        network = awake(UNet(Shapes((1, 8, 8)), **{**TINY, "dropout": 0.5}, checkpointing=checkpointing)).train()
        torch.manual_seed(1)
        network(x, t).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_checkpointing_keeps_less():
    def saved_bytes(checkpointing: bool) -> int:
        network = UNet(Shapes((1, 8, 8)), **TINY, checkpointing=checkpointing)
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = network(torch.randn(16, 1, 8, 8), torch.zeros(16))
        assert out.requires_grad
        return sum(kept.values())

    assert saved_bytes(True) < 0.7 * saved_bytes(False)


def test_class_labels_steer_and_none_is_none():
    network = awake(ConditionalNetwork(UNet(Shapes((1, 8, 8)), **TINY), [LabelColumn(("a", "b", "c"))]))
    x, t = torch.randn(1, 1, 8, 8).expand(3, -1, -1, -1), torch.tensor([9, 9, 9])
    label = {"label": torch.tensor([0, 1, 2])}
    with torch.no_grad():
        zero, one, two = network(x, t, label)
        assert not torch.allclose(zero, one)
        assert not torch.allclose(one, two)
        torch.nn.init.zeros_(network.conditioner.embedding.weight)
        torch.testing.assert_close(network(x, t, label), network.network(x, t))


@pytest.mark.parametrize("vector", ["add", "concatenate"])
@pytest.mark.parametrize("perceptron", [False, True])
def test_both_ways_of_a_class_into_the_linear_attention_network_learn(vector, perceptron):
    network = LinearAttentionUNet(Shapes((1, 8, 8)), width=8, multipliers=(1, 2), vector=vector)
    columns, condition = [LabelColumn(("a", "b"), droppable=True)], {"label": {"perceptron": perceptron}}
    network = awake(ConditionalNetwork(network, columns, condition))
    x, t = torch.randn(1, 1, 8, 8).expand(3, -1, -1, -1), torch.tensor([9, 9, 9])
    a, b, null = network(x, t, {"label": torch.tensor([0, 1, 2])})
    assert not torch.allclose(a, b)
    assert not torch.allclose(b, null)
    torch.stack([a, b, null]).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_what_is_to_be_concatenated_must_be_there():
    network = LinearAttentionUNet(Shapes((1, 8, 8)), width=8, multipliers=(1, 2), vector="concatenate")
    with pytest.raises(ValueError, match=r"vector: concatenate needs a condition"):
        network(torch.randn(1, 1, 8, 8), torch.tensor([1]))
    options = {"network": {"kind": "linear-attention", "vector": "concatenate"}}
    with pytest.raises(ValueError, match=r"network.vector is concatenate, but condition has no label"):
        VariantConfig.model_validate(options)
    assert VariantConfig.model_validate({**options, "condition": {"label": {}}})


def test_labels_for_a_network_without_a_port_are_refused():
    with pytest.raises(ValueError, match=r"condition.label: the network takes no condition"):
        ConditionalNetwork(VAE(Shapes((1, 8, 8))), [LabelColumn(("a", "b"))])


def test_the_two_spacings_of_the_timestep_embedding():
    t = torch.tensor([1000.0])
    ho, nichol = timestep_embedding(t, 8), timestep_embedding(t, 8, frequency_shift=0)
    torch.testing.assert_close(ho[0, :4], torch.sin(1000 * 10_000.0 ** (-torch.arange(4) / 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        nichol[0, :4], torch.sin(1000 * 10_000.0 ** (-torch.arange(4) / 4)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head_channels": 3}, "head_channels is 3, which does not divide the 16 channels"),
        ({"head_channels": 4, "heads": 2}, "heads is 2 and head_channels is 4: give one of them"),
        ({"heads": 3, "attention_resolutions": ()}, "heads is 3, which does not divide the 16 channels"),
        ({"width": 5, "groups": 1, "multipliers": (2, 2)}, "width must be even, found 5"),
        ({"width": 6, "multipliers": (2, 4)}, "groups is 4, which does not divide a level's 6 channels"),
    ],
)
def test_impossible_options_are_refused_in_the_users_words(options, words):
    with pytest.raises(ValueError, match=words):
        UNet(Shapes((1, 8, 8)), **{**TINY, **options})


def test_heads_need_not_fit_where_there_is_no_attention():
    UNet(Shapes((1, 8, 8)), **{**TINY, "attention_resolutions": (), "heads": 3, "middle_attention": False})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{resample: fir}", "`models.a.network.resample`.*'residual'.*found 'fir'"),
        ("{head_channels: 0}", "`models.a.network.head_channels`.*greater than 0"),
        ("{norm_epsilon: 0}", "`models.a.network.norm_epsilon`.*greater than 0"),
        ("{resample: plain, downsample_padding: asymmetric}", "downsample_padding is of resample: conv.*plain"),
    ],
)
def test_impossible_keys_are_refused_in_params(tmp_path, text, words):
    (tmp_path / "params.yaml").write_text(f"models: {{a: {{network: {text}}}}}\nvariants: [a]")
    with pytest.raises(UserError, match=words):
        load_params(tmp_path / "params.yaml")


def test_sequences_are_learned_by_the_same_network():
    """Sines of one frequency, whose phase is random: the loss falls well below that of answering 0, which is 1."""
    config = VariantConfig.model_validate(
        {"network": {**TINY, "scale_shift": True, "resample": "residual", "heads": 2}, "process": {"timesteps": 100}}
    )
    random = np.random.default_rng(0)
    waves = np.sin(random.uniform(0, 6.3, (200, 1, 1)) + np.arange(8) * np.pi / 4).astype(np.float32)
    kind = ValueCodec("sequences", (1, 8), (-1.0,), (1.0,))
    torch.manual_seed(0)
    network = build_network(config, kind)
    options = {"steps": 100, "batch_size": 32, "learning_rate": 3e-3, "warmup_steps": 10, "log_every": 20}
    curve = train_with(
        network, build_process(config), InMemoryImages(waves), seed=0, encode=kind.encode, ema_decay=0.9, **options
    )
    assert curve[0].loss > 2 * curve[-1].loss
    assert curve[-1].loss < 0.3


def test_initial_weights_of_ho():
    """Variance scaling of 1 over the mean of a unit's inputs and outputs, uniform; biases 0; what starts at 0 stays."""
    options = {**TINY, "width": 64, "groups": 32}
    torch.manual_seed(0)
    theirs = UNet(Shapes((3, 8, 8)), **options, init="fan_avg")
    torch.manual_seed(0)
    ours = UNet(Shapes((3, 8, 8)), **options)
    stds = {}
    for name, weight in theirs.named_parameters():
        if name.endswith("bias"):
            assert not weight.any()
        elif weight.ndim > 1 and weight.any():
            parts = weight.chunk(3) if "qkv" in name else [weight]
            for part in parts:
                receptive = part[0, 0].numel()
                expected = (2 / ((part.shape[0] + part.shape[1]) * receptive)) ** 0.5
                assert part.abs().max() <= 3**0.5 * expected
                assert part.std().item() == pytest.approx(expected, rel=0.05), name
            stds[name] = (weight.std() / ours.get_parameter(name).std()).item()
    zero = {name for name, weight in ours.named_parameters() if name.endswith("weight") and not weight.any()}
    assert zero == {n for n, w in theirs.named_parameters() if n.endswith("weight") and not w.any()}
    # Where inputs and outputs are as many, torch's are 1/sqrt(3) of them.
    assert stds["middle_in.conv1.weight"] == pytest.approx(3**0.5, rel=0.02)
    assert stds["middle_attention.qkv.weight"] == pytest.approx(3**0.5, rel=0.02)
