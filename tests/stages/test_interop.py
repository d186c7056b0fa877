"""`ddpm import` and `ddpm export-diffusers`: an imported model goes through every stage like one trained here."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from denoising_diffusion_pytorch import GaussianDiffusion, GaussianDiffusion1D, Trainer, Trainer1D, Unet, Unet1D
from denoising_diffusion_pytorch import classifier_free_guidance as guidance
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from tiny import TINY_PARAMS, UNET_OF_DIFFUSERS, write_params
from torch.utils.data import TensorDataset

import ddpm
from ddpm.cli import main
from ddpm.config.network import NetworkConfig
from ddpm.errors import UserError
from ddpm.files import sha256_of
from ddpm.interop.openai import module_names
from ddpm.interop.published import Flags
from ddpm.nets.condition import Shapes
from ddpm.nets.unet import UNet
from ddpm.stages.interop import import_model

GUIDED = {
    **{"width": 32, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,)},
    **{"head_channels": 32, "scale_shift": True, "frequency_shift": 0, "resample": "residual"},
}
SAID = ["--image-size", "8", "--num-head-channels", "32", "--noise-schedule", "cosine", "--diffusion-steps", "1000"]


def saved_as_openai(path: Path, classes: int = 0, **options) -> UNet:
    """A network of ours, whose state dict is saved under their names; with an embedding of classes if asked to."""
    torch.manual_seed(0)
    network = UNet(Shapes((1, 8, 8), 2), **GUIDED, **options)
    torch.nn.init.normal_(network.out_conv.weight, std=0.1)
    torch.nn.init.normal_(network.down[0].residuals[0].conv2.weight, std=0.1)  # else no time or class is seen
    modules = dict(module_names(NetworkConfig(**GUIDED, **options), 8))
    state = {}
    for name, tensor in network.state_dict().items():
        module, _, parameter = name.rpartition(".")
        state[f"{modules[module]}.{parameter}"] = tensor
    if classes:
        state["label_emb.weight"] = torch.randn(classes, 4 * GUIDED["width"])
    torch.save(state, path)
    return network


@pytest.fixture
def published(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    # Betas of no name, which go through every stage as they are.
    DDPMPipeline(UNet2DModel(**UNET_OF_DIFFUSERS), DDPMScheduler(40, 0.002, 0.4)).save_pretrained(tmp_path / "peer")
    return tmp_path / "peer"


def name_peer(**sections: dict) -> None:
    """Put the imported model into params.yaml."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    empty = {section: {} for section in ("network", "objective", "training")}
    params["models"]["peer"] = {**empty, **sections}
    Path("params.yaml").write_text(yaml.safe_dump(params))


def test_an_imported_model_is_sampled_evaluated_and_exported(project: Path, published: Path, capsys):
    assert main(["import", str(published), "--out", "models/peer", "--data-name", "digits"]) == 0
    assert "add peer to `models` in params.yaml" in capsys.readouterr().out
    name_peer(process={"timesteps": 40}, sampling={"steps": 4, "spacing": "leading"})
    for stage in ("evaluate", "export"):
        assert main([stage, "peer"]) == 0
    assert json.loads(Path("deploy/peer/parity.json").read_text())["passed"] is True
    assert json.loads(Path("reports/peer/protocol.json").read_text())["weights"] == "imported"
    for model in ("models/peer", "deploy/peer"):
        assert main(["sample", model, "--n", "3", "--out", f"{model}.npz", "--steps", "4", "--sampler", "ddim"]) == 0
    ours, exported = (np.load(f"{model}.npz")["images"].astype(int) for model in ("models/peer", "deploy/peer"))
    assert ours.shape == (3, 8, 8, 1)
    assert np.abs(ours - exported).max() <= 1


def test_the_card_tells_where_the_weights_come_from(project: Path, published: Path):
    main(["import", str(published), "--out", "models/peer-one"])
    assert Path("models/peer-one/loss.csv").read_text() == "step,loss,grad_norm,learning_rate\n"
    model = ddpm.load("models/peer-one")
    assert model.card.data.name == "peer-one"
    assert model.card.training.fingerprint == sha256_of(published / "unet" / "diffusion_pytorch_model.safetensors")
    assert model.card.parameters == sum(p.numel() for p in UNet2DModel.from_pretrained(published / "unet").parameters())
    assert model.card.config.sampling.sampler == "ancestral"
    assert (model.card.config.process.timesteps, model.card.config.process.schedule) == (40, "explicit")
    # Nobody knows how it was trained, so the card does not say.
    written = json.loads(Path("models/peer-one/model.json").read_text())
    assert written["config"]["training"] is None
    assert written["config"]["objective"] is None
    before = {**written["config"], "training": {"steps": 800_000}, "objective": {"loss": "simple"}}
    Path("models/peer-one/model.json").write_text(json.dumps({**written, "config": before}))
    card = ddpm.load("models/peer-one").card
    assert card == model.card, "a card of an earlier version, with the defaults there"


