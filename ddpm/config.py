"""params.yaml as typed models: every knob, its range and its unit; unknown keys are refused.

The defaults are those of Ho et al. 2020 for CIFAR-10, so that a variant in params.yaml states only what it changes.
They differ from the published code in norm_epsilon, downsample_padding, init, horizontal_flip and ema_warmup, which
the preset ddpm-cifar10 sets as published.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from ddpm.errors import UserError, brief, first_complaint, listed
from ddpm.yaml_file import aliases, read_yaml

PARAMS_FILE = Path("params.yaml")
DVC_STAGE = "DVC_STAGE"  # DVC sets it in the environment of a stage's command

# What a C int holds; what a user writes beyond it is a slip.
LARGEST = 2**31 - 1
Int = Annotated[int, Field(le=LARGEST)]
Positive = Annotated[int, Field(gt=0, le=LARGEST)]
MOST_TIMESTEPS = 100_000  # of a process; the tables of every one are kept
# A name becomes a path, a word of a command and a part of a DVC key.
VARIANT_NAME = r"^[a-z0-9][a-z0-9_-]*$"
DATA_NAME = r"^[a-z0-9][a-z0-9._-]*$"
VariantName = Annotated[str, Field(pattern=VARIANT_NAME)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
ScheduleName = Literal["linear", "cosine", "scaled_linear", "sigmoid", "explicit"]
Prediction = Literal["epsilon", "x0", "v"]
Variance = Literal["fixed_large", "fixed_small", "learned_range"]
Switch = bool | Literal["auto"]
SpacingName = Literal["leading", "trailing", "linspace", "even", "quadratic"]
Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")
INCIDENTAL = "incidental"
# A knob of speed, memory, logging or recovery. It decides nothing about the weights beyond the rounding of
# floating-point sums, so a training continues with another value of it.
Incidental = Annotated[Value, INCIDENTAL]


class Section(BaseModel):
    """A block of params.yaml: frozen, and strict about keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _usable_path(text: str) -> str:
    if "\0" in text:
        raise ValueError("a path has no NUL character")
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"there is no user {Path(text).parts[0][1:]!r}, found {brief(text)}") from None
    return text


FilePath = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_usable_path)]


def decisive(section: Section) -> Iterator[tuple[str, Any]]:
    """The keys of a section that decide the weights, with their values as JSON has them."""
    for key, value in section.model_dump(mode="json").items():
        if INCIDENTAL not in type(section).model_fields[key].metadata:
            yield key, value


class DataConfig(Section):
    """Where the raw bytes come from and what `ddpm prepare` makes of them."""

    source: Literal["digits", "mnist", "fashion-mnist", "cifar10", "celeba", "folder", "swiss-roll", "sequences"] = (
        Field("digits", description="where the raw bytes come from")
    )
    path: FilePath | None = Field(
        None,
        description="for `folder`: a directory of images, class subfolders optional; for `sequences`: FILE.npy, "
        "[N, channels, length]",
    )
    name: str | None = Field(
        None,
        pattern=DATA_NAME,
        description="the data set's name, and the model's: ddpm-<name>. Default: the source's, or the folder's",
    )
    image_size: Positive | None = Field(
        None, description="pixels a side: resize the shorter side to it, crop the centre. null: sizes must agree"
    )
    channels: Literal[1, 3] | None = Field(None, description="1 grey, 3 RGB. null: all images must have the same")
    subfolders: Literal["classes", "nested-classes", "ignored"] = Field(
        "classes",
        description="of `folder`. classes: one level of them, each a class; nested-classes: the first level is the "
        "class, images lie at any depth below; ignored: images at any depth, without classes",
    )
    levels: Positive | tuple[float, float] | None = Field(
        None,
        description="of `folder`: the stored value that is white, such as 4095 for 12 bits in 16-bit files, or "
        "[black, white]. null: the range of the files' format",
    )
    validation_fraction: Fraction | None = Field(
        None,
        description="share of each class kept for validation. null: the images that mnist, fashion-mnist, cifar10 and "
        "celeba publish for it, so that all published training images are trained on; of other sources, 0.2",
    )
    skip_bad: bool = Field(False, description="leave unreadable files out and list them in the manifest")
    max_pixels: Positive = Field(50_000_000, description="an image that decodes to more is refused as a bomb")

    @model_validator(mode="after")
    def _folder_needs_a_path(self) -> DataConfig:
        if (self.source in ("folder", "sequences")) != (self.path is not None):
            raise ValueError("`path` goes with `source: folder` and `source: sequences`, and only with them")
        return self

    @model_validator(mode="after")
    def _folder_rules_are_for_folders(self) -> DataConfig:
        for key in ("subfolders", "levels"):
            if self.source != "folder" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"`{key}` is for `source: folder`, found `source: {self.source}`")
        if isinstance(self.levels, tuple) and not (
            all(map(math.isfinite, self.levels)) and self.levels[0] < self.levels[1]
        ):
            raise ValueError(f"`levels` must be [black, white] with black below white, found {list(self.levels)}")
        return self

    @model_validator(mode="after")
    def _image_rules_are_for_images(self) -> DataConfig:
        for key in ("image_size", "channels"):
            if self.source in ("swiss-roll", "sequences") and getattr(self, key) is not None:
                raise ValueError(f"`{key}` is for images, which `source: {self.source}` has none of")
        return self

    @property
    def dataset_name(self) -> str:
        """The name that the registered model carries."""
        if self.name:
            return self.name
        if self.path is None:
            return self.source
        name = Path(self.path).resolve().name.removesuffix(".npy")
        words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
        return "-".join(words) or self.source


