"""diffusers' UNet2DModel in and out, held against the package itself."""

import itertools
import json
import re
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.training_utils import EMAModel
from networks import answer, ours
from safetensors.torch import save_file
from tiny import UNET_OF_DIFFUSERS
from weights import moved

from ddpm.codecs.scale import PixelCodec
from ddpm.conditioning.columns import LabelColumn
from ddpm.conditioning.guidance import ClassifierFree
from ddpm.conditioning.network import ConditionalNetwork
from ddpm.config.model import VariantConfig
from ddpm.config.network import NetworkConfig
from ddpm.config.process import ProcessConfig
from ddpm.config.sampling import SamplingConfig
from ddpm.diffusion.likelihood import likelihood_bound
from ddpm.diffusion.plans import NO_CLIP, SAMPLERS, plan_for
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.sampling import sample
from ddpm.diffusion.schedules import Schedule
from ddpm.errors import UserError
from ddpm.interop.diffusers import convert, find, read, write
from ddpm.interop.diffusers.scheduler import SchedulerConfig
from ddpm.interop.diffusers.unet import UNet2DConfig
from ddpm.interop.published import Classes, Flags, Published
from ddpm.nets.condition import Shapes
from ddpm.nets.unet import UNet

SMALL = {**UNET_OF_DIFFUSERS, "in_channels": 3, "out_channels": 3}
# As google/ddpm-cifar10-32's config.json has them, at a smaller width.
CIFAR10 = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": (8, 16, 16, 16),
    "center_input_sample": False,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 4,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
