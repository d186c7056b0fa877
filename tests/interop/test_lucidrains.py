"""Held against the published implementation: converted random weights, equal outputs, equal parameter counts."""

import numpy as np
import pytest
import torch
from denoising_diffusion_pytorch import GaussianDiffusion, GaussianDiffusion1D, Unet, Unet1D
from denoising_diffusion_pytorch import classifier_free_guidance as guidance
from networks import answer, ours
from weights import moved

from ddpm.conditioning.guidance import ClassifierFree
from ddpm.errors import UserError
from ddpm.interop.lucidrains import convert
from ddpm.interop.published import Flags
from ddpm.interop.saved import unwrapped


def flags_of(state):
    """What the file of images, or that of sequences, does not tell."""
    stem = next(value for name, value in state.items() if name.endswith("init_conv.weight"))
    return Flags(seq_length=16) if stem.ndim == 3 else Flags(image_size=16)


BUFFERS = dict(GaussianDiffusion(Unet(8, dim_mults=(1,)), image_size=8).named_buffers())


def diffusion_around(network):
    """The state_dict of a GaussianDiffusion, of which theirs takes no network that learns its variance."""
    return BUFFERS | {f"model.{name}": tensor for name, tensor in network.state_dict().items()}


PEERS = {
    "2-D": lambda: Unet(8, dim_mults=(1, 2, 4), channels=3),
    "2-D, linear throughout": lambda: Unet(8, dim_mults=(1, 3), channels=1, full_attn=(False, False)),
    "2-D, full at the first": lambda: Unet(8, dim_mults=(1, 2), channels=1, full_attn=(True, False)),
    "2-D, learned variance": lambda: Unet(8, dim_mults=(2, 2), learned_variance=True, attn_heads=2, attn_dim_head=16),
    "1-D": lambda: Unet1D(8, dim_mults=(1, 2, 4), channels=2),
    "1-D, learned variance": lambda: Unet1D(12, dim_mults=(1,), channels=1, learned_variance=True),
}


@pytest.mark.parametrize("name", PEERS)
def test_the_network_is_theirs(name):
    torch.manual_seed(0)
    peer = moved(PEERS[name]())
    state = diffusion_around(peer)
    found = convert(state, flags_of(state))
    network = ours(found)
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in peer.parameters())
    x = torch.randn(3, *found.codec.network_shape, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 17, 999])
    with torch.no_grad():
        expected, answer = peer(x, t), network(x, t)
    assert answer.shape == expected.shape
    assert (answer - expected).norm() <= 1e-5 * expected.norm()
    assert (found.process.variance == "learned_range") == ("learned" in name)


def conditional(**options):
    return guidance.Unet(**{"dim": 8, "num_classes": 5, "dim_mults": (1, 2), "channels": 1, **options})


