"""A control, held against diffusers' ControlNetModel; and with its U-Net against UNet2DConditionModel."""

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from networks import UNET_CONDITION, WIDTH
from recorded import assert_equal
from untrained import untrained
from weights import moved

from ddpm.cli.main import main
from ddpm.conditioning.tokenizers import Words
from ddpm.config.network import AutoencoderConfig
from ddpm.errors import UserError
from ddpm.files import sha256_of
from ddpm.first_stage import LatentFacts
from ddpm.interop.diffusers.control import convert, for_one_channel
from ddpm.interop.diffusers.weights import ours_of
from ddpm.model import load
from ddpm.model.card import DataFacts
from ddpm.nets import build
from ddpm.nets.condition import Condition, Ports
from ddpm.nets.controlled import Controlled

SIDE = UNET_CONDITION["sample_size"]
OF_THE_UNET_ALONE = ("sample_size", "out_channels", "up_block_types")
NET = {
    "sample_size": SIDE,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,
}
NET = {
    key: value for key, value in UNET_CONDITION.items() if key not in ("sample_size", "out_channels", "up_block_types")
}
NETS = {
    "rgb": {**NET, "conditioning_embedding_out_channels": (4, 4, 8, 8)},
    "bgr, two blocks": {
        **NET,
        "conditioning_embedding_out_channels": (4, 8, 8, 12),
        "controlnet_conditioning_channel_order": "bgr",
        "layers_per_block": 2,
    },
}


def peers(options) -> tuple[UNet2DConditionModel, ControlNetModel]:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**{**UNET_CONDITION, "layers_per_block": options["layers_per_block"]})
    return moved(unet), moved(ControlNetModel(**options))


def raw(theirs: ControlNetModel) -> dict:
    return {**theirs.config, "_class_name": "ControlNetModel"}


def question():
    generator = torch.Generator().manual_seed(1)
    x, tokens = torch.randn(2, 4, SIDE, SIDE, generator=generator), torch.randn(2, 7, WIDTH, generator=generator)
    return x, torch.tensor([3, 977]), tokens, torch.rand(2, 3, 8 * SIDE, 8 * SIDE, generator=generator)


@pytest.mark.parametrize("name", NETS)
def test_a_u_net_with_a_control_answers_as_theirs(name):
    unet, net = peers(NETS[name])
    found = convert(raw(net), net.state_dict(), SIDE, "test")
    ports = Ports(tokens=WIDTH, hints=(found.hint,))
    ours = build(found.network.model_dump(), image_size=SIDE, channels=4, out_channels=4, ports=ports).eval()
    assert isinstance(ours, Controlled)
    ours.base.load_state_dict(ours_of(unet.state_dict(), found.network, ours.base, "test", cosines_first=True))
    (control,) = ours.controls
    control.load_state_dict(found.weights)
    x, t, tokens, hint = question()
    with torch.no_grad():
        *skips, bottom = control(x, t, Condition(tokens=tokens, hints=(hint,)))
        down, middle = net(x, t, tokens, controlnet_cond=hint, return_dict=False)
        for own, their in zip([*skips, bottom], [*down, middle], strict=True):
            assert_equal(own, their, "control")
        expected = unet(x, t, tokens, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample
        answer = ours(x, t, Condition(tokens=tokens, hints=(hint,)))
        assert_equal(answer, expected, "U-Net with a control")
        assert (answer - ours.base(x, t, Condition(tokens=tokens))).norm() > 0.01 * expected.norm()
        guess = net(x, t, tokens, controlnet_cond=hint, conditioning_scale=0.5, return_dict=False)
        half = Condition(tokens=tokens, hints=(hint,), control=torch.tensor([[0.5, 1.0]] * 2))
        for own, their in zip(ours.residuals(x, t, half), [*guess[0], guess[1]], strict=True):
            assert_equal(own, their, "control")


def test_a_control_of_grey_hints_has_one_channel():
    _, net = peers(NETS["rgb"])
    found = convert(raw(net), net.state_dict(), SIDE, "test")
    x, t, tokens, hint = question()
    grey, answers = hint[:, :1], []
    for each, shown in ((found, grey.expand(-1, 3, -1, -1)), (for_one_channel(found), grey)):
        ports = Ports(tokens=WIDTH, hints=(each.hint,))
        network = build(each.network.model_dump(), image_size=SIDE, channels=4, ports=ports).eval()
        network.controls[0].load_state_dict(each.weights)
        with torch.no_grad():
            answers.append(network.controls[0](x, t, Condition(tokens=tokens, hints=(shown,)))[-1])
    assert torch.allclose(*answers, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"global_pool_conditions": True}, "`global_pool_conditions`"),
        ({"class_embed_type": "timestep"}, "`class_embed_type`"),
        ({"conditioning_embedding_out_channels": (4, 4, 8, 9)}, "another network: hint.layers"),
    ],
)
def test_what_ours_lacks_is_named(change, words):
    _, net = peers(NETS["rgb"])
    with pytest.raises(UserError, match=words):
        convert({**raw(net), **change}, net.state_dict(), SIDE, "test")


def test_unexpected_and_missing_tensors_are_named():
    _, net = peers(NETS["rgb"])
    weights = net.state_dict()
    del weights["controlnet_mid_block.bias"]
    with pytest.raises(UserError, match=r"missing .*controlnet_mid_block\.bias.*unexpected .*more"):
        convert(raw(net), {**weights, "more": torch.zeros(1)}, SIDE, "test")