class NetworkConfig(Section):
    """The U-Net: Ho et al. 2020 (§4, appendix B), or by its options improved DDPM's and ADM's."""

    kind: Literal["unet"] = Field("unet", description="the architecture")
    width: Positive = Field(128, description="channels of the first level")
    multipliers: tuple[Positive, ...] = Field((1, 2, 2, 2), min_length=1, description="channels / width, a level each")
    blocks: Positive = Field(2, description="residual blocks a level")
    attention_resolutions: tuple[Positive, ...] = Field((16,), description="sides, in pixels, that get attention")
    middle_attention: bool = Field(True, description="attention between the two blocks at the bottom too")
    heads: Positive = Field(1, description="attention heads; must divide the channels where there is attention")
    head_channels: Positive | None = Field(None, description="instead of heads: channels a head")
    groups: Positive = Field(32, description="groups of every GroupNorm; must divide every level's channels")
    norm_epsilon: float = Field(1e-5, gt=0, lt=1, description="of every GroupNorm")
    dropout: float = Field(0.1, ge=0, lt=1)
    scale_shift: bool = Field(False, description="AdaGN: time scales and shifts each block's norm; else it is added")
    resample: Literal["conv", "plain", "residual"] = Field(
        "conv", description="between levels; plain: pooling and nearest neighbour; residual: blocks that do so (BigGAN)"
    )
    downsample_padding: Literal["symmetric", "asymmetric"] = Field(
        "symmetric", description="of resample: conv. asymmetric: at each side's end alone, as TensorFlow does"
    )
    rescale_residuals: bool = Field(False, description="by 1/sqrt(2) every sum of a block's input and output")
    frequency_shift: Literal[0, 1] = Field(
        1, description="of the timestep embedding; 1: Ho's, 0: improved DDPM's, ADM's"
    )
    timestep_scale: float = Field(
        1.0, gt=0, description="of t before it is embedded; 1000/T: improved-diffusion's code"
    )
    init: Literal["torch", "fan_avg"] = Field(
        "torch",
        description="of convolutions and linear layers; torch: its defaults, as improved DDPM and ADM; fan_avg: Ho's, "
        "whose weights are larger by sqrt(3) where inputs and outputs are as many, and whose biases are 0",
    )
    num_classes: Positive | None = Field(None, description="of labels that the network takes; training gives it none")
    checkpointing: Incidental[bool] = Field(
        False, description="less memory in training, a third more time; the same weights"
    )

    @model_validator(mode="after")
    def _padding_belongs_to_convolutions(self) -> NetworkConfig:
        if self.downsample_padding != "symmetric" and self.resample != "conv":
            raise ValueError(f"downsample_padding is of resample: conv, found resample: {self.resample}")
        return self