def test_there_and_back_again(trained: Path):
    """Our model, to diffusers, to ours: the same weights and the same images."""
    assert main(["export-diffusers", "models/tiny", "out"]) == 0
    assert main(["import", "out", "--out", "models/again"]) == 0
    before, after = ddpm.load("models/tiny"), ddpm.load("models/again")
    assert sha256_of(Path("models/tiny/model.safetensors")) == sha256_of(Path("models/again/model.safetensors"))
    plan = before.card.config.sampling
    np.testing.assert_array_equal(after.sampled_by(plan).sample(3, seed=1), before.sample(3, seed=1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["import", "nowhere", "--out", "m"], "nowhere: no such file"),
        (["import", "prepared", "--out", "m"], "prepared: no weights; expected diffusion_pytorch_model.safetensors"),
        (["import", "data.dvc", "--out", "m"], "data.dvc: damaged or cut short"),
        (["import", "prepared", "--out", "models"], "models: exists already"),
        (["import", "models/tiny/model.safetensors", "--out", "m"], "another network: missing input_blocks.0.0.weight"),
        (["import", "cut.pt", "--out", "m"], "cut.pt: damaged or cut short"),
        (
            ["import", "guided.pt", "--out", "m", *SAID, "--dropout", "2"],
            "`dropout`: input should be less than 1, found 2",
        ),
        (["import", "another.pt", "--out", "m"], "another network: missing final_conv.weight, init_conv.weight, time"),
        (["import", "guided.pt", "--out", "My.Model", *SAID], "digits, - and _; found My.Model, try my-model"),
        (["import", "guided.pt", "--out", "m", *SAID, "--data-name", "a b"], "--data-name; params.yaml has names of"),
        (["import", "guided.pt", "--out", "m", *SAID, "--seq-length", "8"], "--seq-length does not apply to it"),
        (["export-diffusers", "nowhere", "m"], "nowhere: expected a model directory (model.json); no such directory"),
        (["export-diffusers", "models/tiny", "models"], "models: exists already"),
    ],
)
def test_wrong_requests_get_one_line_and_exit_code_2(trained: Path, capsys, arguments, words):
    torch.save({"step": 1, "model": {"conv.weight": torch.zeros(100)}}, "another.pt")
    saved_as_openai(Path("guided.pt"))
    Path("cut.pt").write_bytes(Path("another.pt").read_bytes()[:-100])
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not Path("m").exists()


def test_a_checkpoint_of_openai_by_the_command_line(trained: Path):
    """What its shapes do not tell comes from the options."""
    network = saved_as_openai(Path("ema_0.9999.pt"))
    new_order = "--use-new-attention-order"
    assert main(["import", "ema_0.9999.pt", "--out", "models/guided", *SAID, new_order, "--dropout", "0.1"]) == 0
    model = ddpm.load("models/guided")
    assert model.card.config.process.variance == "learned_range"
    assert model.card.config.network.resample == "residual"
    weights = model.network.state_dict()
    first = torch.cat(list(network.time_mlp[0].weight.chunk(2, dim=1))[::-1], dim=1)  # their cosines come first
    torch.testing.assert_close(weights["time_mlp.0.weight"], first)
    torch.testing.assert_close(weights["down.1.attentions.0.qkv.weight"], network.down[1].attentions[0].qkv.weight)
    assert model.sample(2, steps=2).shape == (2, 8, 8, 1)


def conditional_of(kind: str) -> tuple[str, list[str]]:
    """A published network of five rows of classes, and the options of its import."""
    torch.manual_seed(0)
    if kind == "openai":
        saved_as_openai(Path("conditional.pt"), classes=5)
        return "conditional.pt", SAID
    if kind == "diffusers":
        peer = UNet2DModel(**UNET_OF_DIFFUSERS, num_class_embeds=5)
        torch.nn.init.normal_(peer.conv_out.weight, std=0.1)
        DDPMPipeline(peer, DDPMScheduler()).save_pretrained("conditional")
        return "conditional", []
    peer = guidance.Unet(8, num_classes=4, dim_mults=(1, 2), channels=1)
    torch.save(guidance.GaussianDiffusion(peer, image_size=8, timesteps=40).state_dict(), "conditional.pt")
    return "conditional.pt", ["--image-size", "8"]