@pytest.mark.parametrize(
    "options", [{}, {"dim_mults": (1, 2, 4), "channels": 3}, {"learned_variance": True}, {"num_classes": 1}], ids=str
)
def test_the_conditional_network_is_theirs_with_and_without_a_class(options):
    torch.manual_seed(0)
    peer = moved(conditional(**options))
    found = convert(diffusion_around(peer), Flags(image_size=16))
    network = ours(found)
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in peer.parameters())
    (column,) = network.columns
    null = peer.classes_emb.num_embeddings
    assert (column.classes, column.null) == (tuple(map(str, range(null))), null)
    x = torch.randn(3, *found.codec.network_shape, generator=torch.Generator().manual_seed(1))
    t, y = torch.tensor([0, 17, 999]), torch.tensor([null - 1, 0, 0])
    with torch.no_grad():
        told = peer(x, t, y, cond_drop_prob=0.0)
        untold = peer(x, t, y, cond_drop_prob=1.0)
        # Its own steps then take the part along the output away and rescale; this is the guidance of the paper.
        guided, _ = peer.forward_with_cond_scale(x, t, y, cond_scale=3.0, remove_parallel_component=False)
        mine = ClassifierFree(network, {"label": y}).guided(x, t, 2.0)
    channels = x.shape[1]
    for found, expected in (
        (answer(network, x, t, y), told),
        (answer(network, x, t, torch.full((3,), null)), untold),
        (mine[:, :channels], guided[:, :channels]),
    ):
        assert found.shape == expected.shape
        assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_a_conditional_diffusion_tells_its_process():
    state = guidance.GaussianDiffusion(conditional(), image_size=8, timesteps=50, objective="pred_v").state_dict()
    process = convert(state, Flags(image_size=8)).process
    assert (process.timesteps, process.schedule, process.prediction) == (50, "cosine", "v")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.null_classes_emb": None}, "missing null_classes_emb; unexpected nothing"),
        ({"model.classes_mlp.0.weight": None}, "missing classes_mlp.0.weight; unexpected nothing"),
        (
            {"model.classes_emb.weight": torch.zeros(0, 8)},
            r"classes_emb.weight is \[1, 8\]; expected \[K, 8\], a row a",
        ),
        ({"model.classes_emb.weight": torch.zeros(5, 9)}, r"null_classes_emb is \[8\] and classes_emb.weight \[5, 9\]"),
        ({"model.classes_mlp.2.bias": torch.zeros(9)}, r"perceptron.2.bias is \[9\], not \[32\]"),
    ],
)
def test_classes_that_do_not_fit_are_named(change, words):
    state = diffusion_around(conditional())
    with pytest.raises(UserError, match=words):
        convert(changed(state, **change), Flags(image_size=16))
    with pytest.raises(UserError, match="--null-class does not apply to it"):
        convert(state, Flags(image_size=16, null_class=True))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize(("theirs", "prediction"), [("pred_noise", "epsilon"), ("pred_x0", "x0"), ("pred_v", "v")])
def test_a_diffusion_tells_its_process(schedule, theirs, prediction):
    network = Unet(8, dim_mults=(1, 2))
    peer = GaussianDiffusion(
        network, image_size=8, timesteps=100, objective=theirs, beta_schedule=schedule, min_snr_loss_weight=True
    )
    found = convert(peer.state_dict(), Flags(image_size=8))
    process = found.process
    assert (process.timesteps, process.schedule, process.prediction) == (100, schedule, prediction)
    assert process.variance == "fixed_small"
    assert (found.sampling.sampler, found.sampling.steps) == ("ancestral", 100)


def test_sequences_have_the_range_that_theirs_normalises():
    state = GaussianDiffusion1D(Unet1D(8, dim_mults=(1, 2), channels=2), seq_length=16).state_dict()
    kinds = [convert(state, Flags(seq_length=16, auto_normalize=value)).codec for value in (True, False)]
    assert [(kind.shape, kind.low, kind.high) for kind in kinds] == [
        ((2, 16), (0.0, 0.0), (1.0, 1.0)),
        ((2, 16), (-1.0, -1.0), (1.0, 1.0)),
    ]


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Unet(8, dim_mults=(1, 2)), "give --image-size"),
        (Unet1D(8, dim_mults=(1, 2)), "give --seq-length"),
    ],
)
def test_what_the_file_does_not_tell_is_asked_for(network, words):
    with pytest.raises(UserError, match=words):
        convert(diffusion_around(network), Flags())


@pytest.mark.parametrize(
    ("network", "flags", "words"),
    [
        (Unet(8, dim_mults=(1, 2)), Flags(image_size=8, seq_length=8), "of images: --seq-length does not apply"),
        (Unet(8, dim_mults=(1, 2)), Flags(image_size=8, num_heads=4), "of images: --num-heads does not apply"),
        (Unet1D(8, dim_mults=(1, 2)), Flags(seq_length=8, image_size=8), "of sequences: --image-size does not apply"),
    ],
)
def test_a_flag_of_another_kind_is_refused(network, flags, words):
    with pytest.raises(UserError, match=words):
        convert(diffusion_around(network), flags)


