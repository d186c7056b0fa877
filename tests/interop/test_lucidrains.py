"""Held against the published implementation: converted random weights, equal outputs, equal parameter counts."""

import pytest
import torch
from denoising_diffusion_pytorch import GaussianDiffusion, GaussianDiffusion1D, Unet, Unet1D

from ddpm.errors import UserError
from ddpm.interop.lucidrains import Converted, convert, read
from ddpm.nets import build


def randomised(network):
    """Gains, memories and biases away from where they start."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def ours(converted: Converted, side: int) -> torch.nn.Module:
    options = converted.network.model_dump()
    out_channels = len(converted.weights["out_conv.bias"])
    network = build(
        options, image_size=side, channels=converted.channels, out_channels=out_channels, dims=converted.dims
    )
    network.load_state_dict(converted.weights)
    return network.eval()


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
    peer = randomised(PEERS[name]())
    converted = convert(peer.state_dict())
    network = ours(converted, 16)
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in peer.parameters())
    x = torch.randn(3, converted.channels, *[16] * converted.dims, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 17, 999])
    with torch.no_grad():
        expected, found = peer(x, t), network(x, t)
    assert found.shape == expected.shape
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize(("theirs", "prediction"), [("pred_noise", "epsilon"), ("pred_x0", "x0"), ("pred_v", "v")])
def test_a_diffusion_tells_its_process(schedule, theirs, prediction):
    network = Unet(8, dim_mults=(1, 2))
    peer = GaussianDiffusion(
        network, image_size=8, timesteps=100, objective=theirs, beta_schedule=schedule, min_snr_loss_weight=True
    )
    process = convert(peer.state_dict()).process
    assert (process.timesteps, process.schedule, process.prediction) == (100, schedule, prediction)
    assert process.variance == "fixed_small"


def trainers_checkpoint(tmp_path):
    """What their Trainer writes: the averaged weights differ from the last ones."""
    torch.manual_seed(0)
    diffusion = GaussianDiffusion1D(Unet1D(8, dim_mults=(1, 2), channels=1), seq_length=16, objective="pred_v")
    averaged = {f"ema_model.{name}": tensor + 1 for name, tensor in diffusion.state_dict().items()}
    averaged |= {f"ema_model.{name}": diffusion.state_dict()[name] for name in ("betas", "loss_weight")}
    saved = {"step": 3, "model": diffusion.state_dict(), "opt": {"state": {}}, "scaler": None, "version": "2.3.4"}
    saved["ema"] = {"initted": torch.tensor(True), "step": torch.tensor(3), **averaged}
    torch.save(saved, tmp_path / "model-1.pt")
    return diffusion, tmp_path / "model-1.pt"


def test_a_trainers_checkpoint_gives_the_averaged_weights(tmp_path):
    diffusion, path = trainers_checkpoint(tmp_path)
    converted = convert(read(path), where=str(path))
    assert (converted.dims, converted.channels, converted.process.schedule) == (1, 1, "cosine")
    torch.testing.assert_close(converted.weights["out_conv.bias"], diffusion.model.final_conv.bias.detach() + 1)


def changed(state, **changes):
    state = {**state, **changes}
    return {key: value for key, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"downs.0.0.mlp.1.bias": None}, r"another network: missing \['downs.0.0.mlp.1.bias'\], unexpected \[\]"),
        ({"extra.weight": torch.zeros(1)}, r"missing \[\], unexpected \['extra.weight'\]"),
        ({"mid_block1.block1.norm.g": torch.zeros(1, 3, 1, 1)}, r"mid_block1.block1.norm.g is \[3\], expected \[16\]"),
        ({"init_conv.weight": None}, "not a Unet or Unet1D.*missing 'init_conv.weight'"),
        ({"time_mlp.1.weight": torch.zeros(32, 16)}, "init_dim"),
        ({"time_mlp.0.weights": torch.zeros(8)}, "Fourier"),
    ],
)
def test_another_network_is_named(change, words):
    state = Unet(8, dim_mults=(1, 2)).state_dict()
    with pytest.raises(UserError, match=words) as caught:
        convert(changed(state, **change), where="theirs.pt")
    assert str(caught.value).startswith("theirs.pt: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"self_condition": True}, "self-conditioning"), ({"init_dim": 16}, "init_dim"), ({"channels": 4}, None)],
)
def test_options_that_ours_lacks_are_refused(options, words):
    state = Unet(8, dim_mults=(1, 2), **options).state_dict()
    if words is None:
        assert convert(state).channels == 4
        return
    with pytest.raises(UserError, match=words):
        convert(state)


def test_files_that_are_no_checkpoints(tmp_path):
    class Code:
        def __reduce__(self):
            return print, ("executed",)

    torch.save({"model": Code()}, tmp_path / "code.pt")
    (tmp_path / "cut.pt").write_bytes(trainers_checkpoint(tmp_path)[1].read_bytes()[:1000])
    (tmp_path / "cut.safetensors").write_bytes(b"x" * 100)
    for name in ("code.pt", "cut.pt", "cut.safetensors", "absent.pt"):
        with pytest.raises(UserError, match=name):
            read(tmp_path / name)