@pytest.mark.parametrize("kind", ["openai", "diffusers", "lucidrains"])
def test_a_conditional_model_is_asked_for_its_classes_by_name(kind, tmp_path: Path, monkeypatch, capsys):
    """And guided where it has a null class: lucidrains' always has, others where --null-class says so."""
    monkeypatch.chdir(tmp_path)
    source, said = conditional_of(kind)
    null = [] if kind == "lucidrains" else ["--null-class"]
    assert main(["import", source, "--out", "guidable", *said, *null, "--classes", "cat,dog,emu,fox"]) == 0
    assert "4 classes and a null class" in capsys.readouterr().out
    model = ddpm.load("guidable")
    assert model.card.data.classes == ("cat", "dog", "emu", "fox")
    cat, dog, strong = (model.sample(2, steps=3, **o) for o in CHOICES)
    assert not np.array_equal(cat, dog)
    assert not np.array_equal(dog, strong)
    assert main(["sample", "guidable", "--label", "owl", "--n", "1", "--out", "a.npz", "--steps", "3"]) == 2
    assert "no class 'owl'; there are: cat, dog, emu, fox" in capsys.readouterr().err
    if null:
        assert main(["import", source, "--out", "told", *said]) == 0
        assert "5 classes and no null class, so that it cannot be guided (see --null-class)" in capsys.readouterr().out
        assert ddpm.load("told").card.data.classes == ("0", "1", "2", "3", "4")
        wish = ["--label", "4", "--guidance-scale", "2"]
        assert main(["sample", "told", *wish, "--n", "1", "--out", "a.npz", "--steps", "3"]) == 2
        assert "guidance_scale must be 1: the model was trained without dropping" in capsys.readouterr().err
        assert main(["sample", "told", "--label", "4", "--n", "1", "--out", "a.npz", "--steps", "3"]) == 0


CHOICES = [{"label": "cat"}, {"label": "dog"}, {"label": "dog", "guidance_scale": 4.0}]