def test_betas_of_no_name_are_taken_as_they_are():
    """And weights of DataParallel and of torch.compile, in half precision."""
    peer = moved(Unet(8, dim_mults=(1, 2)))
    diffusion = GaussianDiffusion(peer, image_size=8, timesteps=50, objective="pred_v", beta_schedule="linear")
    state = diffusion.state_dict()
    other = GaussianDiffusion(
        peer, image_size=8, timesteps=50, objective="pred_v", schedule_fn_kwargs={"start": -1}, beta_schedule="sigmoid"
    )
    found = convert(unwrapped({f"module.{n}": t for n, t in other.state_dict().items()}), Flags(image_size=8))
    assert (found.process.schedule, found.process.timesteps, found.process.prediction) == ("explicit", 50, "v")
    np.testing.assert_allclose(found.process.betas, other.betas.numpy(), rtol=1e-6)
    trainer = {"ema": {f"ema_model.module.{n.replace('model.', 'model._orig_mod.')}": t for n, t in state.items()}}
    halves = {n: t.bfloat16() if t.is_floating_point() and ".model." in n else t for n, t in trainer["ema"].items()}
    found = convert({"model": {}, "ema": halves}, Flags(image_size=8))
    assert found.process.schedule == "linear"
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 40])
    with torch.no_grad():
        assert (ours(found)(x, t) - peer(x, t)).norm() < 0.02 * peer(x, t).norm()


def changed(state, **changes):
    state = {**state, **changes}
    return {key: value for key, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.downs.0.0.mlp.1.bias": None}, r"another network: missing downs.0.0.mlp.1.bias; unexpected nothing"),
        ({"model.extra.weight": torch.zeros(1)}, r"another network: missing .*; unexpected extra.weight"),
        ({"model.mid_extra.weight": torch.zeros(1)}, r"missing nothing; unexpected mid_extra.weight"),
        ({"model.mid_block1.block1.norm.g": torch.zeros(1, 3, 1, 1)}, r"middle_in.norm1.gain is \[1, 3, 1, 1\]"),
        ({"model.init_conv.weight": None}, "another network: missing init_conv.weight"),
        ({"model.downs.1.3.weight": None}, "another network: missing downs.1.3.weight"),
        ({"model.mid_attn.mem_kv": 3}, "expected tensors by name.*'model.mid_attn.mem_kv' is none"),
        ({"model.time_mlp.1.weight": torch.zeros(32, 16)}, "init_dim"),
        ({"model.time_mlp.0.weights": torch.zeros(8)}, "Fourier"),
        ({"betas": None}, "only a network"),
        ({"betas": torch.full((1000,), 0.1)}, "loss_weight is of no prediction"),
    ],
)
def test_another_network_is_named(change, words):
    state = diffusion_around(Unet(8, dim_mults=(1, 2)))
    with pytest.raises(UserError, match=words) as caught:
        convert(changed(state, **change), Flags(image_size=16), where="theirs.pt")
    assert str(caught.value).startswith("theirs.pt: ")


@pytest.mark.parametrize(
    ("network", "flags", "words"),
    [
        (lambda: Unet(8, dim_mults=(1, 2), self_condition=True), None, "self-conditioning"),
        (lambda: Unet(8, dim_mults=(1, 2), init_dim=16), None, "init_dim"),
        (lambda: Unet(8, dim_mults=(1, 2), out_dim=5), None, "an out_dim of 5 for 3 channels"),
        (lambda: Unet(8, dim_mults=(1, 2), channels=4), None, "4 channels: not a denoiser of grey or RGB images"),
        (lambda: Unet1D(8, dim_mults=(1, 2), attn_heads=2), None, "attentions of different widths"),
        (lambda: Unet(8, dim_mults=(1, 2, 4)), Flags(image_size=18), "18 is not a multiple of 4"),
    ],
)
def test_what_ours_lacks_is_refused(network, flags, words):
    with pytest.raises(UserError, match=words):
        state = diffusion_around(network())
        convert(state, flags or flags_of(state))
