"""The presets beside what was published, key by key: those of CIFAR-10 and of ImageNet have a twin, the others differ
on purpose.

The sources are hojonathanho/diffusion (Ho), openai/improved-diffusion (ND) and openai/guided-diffusion (DN), by file,
and the papers by section.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ddpm.codecs.scale import codec_for
from ddpm.conditioning.columns import LabelColumn
from ddpm.config.base import INCIDENTAL
from ddpm.config.condition import LabelConfig
from ddpm.config.model import VariantConfig
from ddpm.config.params import load_params
from ddpm.diffusion.schedules import Schedule
from ddpm.model.network import build_network
from ddpm.training.ema import EMA

PARAMS = Path(__file__).parents[2] / "params.yaml"
HO, ND = "Ho: scripts/run_cifar.py", "ND: README.md, CIFAR-10 L_hybrid"
HO_UNET, ND_UNET = "Ho: diffusion_tf/models/unet.py", "ND: improved_diffusion/unet.py"
HO_TPU, ND_TRAIN = "Ho: diffusion_tf/tpu_utils/tpu_utils.py", "ND: improved_diffusion/train_util.py"
ND_SCRIPT = "ND: improved_diffusion/script_util.py"
DN, DN_TABLE = "DN: README.md, 64x64 model", "Dhariwal & Nichol 2021, table 11"
DN_UNET, DN_SCRIPT = "DN: guided_diffusion/unet.py", "DN: guided_diffusion/script_util.py"
DN_TRAIN = "DN: scripts/image_train.py"

# key → (the preset's value, which is the published one; the published code's words; where).
PUBLISHED = {
    "ddpm-cifar10": {
        "network.kind": ("unet", "unet2d16b2", HO),
        "network.width": (128, "ch=128", HO),
        "network.multipliers": ((1, 2, 2, 2), "ch_mult=(1, 2, 2, 2)", HO),
        "network.blocks": (2, "num_res_blocks=2", HO),
        "network.attention_resolutions": ((16,), "attn_resolutions=(16,)", HO),
        "network.middle_attention": (True, "mid/attn_1", HO_UNET),
        "network.heads": (1, "attn_block has one head", HO_UNET),
        "network.head_channels": (None, "attn_block has one head", HO_UNET),
        "network.groups": (32, "tf_contrib group_norm's default", HO_UNET),
        "network.norm_epsilon": (1e-6, "tf_contrib group_norm's own epsilon", HO_UNET),
        "network.dropout": (0.1, "dropout=0.1", HO),
        "network.scale_shift": (False, "h += dense(temb)", HO_UNET),
        "network.resample": ("conv", "resamp_with_conv=True", HO_UNET),
        "network.downsample_padding": ("asymmetric", "conv2d(stride=2, pad='SAME'): one row at the end", HO_UNET),
        "network.rescale_residuals": (False, "return x + h", HO_UNET),
        "network.frequency_shift": (1, "log(10000) / (half_dim - 1)", "Ho: diffusion_tf/nn.py"),
        "network.timestep_scale": (1.0, "get_timestep_embedding(t, ch)", HO_UNET),
        "network.init": ("fan_avg", "variance_scaling(1.0, fan_avg, uniform)", "Ho: diffusion_tf/nn.py"),
        "condition.label": (None, "y is None", HO_UNET),
        "process.timesteps": (1000, "num_diffusion_timesteps=1000", HO),
        "process.schedule": ("linear", "beta_schedule='linear', 0.0001 to 0.02", HO),
        "process.prediction": ("epsilon", "model_mean_type='eps'", HO),
        "process.variance": ("fixed_large", "model_var_type='fixedlarge'", HO),
        "objective.loss": ("simple", "loss_type='mse'", HO),
        "objective.weighting": ("none", "loss_type='mse'", HO),
        "objective.timestep_sampler": ("uniform", "tf.random_uniform([B], 0, T)", HO),
        "training.steps": (800_000, "800K steps", "Ho et al. 2020, appendix B"),
        "training.batch_size": (128, "total_bs=128", HO),
        "training.learning_rate": (2e-4, "lr=2e-4", HO),
        "training.warmup_steps": (5000, "warmup=5000", HO),
        "training.decay": ("constant", "get_warmed_up_lr", HO_TPU),
        "training.grad_clip": (1.0, "grad_clip=1.", HO),
        "training.ema_decay": (0.9999, "ema_decay=0.9999", HO_TPU),
        "training.weight_decay": (0.0, "Adam", "Ho et al. 2020, appendix B"),
        "training.ema_warmup": (False, "make_ema: ema_decay from the second step", HO_TPU),
        "training.horizontal_flip": (True, "randflip=1", HO),
        "sampling.sampler": ("ancestral", "p_sample_loop", HO),
        "sampling.steps": (1000, "all timesteps", HO),
        "sampling.clip": (True, "clip_denoised=True", "Ho: diffusion_tf/diffusion_utils_2.py"),
        "sampling.variance": (None, "the process's, fixedlarge", HO),
        "sampling.guidance_scale": (1.0, "none", HO),
    },
    "improved-ddpm-cifar10": {
        "network.kind": ("unet", "UNetModel", ND_UNET),
        "network.width": (128, "--num_channels 128", ND),
        "network.multipliers": ((1, 2, 2, 2), "image_size 32: (1, 2, 2, 2)", ND_SCRIPT),
        "network.blocks": (3, "--num_res_blocks 3", ND),
        "network.attention_resolutions": ((16, 8), 'attention_resolutions="16,8"', ND_SCRIPT),
        "network.middle_attention": (True, "middle_block", ND_UNET),
        "network.heads": (4, "num_heads=4, num_heads_upsample=-1", ND_SCRIPT),
        "network.head_channels": (None, "no such option", ND_UNET),
        "network.groups": (32, "GroupNorm32(32, channels)", "ND: improved_diffusion/nn.py"),
        "network.norm_epsilon": (1e-5, "torch's default", "ND: improved_diffusion/nn.py"),
        "network.dropout": (0.3, "--dropout 0.3", ND),
        "network.scale_shift": (True, "use_scale_shift_norm=True", ND_SCRIPT),
        "network.resample": ("conv", "conv_resample=True", ND_UNET),
        "network.downsample_padding": ("symmetric", "conv_nd(stride=2, padding=1)", ND_UNET),
        "network.rescale_residuals": (False, "skip_connection(x) + h", ND_UNET),
        "network.frequency_shift": (0, "arange(half) / half", "ND: improved_diffusion/nn.py"),
        "network.timestep_scale": (0.25, "rescale_timesteps=True: t * 1000 / 4000", ND_SCRIPT),
        "network.init": ("torch", "torch's defaults", ND_UNET),
        "condition.label": (None, "class_cond=False", ND_SCRIPT),
        "process.timesteps": (4000, "--diffusion_steps 4000", ND),
        "process.schedule": ("cosine", "--noise_schedule cosine", ND),
        "process.prediction": ("epsilon", "predict_xstart=False", ND_SCRIPT),
        "process.variance": ("learned_range", "--learn_sigma True", ND),
        "objective.loss": ("hybrid", "rescale_learned_sigmas=True: RESCALED_MSE, vb * T / 1000", ND_SCRIPT),
        "objective.weighting": ("none", "RESCALED_MSE", ND_SCRIPT),
        "objective.timestep_sampler": ("uniform", 'schedule_sampler="uniform"', "ND: scripts/image_train.py"),
        "training.steps": (500_000, "cifar10_uncond_50M_500K.pt", ND),
        "training.batch_size": (128, "--batch_size 128", ND),
        "training.learning_rate": (1e-4, "--lr 1e-4", ND),
        "training.warmup_steps": (0, "none", ND_TRAIN),
        "training.decay": ("constant", "lr_anneal_steps=0", "ND: scripts/image_train.py"),
        "training.grad_clip": (None, "none", ND_TRAIN),
        "training.ema_decay": (0.9999, 'ema_rate="0.9999"', "ND: scripts/image_train.py"),
        "training.weight_decay": (0.0, "weight_decay=0.0", ND_TRAIN),
        "training.ema_warmup": (False, "update_ema(rate=rate)", ND_TRAIN),
        "training.horizontal_flip": (False, "none", "ND: improved_diffusion/image_datasets.py"),
        "sampling.sampler": ("ancestral", "p_sample_loop", "ND: scripts/image_sample.py"),
        "sampling.steps": (4000, 'timestep_respacing=""', ND_SCRIPT),
        "sampling.clip": (True, "clip_denoised=True", "ND: scripts/image_sample.py"),
        "sampling.variance": (None, "the process's, learned", ND_SCRIPT),
        "sampling.guidance_scale": (1.0, "none", "ND: scripts/image_sample.py"),
    },
    # For ImageNet at 64×64, `64x64_diffusion.pt`.
    "adm-conditional": {
        "network.kind": ("unet", "UNetModel", DN_UNET),
        "network.width": (192, "--num_channels 192", DN),
        "network.multipliers": ((1, 2, 3, 4), "image_size 64: (1, 2, 3, 4)", DN_SCRIPT),
        "network.blocks": (3, "--num_res_blocks 3", DN),
        "network.attention_resolutions": ((32, 16, 8), "--attention_resolutions 32,16,8", DN),
        "network.middle_attention": (True, "middle_block", DN_UNET),
        "network.heads": (1, "num_head_channels says it", DN_UNET),
        "network.head_channels": (64, "--num_head_channels 64", DN),
        "network.groups": (32, "GroupNorm32(32, channels)", "DN: guided_diffusion/nn.py"),
        "network.norm_epsilon": (1e-5, "torch's default", "DN: guided_diffusion/nn.py"),
        "network.dropout": (0.1, "--dropout 0.1", DN),
        "network.scale_shift": (True, "--use_scale_shift_norm True", DN),
        "network.resample": ("residual", "--resblock_updown True", DN),
        "network.downsample_padding": ("symmetric", "no such option", DN_UNET),
        "network.rescale_residuals": (False, "skip_connection(x) + h", DN_UNET),
        "network.frequency_shift": (0, "arange(half) / half", "DN: guided_diffusion/nn.py"),
        "network.timestep_scale": (1.0, "rescale_timesteps=False", DN_SCRIPT),
        "network.init": ("torch", "torch's defaults", DN_UNET),
        "condition.label": (LabelConfig(drop=0.0), "--class_cond True; label_emb has no null class", DN),
        "process.timesteps": (1000, "--diffusion_steps 1000", DN),
        "process.schedule": ("cosine", "--noise_schedule cosine", DN),
        "process.prediction": ("epsilon", "predict_xstart=False", DN_SCRIPT),
        "process.variance": ("learned_range", "--learn_sigma True", DN),
        "objective.loss": ("hybrid", "MSE + vb, which at T = 1000 is RESCALED_MSE", "DN: gaussian_diffusion.py"),
        "objective.weighting": ("none", "MSE", DN_SCRIPT),
        "objective.timestep_sampler": ("uniform", 'schedule_sampler="uniform"', DN_TRAIN),
        "training.steps": (540_000, "540K iterations", DN_TABLE),
        "training.batch_size": (2048, "2048", DN_TABLE),
        "training.learning_rate": (3e-4, "3e-4", DN_TABLE),
        "training.warmup_steps": (0, "none", DN_TRAIN),
        "training.decay": ("constant", "lr_anneal_steps=0", DN_TRAIN),
        "training.grad_clip": (None, "none", DN_TRAIN),
        "training.ema_decay": (0.9999, "0.9999", DN_TABLE),
        "training.weight_decay": (0.0, "weight_decay=0.0", DN_TRAIN),
        "training.ema_warmup": (False, "update_ema(rate=rate)", DN_TRAIN),
        "training.horizontal_flip": (True, "random_flip=True", "DN: guided_diffusion/image_datasets.py"),
        "sampling.sampler": ("ancestral", "use_ddim=False", DN),
        "sampling.steps": (250, "--timestep_respacing 250", DN),
        "sampling.spacing": ("even", "space_timesteps: from 0 to T - 1 in equal strides", "DN: respace.py"),
        "sampling.clip": (True, "clip_denoised=True", DN),
        "sampling.variance": (None, "the process's, learned", DN_SCRIPT),
        "sampling.guidance_scale": (1.0, "by a classifier, which is another model", DN),
    },
}
# What these models are not told, and what none of them has.
for _preset in PUBLISHED.values():
    _preset |= {f"condition.{key}": (None, "no such input", "the networks above") for key in ("prompt", "mask", "low")}
    _preset |= {
        "codec.side": (None, "the images as they are", "the training scripts above"),
        "process.betas": (None, "by the schedule", "the training scripts above"),
        "training.start_from": (None, "random weights", "the training scripts above"),
        "sampling.dynamic_threshold": (None, "none", "the sampling scripts above"),
        "sampling.guidance_interval": (None, "none", "the sampling scripts above"),
        "sampling.guide": (None, "none among its own settings", "another model"),
    }
# Where the presets differ on purpose, or a key says nothing.
DIFFERENT = {
    "training.precision": "auto: bf16 where the GPU has it. Ho trained on TPUs, ND in float32; set fp32 for theirs",
    "objective.gamma": "of weighting: min_snr",
    "objective.dropping": "of several conditions",
    "objective.reconstruction_weight": "of loss: elbo",
    "sampling.eta": "of sampler: ddim",
    "sampling.spacing": "all timesteps are visited, which every spacing does alike",
}


def settings(name: str) -> dict[str, object]:
    """Every key of a preset that decides its weights or its samples."""
    return settings_of(load_params(PARAMS).models[name])


def settings_of(preset: VariantConfig) -> dict[str, object]:
    return {
        f"{section}.{key}": getattr(getattr(preset, section), key)
        for section in type(preset).model_fields
        for key, field in type(getattr(preset, section)).model_fields.items()
        if INCIDENTAL not in field.metadata
    }


# What came after these papers: at its default, which is without it.
LATER = (
    *("network.attention", "network.transformer_depth", "network.transformer_projection"),
    *("process.kind", "process.sigma_min", "process.sigma_max", "process.sigma_data", "process.rho", "process.shift"),
    *("process.log_sigma_mean", "process.log_sigma_std", "process.time"),
    *("network.time_embedding", "network.input_range"),
    *("sampling.churn", "sampling.churn_interval", "sampling.churn_noise"),
    *("codec.latent", "objective.reconstruction", "objective.noised", "codec.embedding", "condition.embedding"),
    *("sampling.candidates", "sampling.clip_range"),
    *("condition.control", "sampling.control_scale", "sampling.control_interval", "sampling.guess"),
    *("sampling.langevin_epsilon", "sampling.langevin_steps", "training.ema_snapshots"),
)


def published(name: str) -> dict[str, object]:
    return {key: value for key, (value, _, _) in PUBLISHED[name].items()}


# What the presets without a published twin are held against. Of ADM the network on ImageNet 64×64 (guided-diffusion's
# README, and Dhariwal & Nichol 2021, table 11); of denoising_diffusion_pytorch its README's example and its defaults.
LUCIDRAINS = {
    "network.kind": "linear-attention",
    "network.width": 64,
    "network.multipliers": (1, 2, 4, 8),
    "network.heads": 4,
    "network.head_width": 32,
    "network.memory": 4,
    "network.full_attention": (3,),
    "network.downsample": "unshuffle",
    "network.dropout": 0.0,
    "process.timesteps": 1000,
    "process.schedule": "sigmoid",
    "process.prediction": "v",
    "objective.loss": "simple",
    "objective.weighting": "none",
    "objective.timestep_sampler": "uniform",
    "training.steps": 700_000,
    "training.batch_size": 64,  # 32, of which two are accumulated
    "training.learning_rate": 8e-5,
    "training.warmup_steps": 0,
    "training.decay": "constant",
    "training.grad_clip": 1.0,
    "training.ema_decay": 0.995,
    "training.horizontal_flip": False,
    "sampling.sampler": "ddim",
    "sampling.steps": 250,
    "sampling.eta": 0.0,
    "sampling.clip": True,
}
LUCIDRAINS_1D = LUCIDRAINS | {"network.memory": 0, "network.full_attention": (), "network.downsample": "conv"}
ADM = published("improved-ddpm-cifar10") | {
    "network.width": 192,
    "network.multipliers": (1, 2, 3, 4),
    "network.attention_resolutions": (32, 16, 8),
    "network.dropout": 0.1,
    "network.heads": 1,
    "network.head_channels": 64,
    "network.resample": "residual",
    "network.timestep_scale": 1.0,
    "process.timesteps": 1000,
    "training.steps": 540_000,
    "training.batch_size": 2048,
    "training.learning_rate": 3e-4,
    "sampling.steps": 1000,
}
# Classifier-free guidance is of any network; its paper drops a tenth of the labels (Ho & Salimans 2022, §4).
GUIDED = published("ddpm-cifar10") | {"condition.label": LabelConfig(drop=0.1)}
REFERENCES = {
    "ddpm": published("ddpm-cifar10"),
    "improved-ddpm": published("improved-ddpm-cifar10"),
    "improved-ddpm-vlb": published("improved-ddpm-cifar10") | {"objective.loss": "vlb"} | {
        "objective.timestep_sampler": "importance"  # ND: README.md, L_vlb: --schedule_sampler loss-second-moment
    },
    "adm": ADM,
    "conditional": GUIDED,
    "conditional-fashion": GUIDED,
    "linear-attention": LUCIDRAINS,
    "linear-attention-1d": LUCIDRAINS_1D,
}  # fmt: skip
# Why a preset differs, by key.
SMALL = dict.fromkeys(
    ["network.width", "network.multipliers", "network.attention_resolutions", "network.blocks"],
    "images of 8×8, and a training of minutes on a core",
)
SHORT = {
    "training.steps": "minutes on a core",
    "training.learning_rate": "ten times theirs, as few steps need",
    "training.warmup_steps": "a twentieth of the steps, before that learning rate",
    "training.decay": "cosine: few steps end well only with a falling learning rate",
}
DIGITS = SMALL | SHORT | {
    "network.groups": "16 or 32 groups of so few channels would leave each channel without a mean",
    "network.dropout": "so small a network does not learn 1,437 images by heart in so few steps",
    "training.batch_size": "a smaller batch than theirs, for shorter steps",
    "training.ema_warmup": "0.9999 from the first step would leave the initial weights in the average",
}  # fmt: skip
ND_DIGITS = DIGITS | {
    "network.timestep_scale": "theirs is 1000/T, and T is 1000 here",
    "process.timesteps": "a likelihood from a quarter as many network evaluations",
    "training.grad_clip": "clipped as Ho's: at ten times the learning rate",
    "sampling.steps": "100 strided steps, one of the numbers that they evaluate too",
}  # fmt: skip
ADM_DIGITS = DIGITS | {key: ND_DIGITS[key] for key in ("training.grad_clip", "sampling.steps")}
DELIBERATE = {
    "ddpm": DIGITS | {
        "network.norm_epsilon": "torch's; without pretrained weights to match it decides nothing",
        "network.downsample_padding": "symmetric: at 2×2 pixels a row more at one side is a half of the image",
        "network.init": "torch's, as all digits presets",
        "process.schedule": "cosine: at 8×8 the linear schedule removes the image too early",
        "process.variance": "the ancestral sampler needs the smaller one in few steps",
        "sampling.sampler": "dpmpp_2m_sde in 15 steps has a better FID here than DDIM in 50",
        "sampling.steps": "15 are enough for dpmpp_2m_sde",
        "training.horizontal_flip": "a mirrored digit is none",
    },
    "improved-ddpm": ND_DIGITS,
    "improved-ddpm-vlb": ND_DIGITS,
    "adm": ADM_DIGITS | {
        "network.head_channels": "heads of 16 channels, since the levels have only 32 and 64",
    },
    "linear-attention": SHORT | {
        "network.width": SMALL["network.width"],
        "network.multipliers": "three levels: 8×8 pixels halve twice",
        "network.full_attention": "in the last level, as theirs, which is the third here",
        "process.schedule": "cosine: their sigmoid is for images of 64×64 and more",
        "training.ema_decay": "the default, which its warm-up does not come to in so few steps",
        "sampling.steps": "50 are enough for DDIM",
    },
}  # fmt: skip
DELIBERATE["conditional"] = DELIBERATE["ddpm"]
DELIBERATE["conditional-fashion"] = DELIBERATE["ddpm"] | dict.fromkeys(
    [key for key in DELIBERATE["ddpm"] if key in SMALL or key in SHORT],
    "images of 28×28, and a training of an hour on two cores",
) | {
    "network.downsample_padding": "symmetric, as all presets that need not match pretrained weights",
    "network.dropout": "so small a network does not learn 60,000 images by heart in so few steps",
    "process.schedule": "cosine: at 28×28 too the linear schedule removes the image early",
    "sampling.steps": "20 are enough for dpmpp_2m_sde",
    "training.horizontal_flip": "the shoes of Fashion-MNIST point to one side",
}  # fmt: skip
DELIBERATE["linear-attention-1d"] = {
    key: why for key, why in DELIBERATE["linear-attention"].items() if key != "network.full_attention"
}
# The others have no published code to be held against: the VAE's and the spiral's papers give neither.
# The classifiers have ADM's parts at small sizes; its own sizes are in tests/core/test_guidance.py.
# Those of emoji are GLIDE's cascade at a size of its own.
EMOJI = {"text-8", "text-32", "emoji", "text-emoji", "inpaint-emoji"}
EMOJI |= {"autoencoder-emoji", "latent-emoji", "control-emoji", "clip-emoji", "clip-noised-emoji"}
EMOJI |= {"prior-emoji", "decoder-emoji"}
# Those of other processes have the network of the digits; their processes are in tests/core/test_other_processes.py.
PROCESSES = {"ncsn", "edm", "flow", "swiss-roll-ncsn", "swiss-roll-edm", "swiss-roll-flow"}
WITHOUT_REFERENCE = {"vae", "swiss-roll", "classifier", "classifier-fashion", *EMOJI, *PROCESSES}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_preset_without_a_twin_differs_from_what_was_published_as_it_says(name):
    found, theirs = settings(name), REFERENCES[name]
    different = {key for key, value in theirs.items() if found[key] != value}
    assert different == DELIBERATE[name].keys()


def test_every_preset_is_held_against_something():
    assert load_params(PARAMS).models.keys() == PUBLISHED.keys() | REFERENCES.keys() | WITHOUT_REFERENCE


@pytest.mark.parametrize("name", load_params(PARAMS).models)
def test_an_ema_decay_that_a_preset_writes_is_come_to(name):
    """While it warms up, a decay of 0.998 in 2,000 steps is the same as any above 0.9956."""
    training = load_params(PARAMS).models[name].training
    if "ema_decay" in training.model_fields_set and training.ema_warmup:
        assert (training.steps + 9) * training.ema_decay < training.steps


def test_the_decay_that_is_written_is_reached_when_the_documentation_says():
    ema = EMA(nn.Linear(1, 1, bias=False), 0.998)
    for step, lowered in ((4489, True), (4490, False)):
        ema.averages[0].fill_(1.0)
        with torch.no_grad():
            ema._parameters[0].zero_()
        ema.update(step)
        assert (ema.averages[0].item() < np.float32(0.998)) == lowered


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_setting_of_the_preset_is_the_published_one_or_differs_for_a_reason(name):
    found, told = settings(name), published(name)
    assert found.keys() == told.keys() | DIFFERENT.keys() | set(LATER), "a key that is compared with nothing"
    assert {key: found[key] for key in told} == told
    usual = settings_of(VariantConfig())
    assert [key for key in LATER if found[key] != usual[key]] == []


def test_their_sizes_and_betas():
    """35.7 M parameters (Ho et al. 2020, appendix B); 50M is in the name of the other checkpoint."""
    models = load_params(PARAMS).models
    kind = codec_for("images", (32, 32, 3), None, None)
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in build_network(models[name], kind).parameters())
            for name in ("ddpm-cifar10", "improved-ddpm-cifar10")
        }
    assert sizes == {"ddpm-cifar10": 35_746_307, "improved-ddpm-cifar10": 52_546_438}
    betas = Schedule.of(models["ddpm-cifar10"].process.model_dump()).betas
    assert (betas[0], betas[-1]) == (pytest.approx(1e-4), pytest.approx(0.02))


@pytest.mark.parametrize(
    ("side", "classes", "size", "flags"),
    [
        (64, 1000, 295_904_454, {}),
        (128, 1000, 421_529_606, {"width": 256, "blocks": 2, "multipliers": (1, 1, 2, 3, 4), "heads": 4}),
        (256, 1000, 553_838_086, {"width": 256, "blocks": 2, "multipliers": (1, 1, 2, 2, 4, 4)}),
        (256, None, 552_814_086, {"width": 256, "blocks": 2, "multipliers": (1, 1, 2, 2, 4, 4)}),
    ],
)
def test_the_sizes_of_adm(side, classes, size, flags):
    """Of guided-diffusion's own networks, made by the flags of its README. That of 128×128 has heads by number."""
    if "heads" in flags:
        flags = {**flags, "head_channels": None}
    preset = load_params(PARAMS).models["adm-conditional"]
    config = preset.model_copy(update={"network": preset.network.model_copy(update=flags)})
    columns = [LabelColumn(tuple(map(str, range(classes))))] if classes else []
    with torch.device("meta"):
        network = build_network(config, codec_for("images", (side, side, 3), None, None), columns=columns)
    assert sum(p.numel() for p in network.parameters()) == size


def test_all_published_training_images_are_trained_on():
    assert load_params(PARAMS).data.validation_fraction is None