class LinearAttentionConfig(Section):
    """The U-Net with linear attention, of images and of sequences (denoising_diffusion_pytorch's Unet and Unet1D)."""

    kind: Literal["linear-attention"]
    width: Int = Field(64, ge=4, description="channels of the first convolution, even")
    multipliers: tuple[Positive, ...] = Field((1, 2, 4, 8), min_length=1, description="channels / width, a level each")
    heads: Positive = Field(4, description="of every attention")
    head_width: Positive = Field(32, description="channels of a head")
    memory: Int = Field(0, ge=0, description="learned keys and values in every attention")
    full_attention: tuple[Annotated[int, Field(ge=0, le=LARGEST)], ...] = Field(
        (), description="levels, from 0, with softmax instead of linear attention, beside the middle"
    )
    downsample: Literal["conv", "unshuffle"] = Field(
        "conv", description="conv: kernel 4, stride 2; unshuffle, of images: 2x2 squares into the channels"
    )
    dropout: float = Field(0.0, ge=0, lt=1)


class MLPConfig(Section):
    """The multilayer perceptron for points."""

    kind: Literal["mlp"]
    width: Positive = Field(128, description="of every layer, even")
    layers: Positive = Field(4, description="residual layers")
    dropout: float = Field(0.0, ge=0, lt=1)


class VAEConfig(Section):
    """The variational autoencoder (Kingma & Welling 2014), the baseline beside the diffusion models."""

    kind: Literal["vae"]
    latent: Positive = Field(16, description="numbers of z, at most those of a datum")
    hidden: tuple[Positive, ...] = Field(
        (512, 256), min_length=1, description="widths of the encoder's layers; the decoder's are the same in reverse"
    )


NETWORKS = {"unet": NetworkConfig, "linear-attention": LinearAttentionConfig, "mlp": MLPConfig, "vae": VAEConfig}


def _network_tag(value: Any) -> str | None:
    """Which of the networks is meant: the U-Net unless `kind` says otherwise."""
    kind = value.get("kind", "unet") if isinstance(value, dict) else getattr(value, "kind", None)
    return f"<{kind}>" if isinstance(kind, str) and kind in NETWORKS else None


AnyNetworkConfig = Annotated[
    Annotated[NetworkConfig, Tag("<unet>")]
    | Annotated[LinearAttentionConfig, Tag("<linear-attention>")]
    | Annotated[MLPConfig, Tag("<mlp>")]
    | Annotated[VAEConfig, Tag("<vae>")],
    Discriminator(
        _network_tag,
        custom_error_type="network_kind",
        custom_error_message=f"expected `kind` to be one of {', '.join(NETWORKS)}",
    ),
]


class ProcessConfig(Section):
    """The forward process and what the network is asked to predict of it."""

    timesteps: Positive = Field(1000, le=MOST_TIMESTEPS, description="T, steps of the forward process")
    schedule: ScheduleName = Field("linear", description="of the betas; explicit: those of `betas`")
    betas: tuple[float, ...] | None = Field(None, description="of schedule: explicit, one for each timestep")
    prediction: Prediction = Field("epsilon", description="what the network outputs")
    variance: Variance = Field(
        "fixed_large",
        description="of a reverse step: beta, beta-tilde, or learned_range: the network outputs where between the two",
    )

    @model_validator(mode="after")
    def _explicit_betas_are_a_process(self) -> ProcessConfig:
        if (self.schedule == "explicit") != (self.betas is not None):
            raise ValueError(f"`schedule: explicit` and `betas` go together; found `schedule: {self.schedule}`")
        if self.betas is None:
            return self
        if len(self.betas) != self.timesteps:
            raise ValueError(f"betas has {len(self.betas)} numbers for {self.timesteps} timesteps")
        for number, beta in enumerate(self.betas):
            if not (0 < beta < 1 or (beta == 1 and number == self.timesteps - 1)):
                raise ValueError(f"betas must be inside (0, 1), only the last may be 1; betas[{number}] is {beta}")
        if self.betas[-1] == 1 and self.prediction == "epsilon":
            raise ValueError(
                "the last beta is 1, which leaves only noise: prediction must then be x0 or v, not epsilon"
            )
        return self