@pytest.mark.parametrize("null", [[], ["--null-class"]])
def test_a_conditional_model_there_and_back_again(null, tmp_path: Path, monkeypatch):
    """With its classes and, where it has one, its null class."""
    monkeypatch.chdir(tmp_path)
    source, _ = conditional_of("diffusers")
    named = ["--classes", "@names.txt", *null]
    Path("names.txt").write_text("cat\ndog\nemu\nfox, grey\n" + ("" if null else "gnu\n"))
    assert main(["import", source, "--out", "there", *named]) == 0
    assert main(["export-diffusers", "there", "out"]) == 0
    assert json.loads(Path("out/unet/config.json").read_text())["num_class_embeds"] == 5
    assert main(["import", "out", "--out", "again", *named]) == 0
    assert sha256_of(Path("there/model.safetensors")) == sha256_of(Path("again/model.safetensors"))
    assert ddpm.load("again").card.data.classes[3] == "fox, grey"


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (["--classes", "cat,dog"], "conditional.pt: --classes has 2 names, but the network has 5 classes"),
        (["--classes", "a,b,c,d,e", "--null-class"], "5 names, but the network has 4 classes beside the null class"),
        (["--classes", "a,b,c,a,e"], "--classes: 'a', that of class 3, is there twice"),
        (["--classes", "a,b,,d,e"], "--classes: '', that of class 2, is no name"),
        (["--classes", "@short.txt"], "conditional.pt: --classes has 3 names, but the network has 5 classes"),
        (["--classes", "@nowhere.txt"], "nowhere.txt: no such file"),
        (["--classes", "@bytes.txt"], "bytes.txt: not UTF-8 text; expected the name of a class a line"),
    ],
)
def test_names_that_do_not_fit_the_classes_get_one_line_and_exit_code_2(
    named, words, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    source, said = conditional_of("openai")
    Path("short.txt").write_text("cat\ndog\nemu\n")
    Path("bytes.txt").write_bytes(b"\xff\xfe\n")
    assert main(["import", source, "--out", "m", *said, *named]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not Path("m").exists()
    saved_as_openai(Path("plain.pt"))
    assert main(["import", "plain.pt", "--out", "m", *SAID, "--classes", "a"]) == 2
    assert "plain.pt: --classes: the network has no classes; leave it out" in capsys.readouterr().err


def trained_by_lucidrains(kind: str) -> tuple[Path, torch.nn.Module]:
    """What a Trainer of denoising_diffusion_pytorch saves before its first step, and the network it averages: here away
    from the one it trains."""
    torch.manual_seed(0)
    if kind == "images":
        Path("pictures").mkdir()
        for number in range(100):
            Image.new("L", (8, 8), number).save(f"pictures/{number}.png")
        diffusion = GaussianDiffusion(Unet(8, dim_mults=(1, 2), channels=1), image_size=8, timesteps=40)
        trainer = Trainer(diffusion, "pictures", calculate_fid=False)
    else:
        diffusion = GaussianDiffusion1D(Unet1D(8, dim_mults=(1, 2), channels=2), seq_length=16, timesteps=40)
        trainer = Trainer1D(diffusion, TensorDataset(torch.rand(20, 2, 16)))
    averaged = trainer.ema.ema_model.model
    with torch.no_grad():
        for parameter in averaged.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    trainer.save(1)
    return Path("results/model-1.pt"), averaged.eval()


def saved_by_openai(path: Path) -> Flags:
    saved_as_openai(path)
    return Flags(image_size=8, num_head_channels=32, noise_schedule="cosine", diffusion_steps=1000)


def saved_by_lucidrains(path: Path) -> Flags:
    state = GaussianDiffusion(Unet(8, dim_mults=(1, 2)), image_size=8, timesteps=40).state_dict()
    read = {name: state[name] for name in state if name.startswith("model.") or name in ("betas", "loss_weight")}
    torch.save(read, path)
    return Flags(image_size=8)


ODD = [torch.zeros(shape) for shape in [(), (0,), (5,), (2, 2), (0, 1, 1, 1)]]
TELLING = {
    saved_by_openai: [
        *("time_embed.0.weight", "input_blocks.0.0.weight", "input_blocks.1.0.emb_layers.1.bias", "out.2.bias"),
        *("input_blocks.x.0.weight", "input_blocks.weight", "output_blocks.x.0.weight", "label_emb.weight"),
    ],
    saved_by_lucidrains: [
        *("model.init_conv.weight", "model.time_mlp.1.weight", "model.final_conv.weight", "model.mid_attn.mem_kv"),
        *("model.downs.x.weight", "model.downs.0.3.1.weight", "betas", "loss_weight"),
    ],
}


@pytest.mark.parametrize("saved", TELLING)
def test_any_tensor_may_have_any_shape(saved, tmp_path: Path):
    """A line says what is wrong, whether a name is read, a shape, or neither."""
    flags = saved(tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)
    for name, odd in itertools.product([*TELLING[saved], *sorted(whole)[::25]], ODD):
        torch.save({**whole, name: odd}, tmp_path / "odd.pt")
        with pytest.raises(UserError) as caught:
            import_model(tmp_path / "odd.pt", tmp_path / "out", flags)
        assert str(caught.value).startswith(f"{tmp_path / 'odd.pt'}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("images", ("--image-size", "8")),
        pytest.param("sequences", ("--seq-length", "16"), marks=pytest.mark.slow),
    ],
)
def test_a_trainers_checkpoint_is_imported_sampled_evaluated_and_exported(
    kind: str, flags: tuple[str, ...], request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if kind == "images":
        request.getfixturevalue("project")
    else:
        monkeypatch.chdir(tmp_path)
        np.save("rows.npy", np.random.default_rng(0).random((60, 2, 16)))
        network = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention_resolutions": [8], "groups": 4}
        tiny = TINY_PARAMS["models"]["tiny"] | {"network": network}
        data = {"source": "sequences", "path": "rows.npy"}
        write_params(tmp_path, TINY_PARAMS | {"data": data, "models": {"tiny": tiny}})
        for stage in ("fetch", "prepare", "fit-extractor"):
            assert main([stage]) == 0
    checkpoint, peer = trained_by_lucidrains(kind)
    assert main(["import", str(checkpoint), "--out", "models/peer", *flags]) == 0
    name_peer(process={"timesteps": 40}, sampling={"steps": 4})
    for stage in ("evaluate", "export"):
        assert main([stage, "peer"]) == 0
    assert json.loads(Path("deploy/peer/parity.json").read_text())["passed"] is True

    model = ddpm.load("models/peer")
    x, t = torch.randn(3, *model.codec.network_shape), torch.tensor([0, 20, 39])
    with torch.no_grad():
        expected = peer(x, t)
        assert (model.network(x, t) - expected).norm() <= 1e-5 * expected.norm()
    assert model.card.config.process.prediction == ("v" if kind == "images" else "epsilon")
    drawn = model.sample(5, steps=4)
    assert drawn.shape == (5, *model.shape)
    if kind == "sequences":
        assert ((drawn >= -1e-6) & (drawn <= 1 + 1e-6)).all()  # as theirs are