PEERS = {
    "its defaults, small": SMALL,
    "google/ddpm-cifar10-32, narrow": CIFAR10,
    "AdaGN": {**SMALL, "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4, "attention_head_dim": 4},
    "residual resampling": {
        **SMALL,
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "block_out_channels": (8, 8, 16),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "no attention at all": {
        **SMALL,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "add_attention": False,
    },
    "classes": {**SMALL, "num_class_embeds": 5, "dropout": 0.1},
}
SCHEDULER = dict(DDPMScheduler().config) | {"_class_name": "DDPMScheduler"}


def peer(options):
    torch.manual_seed(0)
    return moved(UNet2DModel(**options))


def config_of(options):
    return dict(peer(options).config) | {"_class_name": "UNet2DModel"}


def question(side, channels=3, count=2):
    x = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([3, 977])


def assert_equal(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("name", PEERS)
def test_a_saved_model_is_read_as_the_same_network(name, tmp_path):
    theirs = peer(PEERS[name])
    DDPMPipeline(theirs, DDPMScheduler()).save_pretrained(tmp_path)
    found = read(tmp_path, Flags())
    network = ours(found)
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in theirs.parameters())
    x, t = question(found.codec.shape[0])
    y = torch.tensor([4, 0]) if "num_class_embeds" in PEERS[name] else None
    with torch.no_grad():
        assert_equal(answer(network, x, t, y), theirs(x, t, class_labels=y).sample)


def test_the_full_cifar10_network_is_the_papers():
    options = {**CIFAR10, "block_out_channels": (128, 256, 256, 256), "norm_num_groups": 32}
    with torch.device("meta"):
        theirs = UNet2DModel(**options)
    found = convert(dict(theirs.config) | {"_class_name": "UNet2DModel"}, SCHEDULER, theirs.state_dict())
    assert sum(tensor.numel() for tensor in found.weights.values()) == 35_746_307
    same = {"width": 128, "attention_resolutions": (16,), "norm_epsilon": 1e-6, "downsample_padding": "asymmetric"}
    assert found.network == NetworkConfig(**same, dropout=0.0)


def test_the_flat_layout_pickled_and_with_the_old_names_of_attentions(tmp_path):
    """As the first models were published: one folder, a pickle, query, key, value and proj_attn."""
    theirs = peer(CIFAR10)
    theirs.save_config(tmp_path)
    DDPMScheduler(variance_type="fixed_large").save_config(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in theirs.state_dict().items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        state[name] = tensor
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    found = read(tmp_path, Flags())
    x, t = question(32)
    with torch.no_grad():
        assert_equal(ours(found)(x, t), theirs(x, t).sample)
    assert found.process == ProcessConfig(variance="fixed_large")
    assert found.network.downsample_padding == "asymmetric"
    assert found.network.attention_resolutions == (16,)


@pytest.mark.parametrize(
    ("scheduler", "process", "sampling"),
    [
        (DDPMScheduler(), {"variance": "fixed_small"}, {"sampler": "ancestral", "steps": 1000, "spacing": "leading"}),
        (
            DDIMScheduler(100, 0.001, 0.2, prediction_type="v_prediction", timestep_spacing="trailing"),
            {"variance": "fixed_small", "timesteps": 100, "prediction": "v"},
            {"sampler": "ddim", "steps": 50, "spacing": "trailing"},
        ),
        (
            DDPMScheduler(60, beta_schedule="squaredcos_cap_v2", clip_sample=False, variance_type="fixed_large_log"),
            {"timesteps": 60, "schedule": "cosine", "variance": "fixed_large"},
            {"sampler": "ancestral", "steps": 60, "spacing": "leading", "clip": False},
        ),
        (
            DDIMScheduler(100, 0.001, 0.2, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=NO_CLIP),
            {"variance": "fixed_small", "timesteps": 100},
            {"sampler": "ddim", "steps": 50, "spacing": "leading", "dynamic_threshold": 0.9},
        ),
        (
            DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", prediction_type="sample"),
            {"schedule": "scaled_linear", "variance": "fixed_small", "prediction": "x0"},
            {"sampler": "ancestral", "steps": 1000, "spacing": "leading"},
        ),
    ],
)
def test_the_scheduler_is_read(scheduler, process, sampling):
    theirs = dict(scheduler.config) | {"_class_name": type(scheduler).__name__}
    found = convert(config_of(SMALL), theirs, peer(SMALL).state_dict())
    assert found.process == ProcessConfig(**process)
    assert found.sampling == SamplingConfig(**sampling)


NETWORKS = {
    "ho": {"attention_resolutions": (4,)},
    "improved": {"scale_shift": True, "frequency_shift": 0, "head_channels": 4, "attention_resolutions": (8, 4)},
    "adm": {"scale_shift": True, "resample": "residual", "head_channels": 8, "attention_resolutions": (4,)},
    "equal heads": {"heads": 2, "attention_resolutions": (4,), "norm_epsilon": 1e-6},
    "asymmetric": {"downsample_padding": "asymmetric", "attention_resolutions": (), "middle_attention": False},
    "classes": {"attention_resolutions": ()},
}


def network_of_ours(options, process=None, *, classes=None, null=False, **sampling):
    options = {"width": 8, "multipliers": (1, 2), "blocks": 1, "groups": 4, "dropout": 0.0, **options}
    process = process or ProcessConfig()
    out_channels = 2 if process.variance == "learned_range" else 1
    torch.manual_seed(0)
    network = UNet(Shapes((1, 8, 8), out_channels), **options)
    if classes:
        network = ConditionalNetwork(network, [LabelColumn(tuple("abcdefgh"[:classes]), droppable=null)])
    network = moved(network)
    plan = SamplingConfig(**{"sampler": "ancestral", "steps": process.timesteps, "spacing": "leading", **sampling})
    config, codec = NetworkConfig(**options), PixelCodec((8, 8, 1))
    if not classes:
        return network, Published(config, process, plan, codec, dict(network.state_dict()))
    labels = Classes(dict(network.conditioner.state_dict()), null)
    return network, Published(config, process, plan, codec, dict(network.network.state_dict()), labels=labels)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_we_write_diffusers_loads_and_we_read_again(name, tmp_path):
    network, written = network_of_ours(NETWORKS[name], classes=3 if name == "classes" else None)
    write(written, tmp_path)
    theirs, info = UNet2DModel.from_pretrained(tmp_path / "unet", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    x, t = question(8, channels=1)
    y = torch.tensor([2, 0]) if name == "classes" else None
    with torch.no_grad():
        assert_equal(theirs.eval()(x, t, class_labels=y).sample, answer(network, x, t, y))
    again = read(tmp_path, Flags())
    assert again.process == written.process
    assert again.sampling == written.sampling
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in written.weights.items())
    assert_equal(answer(ours(again), x, t, y), answer(network, x, t, y))


SHORT = {"timesteps": 30, "schedule": "cosine", "variance": "fixed_small"}


@pytest.mark.parametrize(
    ("process", "sampling"),
    [
        ({"timesteps": 10, "variance": "fixed_small"}, {}),
        ({**SHORT, "variance": "fixed_large", "prediction": "v"}, {}),
        ({**SHORT, "variance": "learned_range"}, {}),
        ({**SHORT, "schedule": "sigmoid"}, {}),
        (SHORT, {"variance": "fixed_large"}),
        (SHORT, {"dynamic_threshold": 0.8}),
        (SHORT, {"clip": False, "spacing": "linspace"}),
    ],
)
def test_the_pipeline_draws_what_we_draw(process, sampling, tmp_path):
    """From the same noise, by the scheduler that was written."""
    network, written = network_of_ours({"attention_resolutions": (4,)}, ProcessConfig(**process), **sampling)
    write(written, tmp_path)
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    steps = written.process.timesteps
    theirs = pipeline(2, torch.Generator().manual_seed(4), steps, output_type="np").images
    generator = torch.Generator().manual_seed(4)

    def draw():
        return torch.randn(2, 1, 8, 8, generator=generator)

    plan, again = (
        plan_for(f.process.model_dump(), f.sampling.model_dump()) for f in (written, read(tmp_path, Flags()))
    )
    np.testing.assert_array_equal(again.table, plan.table)
    drawn = sample(network, plan, draw(), draw)
    np.testing.assert_allclose(theirs, ((drawn + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy(), atol=1e-4)


README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
def test_the_lines_of_the_readme_sample_with_guidance_as_we_do(variance, tmp_path, monkeypatch):
    """From the same noise."""
    process = ProcessConfig(timesteps=20, schedule="cosine", variance=variance)
    network, written = network_of_ours({"attention_resolutions": (4,)}, process, classes=3, null=True)
    monkeypatch.chdir(tmp_path)
    Path("OUT").mkdir()
    write(written, Path("OUT"))
    block = re.search(r"(    import torch\n    from diffusers import .*?)\n\n\S", README.read_text("utf-8"), re.DOTALL)
    lines = textwrap.dedent(block[1])
    torch.manual_seed(4)
    namespace = {}
    exec(lines, namespace)
    label = torch.tensor(namespace["label"])
    generator = torch.Generator().manual_seed(4)

    def draw():
        return torch.randn(len(label), 1, 8, 8, generator=generator)

    plan = plan_for(written.process.model_dump(), written.sampling.model_dump(), guidance_scale=namespace["scale"])
    assert plan.column("guidance").all()
    drawn = sample(ClassifierFree(network, {"label": label}), plan, draw(), draw)
    np.testing.assert_allclose(namespace["x"].numpy(), drawn.numpy(), atol=1e-4)
    assert len([line for line in lines.splitlines() if line.strip()]) <= 16


def test_a_null_class_is_there_again_where_that_is_said(tmp_path):
    network, written = network_of_ours(NETWORKS["classes"], classes=3, null=True)
    write(written, tmp_path)
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["num_class_embeds"] == 4
    again = read(tmp_path, Flags(null_class=True))
    assert (again.labels.count, again.labels.null) == (3, True)
    x, t = question(8, channels=1)
    with torch.no_grad():
        mine, theirs = (
            ClassifierFree(each, {"label": torch.tensor([2, 0])}).guided(x, t, 1.5) for each in (network, ours(again))
        )
    assert_equal(theirs, mine)


def test_a_perceptron_of_the_classes_is_not_written(tmp_path):
    _, written = network_of_ours(NETWORKS["classes"], classes=3)
    labels = Classes({**written.labels.weights, "perceptron.0.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"condition.label.perceptron is True, which diffusers"):
        write(replace(written, labels=labels), tmp_path)


@pytest.mark.parametrize(
    ("config", "flags", "words"),
    [
        ({"num_class_embeds": 4}, {}, "class_embedding.weight has 5 rows, but num_class_embeds is 4"),
        ({"num_class_embeds": None}, {}, "missing nothing; unexpected class_embedding.weight"),
        ({"num_class_embeds": 0}, {}, "`num_class_embeds`: input should be greater than 0, found 0"),
        ({"class_embed_type": "timestep"}, {}, "`class_embed_type`: input should be None, found 'timestep'"),
    ],
)
def test_classes_that_do_not_fit_are_named(config, flags, words):
    with pytest.raises(UserError, match=words):
        convert({**config_of(PEERS["classes"]), **config}, SCHEDULER, peer(PEERS["classes"]).state_dict())
    with pytest.raises(UserError, match="--null-class: the network has no classes"):
        convert(config_of(SMALL), SCHEDULER, peer(SMALL).state_dict(), null_class=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resample": "plain"}, "network.resample is plain, which diffusers' UNet2DModel does not have"),
        ({"rescale_residuals": True}, "network.rescale_residuals is True"),
        ({"timestep_scale": 0.25}, "network.timestep_scale is 0.25"),
        ({"multipliers": (2, 2)}, r"network.multipliers is \[2, 2\]"),
        ({"heads": 2, "attention_resolutions": (8,)}, r"network.heads is 2 at \[8, 16\] channels alike"),
    ],
)
def test_what_diffusers_lacks_is_not_written(options, words, tmp_path):
    _, written = network_of_ours({"attention_resolutions": (4,), **options})
    with pytest.raises(UserError, match=words):
        write(written, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("process", "sampling", "words"),
    [
        ({}, {"spacing": "quadratic"}, "sampling.spacing is quadratic, which diffusers' DDPMScheduler does not have"),
        (
            {"variance": "learned_range"},
            {"variance": "fixed_small"},
            "sampling.variance is fixed_small, which diffusers",
        ),
    ],
)
def test_sampling_that_diffusers_lacks_is_not_written(process, sampling, words, tmp_path):
    _, written = network_of_ours({"attention_resolutions": (4,)}, ProcessConfig(**process), **sampling)
    with pytest.raises(UserError, match=words):
        write(written, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"act_fn": "gelu"}, "dir: `act_fn`: input should be 'silu' or 'swish', found 'gelu'"),
        ({"time_embedding_type": "learned"}, "`time_embedding_type`: input should be 'positional' or 'fourier'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is fourier, which .*; expected positional"),
        ({"center_input_sample": True}, "center_input_sample is True, which ddpm has with ScoreSdeVe"),
        ({"mid_block_scale_factor": 2}, "`mid_block_scale_factor`: .*, found 2"),
        ({"_class_name": "UNet2DConditionModel"}, "`_class_name`: .*, found 'UNet2DConditionModel'"),
        (
            {"resnet_time_scale_shift": "scale_shift"},
            "attn_norm_num_groups is None, which ddpm does not have; expected 4",
        ),
        ({"time_embedding_dim": 16}, "time_embedding_dim is 16, which ddpm does not have; expected None or 32"),
        ({"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]}, "level 0 has SkipDownBlock2D and UpBlock2D"),
        ({"downsample_type": "resnet", "upsample_type": "resnet"}, "resamples by conv and resnet"),
        ({"block_out_channels": [8, 12]}, r"block_out_channels \[8, 12\]"),
        ({"norm_num_groups": 3}, "groups is 3, which does not divide"),
        ({"sample_size": None}, "give --image-size"),
        ({"sample_size": [8, 16]}, r"`sample_size`: .*, found \[8, 16\]"),
        ({"in_channels": 4}, "`in_channels`: input should be 1 or 3, found 4"),
        ({"out_channels": 6}, "3 channels in and 6 out do not go with"),
        ({"num_class_embeds": 4}, "missing class_embedding.weight; unexpected nothing"),
        ({"layers_per_block": 2}, "missing down_blocks.*unexpected"),
        ({"block_out_channels": [16, 32]}, r"another network: time_mlp.0.weight is \[32, 8\], not \[64, 16\]"),
    ],
)
def test_what_we_lack_or_does_not_fit_is_named(change, words):
    with pytest.raises(UserError, match=words):
        convert({**config_of(SMALL), **change}, SCHEDULER, peer(SMALL).state_dict(), where="dir")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"_class_name": "ScoreSdeVpScheduler"},
            "dir: scheduler: _class_name: 'ScoreSdeVpScheduler' is no scheduler whose process is",
        ),
        ({"thresholding": True}, "scheduler: sample_max_value is 1.0: ddpm has no bound"),
        ({"beta_schedule": "laplace"}, "scheduler: `beta_schedule`: .*, found 'laplace'"),
        ({"trained_betas": [0.1, 2.0]}, r"dir: scheduler: betas must be inside \(0, 1\).*betas\[1\] is 2.0"),
        (
            {"rescale_betas_zero_snr": True},
            "the last beta is 1, which leaves only noise: prediction must then be x0 or v",
        ),
        ({"num_train_timesteps": 10**9}, "`num_train_timesteps`: input should be less than or equal to 100000"),
        ({"use_flow_sigmas": True}, "`use_flow_sigmas`: input should be False, found True"),
        ({"variance_type": "learned"}, "scheduler: `variance_type`: .*, found 'learned'"),
    ],
)
def test_a_scheduler_that_we_lack_is_named(change, words):
    with pytest.raises(UserError, match=words):
        convert(config_of(SMALL), {**SCHEDULER, **change}, peer(SMALL).state_dict(), where="dir")


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(100),
        DDPMScheduler(50, 0.001, 0.3, "sigmoid"),
        DDPMScheduler(trained_betas=np.geomspace(1e-3, 0.5, 20), num_train_timesteps=20),
        DDIMScheduler(200, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"),
        EulerDiscreteScheduler(100, 0.002, 0.1),
        HeunDiscreteScheduler(1000, beta_schedule="linear"),
    ],
    ids=lambda scheduler: f"{type(scheduler).__name__}-{len(scheduler.betas)}",
)
def test_any_betas_are_the_process(scheduler, tmp_path):
    """As explicit betas, which sampling, the likelihood, our card and their scheduler take as they take named ones."""
    theirs = dict(scheduler.config) | {"_class_name": type(scheduler).__name__}
    found = convert(config_of(SMALL), theirs, peer(SMALL).state_dict())
    betas = Schedule.of(found.process.model_dump()).betas
    assert found.process.schedule == "explicit"
    expected = scheduler.alphas_cumprod.double().numpy()
    if isinstance(scheduler, EulerDiscreteScheduler):
        expected = np.cumprod(1 - scheduler.betas.double().numpy())
    np.testing.assert_allclose(np.cumprod(1 - betas), expected, rtol=2e-4, atol=1e-7)
    again = VariantConfig.model_validate_json(
        VariantConfig(process=found.process, sampling=found.sampling).model_dump_json()
    )
    assert again.process == found.process
    write(Published(found.network, found.process, found.sampling, found.codec, found.weights), tmp_path)
    assert read(tmp_path, Flags()).process == found.process
    ours_network, shape = ours(found), (2, 3, 8, 8)
    process = GaussianProcess(Schedule.of(found.process.model_dump()), prediction=found.process.prediction)
    x0 = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(2)) / 127.5 - 1
    assert np.isfinite(likelihood_bound(ours_network, process, [x0]).bits_per_dim)
    for sampler in SAMPLERS:
        plan = plan_for(found.process.model_dump(), found.sampling.model_dump(), sampler=sampler, steps=5)
        assert torch.isfinite(sample(ours_network, plan, torch.randn(shape), lambda: torch.randn(shape))).all(), sampler