class ObjectiveConfig(Section):
    """What training minimises, and which timesteps it looks at."""

    loss: Literal["simple", "vlb", "hybrid", "elbo"] = Field(
        "simple",
        description="simple: squared error; vlb: the variational bound; hybrid: simple, and 0.001 vlb for the variance;"
        " elbo: the bound of network.kind vae",
    )
    reconstruction_weight: float = Field(
        1.0, gt=0, description="of the squared error beside the KL in elbo: 1/(2 variance) of a pixel given z"
    )
    weighting: Literal["none", "min_snr"] = Field("none", description="of the squared error over the timesteps")
    gamma: float = Field(5.0, gt=0, description="the SNR above which min_snr weighs all alike")
    timestep_sampler: Literal["uniform", "importance"] = Field(
        "uniform", description="importance: by the size of each timestep's latest losses, as the vlb needs it"
    )

    @model_validator(mode="after")
    def _weighting_has_an_error_to_weigh(self) -> ObjectiveConfig:
        if self.loss in ("vlb", "elbo") and self.weighting != "none":
            raise ValueError(
                f"`weighting: {self.weighting}` is over the timesteps of a squared error, which `loss: {self.loss}` "
                "has none of"
            )
        return self


def _positive_auto_or_none(value: Any) -> Any:
    if value is None or value == "auto" or (type(value) is int and 0 < value <= LARGEST):
        return value
    raise ValueError(f"expected a number above 0, auto or null, found {brief(value)}")


# Of a union's members pydantic complains one by one.
MicroBatchSize = Annotated[Positive | Literal["auto"] | None, BeforeValidator(_positive_auto_or_none)]


class TrainingConfig(Section):
    """Algorithm 1 of Ho et al. 2020 and its optimiser."""

    steps: Positive = Field(800_000, description="optimiser steps")
    batch_size: Positive = Field(128, description="images a step, of all devices together")
    micro_batch_size: Incidental[MicroBatchSize] = Field(
        None, description="images at once on a device, to save memory; auto: halved whenever it runs out; null: all"
    )
    devices: Incidental[Positive] = Field(
        1, description="processes that train together on this machine: a GPU each, or the CPU"
    )
    learning_rate: float = Field(2e-4, gt=0, description="of Adam, at its peak")
    warmup_steps: Int = Field(5000, ge=0, description="linear rise of the learning rate")
    decay: Literal["constant", "cosine"] = Field("constant", description="learning rate after the rise")
    grad_clip: float | None = Field(1.0, gt=0, description="largest gradient norm; null: gradients are not clipped")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="of the averaged weights, which are the model")
    ema_warmup: bool = Field(
        True,
        description="decay at step k: min(ema_decay, (1+k)/(10+k)); false: ema_decay from the start, as in the papers",
    )
    horizontal_flip: bool = Field(False, description="mirror each image with probability 1/2")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="autocast of the forward pass. auto: bf16 where the GPU has it, else fp32"
    )
    checkpoint_every: Incidental[Positive] = Field(1000, description="steps between resumable states")
    rewind: Incidental[Int] = Field(
        0, ge=0, description="times to go back to the last checkpoint, and on with other noise, if the loss is NaN"
    )
    log_every: Incidental[Positive] = Field(100, description="steps a point of the loss curve averages over")
    sample_every: Incidental[Int] = Field(
        0, ge=0, description="steps between samples of fixed noise, seen in MLflow; 0: none"
    )
    compile: Incidental[Switch] = Field(
        "auto", description="torch.compile of the blocks, minutes before the first step. auto: on a GPU"
    )
    cuda_graphs: Incidental[bool] = Field(
        False, description="replay the network's kernels from a recording; needs CUDA"
    )
    prefetch: Incidental[Annotated[int, Field(ge=0, le=LARGEST)] | Literal["auto"]] = Field(
        "auto", description="batches gathered ahead by a thread; the same ones. auto: 2 for a GPU, else 0"
    )

    @model_validator(mode="after")
    def _devices_share_a_batch(self) -> TrainingConfig:
        if self.devices > self.batch_size:
            raise ValueError(f"a batch_size of {self.batch_size} cannot be shared by {self.devices} devices")
        if self.devices > 1 and self.micro_batch_size == "auto":
            raise ValueError("micro_batch_size: auto is for one device; name a number")
        if self.cuda_graphs and not self._parts_are_of_one_size():
            raise ValueError("cuda_graphs records one size: devices and micro_batch_size must divide batch_size")
        return self

    def _parts_are_of_one_size(self) -> bool:
        if self.micro_batch_size == "auto" or self.batch_size % self.devices:
            return False
        return self.batch_size // self.devices % (self.micro_batch_size or 1) == 0