def test_ddpm_import_puts_it_on_its_base(tmp_path, capsys):
    """The model draws as their U-Net with their control would, here of pixels; of another base it says the key."""
    options = {**NETS["rgb"], "in_channels": 3, "conditioning_embedding_out_channels": (4,)}
    torch.manual_seed(0)
    net = moved(ControlNetModel(**options))
    net.save_pretrained(tmp_path / "theirs")
    found = convert(raw(net), net.state_dict(), SIDE, "test")
    assert found.hint.shrink == 1
    words = Words(("blue", "heart", "red"), 4)
    text = {"tokenizer": words.as_json(), "captions": ("red heart",)}
    facts = DataFacts(name="dots", shape=(SIDE, SIDE, 3), classes=None, text=text)
    prompt = {"length": 4, "width": WIDTH, "layers": 1, "heads": 2}
    network = found.network.model_dump()
    common = {"condition": {"prompt": prompt}, "process": {"timesteps": 50, "prediction": "x0"}}
    untrained("base", tmp_path, facts, network=network, **common)
    untrained("other", tmp_path, facts, network={**network, "heads": 1}, **common)
    line = ["import", str(tmp_path / "theirs"), "--out", str(tmp_path / "made"), "--base"]
    assert main([*line, str(tmp_path / "other")]) == 2
    assert "network.heads is 2, and 1 of" in capsys.readouterr().err
    assert main([*line, str(tmp_path / "base"), "--hint", "edges"]) == 0
    made, base = (load(tmp_path / name) for name in ("made", "base"))
    assert made.card.training.control_of.sha256 == sha256_of(tmp_path / "base/model.safetensors")
    edges = np.eye(SIDE, dtype=bool)
    given, x, t = made.given(2, control=edges, prompt="red heart"), made.noise(2, 0)(), torch.tensor([3, 40])
    values = {name: torch.from_numpy(value) for name, value in given.items()}
    condition = made.network.condition(values)._replace(vector=None)  # theirs has no projection of the caption
    tokens = condition.tokens
    picture = torch.from_numpy(edges).float().expand(2, 3, -1, -1)
    with torch.no_grad():
        down, middle = net(x, t, tokens, controlnet_cond=picture, return_dict=False)
        residuals = made.network.network.residuals(x, t, condition)
        for own, their in zip(residuals, [*down, middle], strict=True):
            assert_equal(own, their, "control")
    hint = {"control": edges, "prompt": "red heart", "steps": 2}
    assert np.array_equal(made.sample(1, **hint, control_scale=0.0), base.sample(1, prompt="red heart", steps=2))
    assert not np.array_equal(made.sample(1, **hint), made.sample(1, **hint, control_scale=0.0))


def test_a_control_of_latents_has_the_autoencoder_of_its_base(tmp_path, capsys):
    """So have two of them that are joined. A control of smaller latents does not fit."""
    options = {**NETS["rgb"], "conditioning_embedding_out_channels": (4, 8)}
    words = Words(("blue", "heart", "red"), 4)
    autoencoder = AutoencoderConfig(kind="autoencoder", width=4, multipliers=(1, 2), blocks=1, groups=2)
    latent = LatentFacts(
        variant="a", fingerprint="a", sha256="a", network=autoencoder, shape=(4, SIDE, SIDE), scale=0.5
    )
    text = {"tokenizer": words.as_json(), "captions": ("red heart",)}
    facts = DataFacts(name="dots", shape=(2 * SIDE, 2 * SIDE, 3), classes=None, text=text, latent=latent)
    _, net = peers(options)
    network = convert(raw(net), net.state_dict(), SIDE, "test").network.model_dump()
    prompt = {"length": 4, "width": WIDTH, "layers": 1, "heads": 2}
    process = {"timesteps": 50, "prediction": "x0"}
    codec = {"latent": {"autoencoder": "models/a"}}
    base = untrained(
        "base", tmp_path, facts, network=network, condition={"prompt": prompt}, process=process, codec=codec
    )
    hint = np.zeros((2 * SIDE, 2 * SIDE, 3), np.uint8)
    asked = {"prompt": "red heart", "steps": 2, "control_scale": 0.0}
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        moved(ControlNetModel(**options)).save_pretrained(tmp_path / f"theirs-{name}")
        line = ["import", str(tmp_path / f"theirs-{name}"), "--out", str(tmp_path / name), "--base", str(base)]
        assert main(line) == 0
    moved(ControlNetModel(**NETS["rgb"])).save_pretrained(tmp_path / "theirs-eighth")
    line = ["import", str(tmp_path / "theirs-eighth"), "--out", str(tmp_path / "eighth"), "--base", str(base)]
    assert main(line) == 2
    assert "condition.control.shrink is 8, expected 2: x is latents" in capsys.readouterr().err
    assert not (tmp_path / "eighth").exists()
    assert main(["join-controls", *(str(tmp_path / name) for name in ("both", "one", "two"))]) == 0
    expected = load(base).sample(1, prompt="red heart", steps=2)
    assert np.array_equal(load(tmp_path / "one").sample(1, control=hint, **asked), expected)
    assert np.array_equal(load(tmp_path / "both").sample(1, control=hint, control_2=hint, **asked), expected)