def test_zero_terminal_snr_is_sampled_as_theirs():
    """From a step without signal, at the betas that theirs rescales."""
    scheduler = DDIMScheduler(
        100, 0.001, 0.2, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    theirs = peer(SMALL)
    config = dict(scheduler.config) | {"_class_name": "DDIMScheduler"}
    found = convert(config_of(SMALL), config, theirs.state_dict())
    scheduler.set_timesteps(10)
    x = start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(theirs(x, t).sample, t, x, use_clipped_model_output=True).prev_sample
    plan = plan_for(found.process.model_dump(), found.sampling.model_dump(), steps=10)
    torch.testing.assert_close(sample(ours(found), plan, start, lambda: start), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("scheduler", "plan", "note"),
    [
        (PNDMScheduler(skip_prk_steps=True, steps_offset=1), ("ddim", 50), "no PNDMScheduler: it is sampled by ddim"),
        (EulerAncestralDiscreteScheduler(), ("euler_ancestral", 50), "is euler_ancestral in"),
        (LMSDiscreteScheduler(), ("ddim", 50), "no LMSDiscreteScheduler"),
        (DPMSolverMultistepScheduler(), ("dpmpp_2m", 20), "is dpmpp_2m in 20 steps here"),
        (DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=3), ("dpmpp_2m_sde", 20), "not 3"),
        (DPMSolverSinglestepScheduler(), ("dpmpp_2s", 20), "is dpmpp_2s"),
        (UniPCMultistepScheduler(), ("unipc", 20), "is unipc in"),
        (UniPCMultistepScheduler(solver_type="bh1"), ("unipc_bh1", 20), "is unipc_bh1 in"),
        (DDIMScheduler(steps_offset=1, set_alpha_to_one=False), ("ddim", 50), "steps_offset 1 is ignored"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, tuple | str) else "",
)
def test_solvers_are_mapped_or_replaced_with_a_word(scheduler, plan, note, tmp_path):
    DDPMPipeline(peer(SMALL), scheduler).save_pretrained(tmp_path)
    found = read(tmp_path, Flags())
    assert found.process == ProcessConfig(variance="fixed_small")
    assert (found.sampling.sampler, found.sampling.steps) == plan
    assert any(note in said for said in found.notes)


SAVED = {
    "fp16": {"variant": "fp16"},
    "sharded": {"max_shard_size": "20KB"},
    "sharded fp16": {"variant": "fp16", "max_shard_size": "20KB"},
    "pickled": {"safe_serialization": False},
    "pickled and sharded": {"safe_serialization": False, "max_shard_size": "20KB"},
}


@pytest.mark.parametrize("form", SAVED)
def test_the_forms_that_save_pretrained_writes(form, tmp_path):
    theirs = peer(SMALL)
    if "fp16" in form:
        theirs = theirs.half()
    DDPMPipeline(theirs, DDPMScheduler()).save_pretrained(tmp_path, **SAVED[form])
    assert not ("sharded" in form) ^ any((tmp_path / "unet").glob("*.index*.json"))
    found = read(tmp_path, Flags())
    x, t = question(8)
    with torch.no_grad():
        assert_equal(ours(found)(x, t), theirs.float()(x, t).sample)


def test_variants_side_by_side(tmp_path):
    """The plain weights come first; among variants alone nobody can choose."""
    pipeline = DDPMPipeline(peer(SMALL), DDPMScheduler())
    for variant in ("fp16", "ema"):
        pipeline.save_pretrained(tmp_path, variant=variant)
    with pytest.raises(UserError, match=r"several variants: diffusion_pytorch_model.ema.safetensors, .*leave one"):
        read(tmp_path, Flags())
    pipeline.save_pretrained(tmp_path)
    assert [path.name for path in find(tmp_path).weights] == ["diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize("named", ["../other.safetensors", "diffusion_pytorch_model/x", 3, None])
def test_an_index_names_files_of_its_own_folder(named, tmp_path):
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": named}}))
    with pytest.raises(UserError, match=r"index.json: damaged: expected a `weight_map`"):
        find(tmp_path)


def test_checkpoints_of_their_training_example(tmp_path):
    """checkpoint-N/ has unet/ and unet_ema/, whose averages are the model; the scheduler is the pipeline's, one up."""
    network, average = peer(SMALL), peer({**SMALL, "dropout": 0.1})
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(0.9)
    ema = EMAModel(average.parameters(), model_cls=UNet2DModel, model_config=average.config)
    checkpoint = tmp_path / "run" / "checkpoint-10"
    network.save_pretrained(checkpoint / "unet")
    ema.save_pretrained(checkpoint / "unet_ema")
    x, t = question(8)

    def is_the_average(found):
        assert found.notes[0] == "averaged weights of unet_ema"
        with torch.no_grad():
            assert_equal(ours(found)(x, t), average(x, t).sample)

    with pytest.raises(UserError, match="give --noise-schedule and --diffusion-steps"):
        read(checkpoint, Flags())
    found = read(checkpoint, Flags(noise_schedule="cosine", diffusion_steps=30, predict_xstart=True))
    assert found.process == ProcessConfig(timesteps=30, schedule="cosine", prediction="x0", variance="fixed_small")
    is_the_average(found)
    DDPMScheduler(40, beta_schedule="squaredcos_cap_v2").save_pretrained(tmp_path / "run" / "scheduler")
    for directory in (checkpoint, checkpoint / "unet_ema"):
        found = read(directory, Flags())
        assert (found.process.timesteps, found.process.schedule) == (40, "cosine")
        is_the_average(found)
    with pytest.raises(UserError, match="with its scheduler: --diffusion-steps does not apply"):
        read(checkpoint, Flags(diffusion_steps=30))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off(prefix, tmp_path):
    theirs = peer(SMALL)
    DDPMPipeline(theirs, DDPMScheduler()).save_pretrained(tmp_path)
    state = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    save_file(state, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    x, t = question(8)
    with torch.no_grad():
        assert_equal(ours(read(tmp_path, Flags()))(x, t), theirs(x, t).sample)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (Flags(image_size=16), "--image-size is 16, but the model's sample_size is 8"),
        (Flags(num_heads=4), "--num-heads does not apply to it"),
        (Flags(sigma_small=True), "--sigma-small does not apply to it"),
    ],
)
def test_flags_that_say_nothing_of_it_are_refused(flags, words, tmp_path):
    DDPMPipeline(peer(SMALL), DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=words):
        read(tmp_path, flags)


ODD = [None, -1, 0, "x", [], {}, 1.5, [1], [None, 2], True, float("nan")]


@pytest.mark.parametrize(("damaged", "model"), [("config", UNet2DConfig), ("scheduler", SchedulerConfig)])
def test_any_key_may_hold_anything(damaged, model):
    """It is imported, or a line says what is wrong."""
    whole = {"config": config_of(SMALL), "scheduler": SCHEDULER}
    weights, keys, refused = peer(SMALL).state_dict(), model.model_json_schema()["properties"], []
    for key, value in itertools.product(keys, ODD):
        odd = {**whole, damaged: {**whole[damaged], key: value}}
        try:
            convert(**odd, theirs=weights, where="dir")
        except UserError as error:
            refused.append((key, str(error)))
    assert {key for key, _ in refused} == keys.keys()
    assert all(line.startswith("dir: ") and "\n" not in line for _, line in refused)


def test_damaged_directories(tmp_path):
    with pytest.raises(UserError, match=r"no weights; expected diffusion_pytorch_model.safetensors"):
        read(tmp_path, Flags())
    DDPMPipeline(peer(SMALL), DDPMScheduler()).save_pretrained(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for part in (whole[:-10], whole[:5], b""):
        weights.write_bytes(part)
        with pytest.raises(UserError, match="damaged or cut short"):
            read(tmp_path, Flags())
    weights.write_bytes(whole)
    scheduler = tmp_path / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps([1]))
    with pytest.raises(UserError, match=r"scheduler_config.json: damaged: .*expected an object, found \[1\]"):
        read(tmp_path, Flags())
    scheduler.write_text("{")
    with pytest.raises(UserError, match=r"scheduler_config.json: damaged"):
        read(tmp_path, Flags())
    scheduler.unlink()
    with pytest.raises(UserError, match=r"no scheduler_config.json .*give --noise-schedule and --diffusion-steps"):
        read(tmp_path, Flags())
    (tmp_path / "unet" / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json: no such file"):
        read(tmp_path, Flags(noise_schedule="linear", diffusion_steps=10))