def _name_or_counts(value: Any) -> Any:
    if value in get_args(SpacingName) or (isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", value)):
        return value
    names = ", ".join(get_args(SpacingName))
    raise ValueError(f"expected one of {names}, or counts such as 10,10,20, found {value!r}")


Spacing = Annotated[SpacingName | str, BeforeValidator(_name_or_counts)]


class SamplingConfig(Section):
    """The sampling plan that evaluation and deployment use unless told otherwise."""

    sampler: Literal["ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "unipc", "unipc_bh1"] = Field(
        "ddim",
        description="ancestral is DDPM's own; dpmpp_2m, dpmpp_2m_sde, dpmpp_2s (DPM-Solver++), unipc (with bh2) and "
        "unipc_bh1 need few steps",
    )
    steps: Positive = Field(50, description="evaluations of the network an image")
    variance: Variance | None = Field(
        None, description="of the ancestral sampler; null: the process's. fixed_large in few steps is DDIM's sigma-hat"
    )
    eta: float = Field(0.0, ge=0, le=1, description="DDIM's noise: 0 deterministic, 1 the DDPM posterior")
    spacing: Spacing = Field(
        "trailing",
        description="which timesteps are visited; even: improved DDPM's, also with counts of equal sections such as "
        "10,10,20; quadratic: more of those with little noise",
    )
    clip: bool = Field(True, description="clip the predicted x0 to [-1, 1]")
    dynamic_threshold: float | None = Field(
        None, gt=0, le=1, description="instead of clip: scale x0 down by this quantile of its magnitudes, such as 0.995"
    )

    @model_validator(mode="after")
    def _counts_add_up(self) -> SamplingConfig:
        if self.spacing not in get_args(SpacingName):
            counted = sum(map(int, self.spacing.split(",")))
            if counted != self.steps:
                raise ValueError(f"spacing {self.spacing} has {counted} steps, but steps is {self.steps}")
        return self


class ModelConfig(Section):
    """What a model is made of: a composition of parts. How it was trained is None where nobody knows."""

    network: AnyNetworkConfig = NetworkConfig()
    process: ProcessConfig = ProcessConfig()
    objective: ObjectiveConfig | None = None
    training: TrainingConfig | None = None
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def _steps_exist(self) -> Self:
        if self.sampling.steps > self.process.timesteps:
            raise ValueError(
                f"sampling.steps is {self.sampling.steps}, but the process has only {self.process.timesteps} timesteps"
            )
        return self

    @model_validator(mode="after")
    def _a_learned_variance_is_learned(self) -> Self:
        learned, loss = self.process.variance == "learned_range", self.objective and self.objective.loss
        if learned and loss in ("simple", "elbo"):
            raise ValueError(f"process.variance is learned_range, which objective.loss {loss} does not train")
        if not learned and loss == "hybrid":
            raise ValueError("objective.loss hybrid trains a variance: set process.variance to learned_range")
        if self.sampling.variance == "learned_range" and not learned:
            raise ValueError(f"sampling.variance is learned_range, but process.variance is {self.process.variance}")
        return self

    @model_validator(mode="after")
    def _a_vae_decodes_in_one_step(self) -> Self:
        kind, loss, process = self.network.kind, self.objective and self.objective.loss, self.process
        if loss is not None and (kind == "vae") != (loss == "elbo"):
            raise ValueError(f"network.kind vae and objective.loss elbo go together; found {kind} and {loss}")
        if kind == "vae" and (process.timesteps, process.prediction) != (1, "x0"):
            raise ValueError(
                "network.kind vae needs process.timesteps 1 and process.prediction x0; "
                f"found {process.timesteps} and {process.prediction}"
            )
        return self


class VariantConfig(ModelConfig):
    """A model of params.yaml, which also says how to train it."""

    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()


class ExtractorConfig(Section):
    """The network whose features FID and IS are computed in."""

    kind: Literal["auto", "classifier", "rotation", "inception"] = Field(
        "auto",
        description="classifier: a small CNN fitted to the labels; rotation: the same fitted to tell rotations apart, "
        "for data without labels; inception: InceptionV3 as the papers use it; auto: inception for colour images when "
        "its weights are at hand, else classifier when there are labels, else rotation",
    )
    weights: FilePath | None = Field(None, description="InceptionV3 weights file, in torch-fidelity's format")
    steps: Positive = Field(600, description="optimiser steps of the small CNN")


# What `evaluation.protocol` stands for, where it differs from the defaults. inception-50k is the papers' on CIFAR-10,
# whose reference is the 50,000 published training images.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "digits-2k": {},
    "inception-50k": {
        "features": "inception",
        "reference": "published",
        "samples": 50_000,
        "resamples": 50,
        "nll_samples": 1000,
        "nll_timesteps": None,
    },
    "quick": {"samples": 256, "splits": 2, "resamples": 50, "nll_samples": 0},
}


class EvaluationConfig(Section):
    """How a model is measured. All that decides a figure enters the protocol that each figure carries."""

    protocol: Literal["digits-2k", "inception-50k", "quick"] = Field(
        "digits-2k", description="values of the keys below, where they are not written"
    )
    features: Literal["any", "inception"] = Field(
        "any", description="any: of the extractor there is; inception: of InceptionV3 or none"
    )
    reference: Literal["train", "all", "published"] = Field(
        "train",
        description="real images that generated ones are held against: the training split, both splits, or the images "
        "published for training: train where validation has its own published images, else all",
    )
    samples: Int = Field(2000, ge=4, description="images drawn to be measured")
    sampling: SamplingConfig | None = Field(
        None, description="a plan that every model is measured under; null: each under its own"
    )
    batch_size: Positive = Field(500, description="images a batch; does not change the samples")
    devices: Positive = Field(1, description="processes on this machine that draw the samples of `ddpm evaluate`")
    splits: Positive = Field(
        10, description="splits of the Inception Score, at most; each needs two samples and two validation images"
    )
    resamples: Int = Field(200, ge=2, description="of the bootstrap that gives FID and IS their intervals")
    nll_samples: Int = Field(
        40,
        ge=0,
        description="images of each split whose likelihood is bounded, a network evaluation a timestep; 0: none",
    )
    nll_timesteps: Annotated[Int, Field(ge=4)] | None = Field(
        100,
        description="timesteps that the bound is estimated from, with a standard error; null: all, the exact bound",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, raw: Any) -> Any:
        """Put the protocol's values under the keys that are given."""
        name = raw.get("protocol") if isinstance(raw, dict) else None
        return {**PROTOCOLS[name], **raw} if isinstance(name, str) and name in PROTOCOLS else raw


class ExportConfig(Section):
    """The ONNX files and the check that they are the trained model."""

    parity_samples: Positive = Field(16, description="images drawn by both sides")
    parity_steps: Positive = Field(50, description="steps of the run that both sides make on the same noise")
    parity_tolerance: float = Field(1e-3, gt=0, description="largest absolute difference allowed, in [-1, 1]")
    fp16: bool = Field(False, description="write both files in fp16 too, for GPUs: half the bytes")
    fp16_tolerance: float = Field(5e-2, gt=0, description="as parity_tolerance, of the fp16 files")


Tolerance = Annotated[float, Field(ge=0)]


class Tolerances(Section):
    """How much worse than the champion a new one may be, as a share of the champion's figure; null: at will."""

    fid: Tolerance | None = Field(0.05, description="higher by, though the intervals overlap")
    wasserstein: Tolerance | None = Field(0.05, description="the same")
    inception_score: Tolerance | None = Field(0.1, description="lower by")
    kid: Tolerance | None = Field(0.25, description="higher by, besides the deviations of both")
    precision: Tolerance | None = Field(0.1, description="lower by")
    recall: Tolerance | None = Field(0.1, description="lower by")
    mmd: Tolerance | None = Field(None, description="higher by")
    nll_validation: Tolerance | None = Field(0.05, description="higher by")
    gflops_per_image: Tolerance | None = Field(None, description="higher by")


class PromotionConfig(Section):
    """When a new version of a model becomes champion."""

    gain: float = Field(
        0.01,
        ge=0,
        description="where the intervals of the FID overlap: the share by which the NLL or the cost of an image must "
        "be lower, and neither may be higher",
    )
    tolerances: Tolerances = Tolerances()


class Params(Section):
    """The whole of params.yaml."""

    seed: int = Field(0, ge=0, lt=2**32, description="of the split, the initial weights, the batches and the samples")
    data: DataConfig = DataConfig()
    extractor: ExtractorConfig = ExtractorConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    export: ExportConfig = ExportConfig()
    promotion: PromotionConfig = PromotionConfig()
    variants: tuple[str, ...] = Field(("ddpm",), min_length=1, description="the models the pipeline builds")
    models: dict[VariantName, VariantConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _variants_are_models(self) -> Params:
        if len(set(self.variants)) < len(self.variants):
            raise ValueError(f"`variants` names a model twice: {listed(self.variants)}")
        for name in self.variants:
            if name not in self.models:
                raise ValueError(f"`variants` names {brief(name)}, but `models` has only: {listed(self.models)}")
        return self

    @model_validator(mode="after")
    def _the_features_asked_for_are_made(self) -> Params:
        if self.evaluation.features == "inception" and self.extractor.kind != "inception":
            raise ValueError(
                f"evaluation.protocol {self.evaluation.protocol} measures in InceptionV3's features, but "
                f"extractor.kind is {self.extractor.kind}: set it to inception"
            )
        return self

    @property
    def model_name(self) -> str:
        """The registered model's."""
        return f"ddpm-{self.data.dataset_name}"

    def variant(self, name: str) -> VariantConfig:
        """The named model's configuration, or a UserError that lists those there are."""
        if name not in self.models:
            raise UserError(f"there is no model {name!r} in {PARAMS_FILE}; it has: {listed(self.models)}")
        return self.models[name]


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and validate params.yaml.

    Raises:
        UserError: the file is missing or not YAML, or a key is unknown, missing or out of its range; in a stage that
            DVC runs, also if a section that it tracks is not written.
    """
    try:
        raw = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file here ({Path.cwd()}); run ddpm in the project's folder") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected keys such as `data:` and `models:`, found {type(raw).__name__}")
    params = validate(Params, raw, str(path))
    if shared := aliases(path):
        print(
            f"warning: {path}: `*{shared[0]}` is a YAML alias. `dvc exp run -S` changes a key in every place that "
            "shares it: write the values out",
            file=sys.stderr,
        )
    if DVC_STAGE in os.environ:
        check_sections(params, path)
    return params


def check_sections(params: Params, path: Path = PARAMS_FILE) -> None:
    """Check that each model that the pipeline builds has every section. DVC tracks sections one by one and stops at
    one that is not written; without DVC they may be left out.

    Raises:
        UserError: a section is missing; it names all of them.
    """
    for name in params.variants:
        missing = [key for key in VariantConfig.model_fields if key not in params.models[name].model_fields_set]
        if missing:
            lines = ", ".join(f"`{section}: {{}}`" for section in missing)
            raise UserError(f"{path}: DVC needs every section of a model: add {lines} under models.{name}")


def validate(model: type[Model], raw: Any, where: str) -> Model:
    """Validate `raw`, turning pydantic's report into one line about the first wrong key."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: {first_complaint(error.errors(include_url=False))}") from None
