"""params.yaml, `models.V.network`: the architecture."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from ddpm.config.base import Bool, Float, Incidental, Int, Later, Positive, Section, _no_switch


def _float(value: Any) -> Any:
    """A whole number as a float."""
    return float(value) if type(value) is int else value


class NetworkConfig(Section):
    """The U-Net: Ho et al. 2020 (§4, appendix B), or by its options improved DDPM's, ADM's and latent diffusion's."""

    kind: Literal["unet"] = Field("unet", description="the architecture")
    width: Positive = Field(128, description="channels of the first level")
    multipliers: tuple[Positive, ...] = Field((1, 2, 2, 2), min_length=1, description="channels / width, a level each")
    blocks: Positive = Field(2, description="residual blocks a level")
    attention_resolutions: tuple[Positive, ...] = Field((16,), description="sides, in pixels, that get attention")
    middle_attention: Bool = Field(True, description="attention between the two blocks at the bottom too")
    heads: Positive = Field(1, description="attention heads; must divide the channels where there is attention")
    head_channels: Positive | None = Field(None, description="instead of heads: channels a head")
    attention: Literal["plain", "transformer"] = Field(
        "plain",
        description="plain: self-attention, to whose keys and values those of a caption's tokens are added (GLIDE); "
        "transformer: blocks of self-attention, attention to the tokens and a feed-forward layer (latent diffusion)",
    )
    transformer_depth: Int = Field(1, gt=0, le=64, description="of attention: transformer, blocks of each")
    transformer_projection: Literal["conv", "linear"] = Field(
        "conv",
        description="of attention: transformer, into and out of its blocks; the same function, with weights as Stable "
        "Diffusion 1 (conv) or 2 (linear) has them",
    )
    groups: Positive = Field(32, description="groups of every GroupNorm; must divide every level's channels")
    norm_epsilon: Float = Field(
        1e-5, gt=0, lt=1, description="of every GroupNorm; before a transformer it is always 1e-6"
    )
    dropout: Float = Field(0.1, ge=0, lt=1, description="of every residual block")
    scale_shift: Bool = Field(False, description="AdaGN: time scales and shifts each block's norm; else it is added")
    resample: Literal["conv", "plain", "residual"] = Field(
        "conv", description="between levels; plain: pooling and nearest neighbour; residual: blocks that do so (BigGAN)"
    )
    downsample_padding: Literal["symmetric", "asymmetric"] = Field(
        "symmetric", description="of resample: conv. asymmetric: at each side's end alone, as TensorFlow does"
    )
    rescale_residuals: Bool = Field(False, description="by 1/sqrt(2) every sum of a block's input and output")
    frequency_shift: Annotated[Literal[0, 1], BeforeValidator(_no_switch)] = Field(
        1, description="of the timestep embedding; 1: Ho's, 0: improved DDPM's, ADM's"
    )
    timestep_scale: Float = Field(
        1.0, gt=0, description="of t before it is embedded; 1000/T: improved-diffusion's code"
    )
    time_embedding: Later[Literal["sinusoidal", "fourier"]] = Field(
        "sinusoidal",
        description="sinusoidal: of t; fourier: of ln t, at random frequencies that are not trained (NCSN++), for "
        "process.time: sigma",
    )
    input_range: Later[Literal["symmetric", "unit"]] = Field(
        "symmetric",
        description="what the first convolution sees; symmetric: x, of data in [-1, 1]; unit: (x + 1) / 2, as score "
        "models of data in [0, 1] were trained",
    )
    init: Literal["torch", "fan_avg"] = Field(
        "torch",
        description="of convolutions and linear layers; torch: its defaults, as improved DDPM and ADM; fan_avg: Ho's, "
        "whose weights are larger by sqrt(3) where inputs and outputs are as many, and whose biases are 0",
    )
    checkpointing: Incidental[Bool] = Field(
        False, description="less memory in training, a third more time; the same weights"
    )

    @model_validator(mode="after")
    def _padding_belongs_to_convolutions(self) -> NetworkConfig:
        if self.downsample_padding != "symmetric" and self.resample != "conv":
            raise ValueError(f"downsample_padding is of resample: conv, found resample: {self.resample}")
        return self

    @model_validator(mode="after")
    def _depth_belongs_to_transformers(self) -> NetworkConfig:
        for key in ("transformer_depth", "transformer_projection"):
            if self.attention != "transformer" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is of attention: transformer, found attention: {self.attention}")
        return self


class LinearAttentionConfig(Section):
    """The U-Net with linear attention, of images and of sequences (denoising_diffusion_pytorch's Unet and Unet1D)."""

    kind: Literal["linear-attention"]
    width: Int = Field(64, ge=4, description="channels of the first convolution, even")
    multipliers: tuple[Positive, ...] = Field((1, 2, 4, 8), min_length=1, description="channels / width, a level each")
    heads: Positive = Field(4, description="of every attention")
    head_width: Positive = Field(32, description="channels of a head")
    memory: Int = Field(0, ge=0, description="learned keys and values in every attention")
    full_attention: tuple[Annotated[Int, Field(ge=0)], ...] = Field(
        (), description="levels, from 0, with softmax instead of linear attention, beside the middle"
    )
    downsample: Literal["conv", "unshuffle"] = Field(
        "conv", description="conv: kernel 4, stride 2; unshuffle, of images: 2x2 squares into the channels"
    )
    vector: Literal["add", "concatenate"] = Field(
        "add", description="how the class joins the embedded time; concatenate: each block has weights for both"
    )
    dropout: Float = Field(0.0, ge=0, lt=1)


class MLPConfig(Section):
    """The multilayer perceptron for points."""

    kind: Literal["mlp"]
    width: Positive = Field(128, description="of every layer, even")
    layers: Positive = Field(4, description="residual layers")
    dropout: Float = Field(0.0, ge=0, lt=1)


class PriorConfig(Section):
    """The prior of DALL-E 2: a causal transformer that draws image embeddings (Ramesh et al. 2022, §2.2)."""

    kind: Literal["prior"]
    width: Positive = Field(2048, description="of every position, even")
    layers: Positive = Field(20, description="transformer blocks")
    heads: Positive = Field(32, description="of each attention; must divide the width")
    norm_in: Bool = Field(False, description="a LayerNorm before the first block")
    dropout: Float = Field(0.0, ge=0, lt=1)


class VAEConfig(Section):
    """The variational autoencoder (Kingma & Welling 2014), the baseline beside the diffusion models."""

    kind: Literal["vae"]
    latent: Positive = Field(16, description="numbers of z, at most those of a datum")
    hidden: tuple[Positive, ...] = Field(
        (512, 256), min_length=1, description="widths of the encoder's layers; the decoder's are the same in reverse"
    )


class AutoencoderConfig(Section):
    """The autoencoder whose latents other models learn: images to a smaller side and back (Rombach et al. 2022). With
    the defaults it is KL-f8."""

    kind: Literal["autoencoder"]
    width: Positive = Field(128, description="a level has width x multiplier channels")
    multipliers: tuple[Positive, ...] = Field(
        (1, 2, 4, 4), min_length=1, description="channels / width, a level each; the latents' side is halved between"
    )
    blocks: Positive = Field(2, description="residual blocks a level of the encoder; the decoder has one more")
    latent_channels: Positive = Field(4, description="channels of the latents")
    middle_attention: Bool = Field(True, description="attention between the two blocks at the bottom")
    groups: Positive = Field(32, description="groups of every GroupNorm; must divide every level's channels")
    norm_epsilon: Float = Field(1e-6, gt=0, lt=1, description="of every GroupNorm")
    dropout: Float = Field(0.0, ge=0, lt=1)


class ClassifierConfig(Section):
    """The classifier of noisy images that guides other models: ADM's U-Net down to its bottom, and attention pooling
    (Dhariwal & Nichol 2021, table 12)."""

    kind: Literal["classifier"]
    width: Positive = Field(128, description="a level has width x multiplier channels")
    multipliers: tuple[Annotated[Float, BeforeValidator(_float), Field(gt=0)], ...] = Field(
        (1.0, 2.0, 3.0, 4.0), min_length=1, description="channels / width, a level each"
    )
    blocks: Positive = Field(2, description="residual blocks a level")
    attention_resolutions: tuple[Positive, ...] = Field((32, 16, 8), description="sides, in pixels, that get attention")
    head_channels: Positive = Field(64, description="channels of an attention head, of the pooling too")
    groups: Positive = Field(32, description="groups of every GroupNorm; must divide every level's channels")
    norm_epsilon: Float = Field(1e-5, gt=0, lt=1, description="of every GroupNorm")
    dropout: Float = Field(0.0, ge=0, lt=1)
    scale_shift: Bool = Field(True, description="AdaGN: time scales and shifts each block's norm; else it is added")
    resample: Literal["conv", "plain", "residual"] = Field(
        "residual", description="between levels; plain: average pooling; residual: blocks that do so (BigGAN)"
    )
    frequency_shift: Annotated[Literal[0, 1], BeforeValidator(_no_switch)] = Field(
        0, description="of the timestep embedding; 1: Ho's, 0: improved DDPM's, ADM's"
    )
    timestep_scale: Float = Field(1.0, gt=0, description="of t before it is embedded")
    checkpointing: Incidental[Bool] = Field(
        False, description="less memory in training, a third more time; the same weights"
    )

    @model_validator(mode="after")
    def _channels_are_whole(self) -> ClassifierConfig:
        for multiplier in self.multipliers:
            if self.width * multiplier % 1:
                raise ValueError(f"width {self.width} x multiplier {multiplier:g} is not a whole number of channels")
        return self


class CLIPConfig(ClassifierConfig):
    """CLIP (Radford et al. 2021): an image tower, which is the classifier of noisy images with an embedding in place of
    the classes, beside the text encoder that condition.prompt describes."""

    kind: Literal["clip"]  # type: ignore[assignment]
    embedding: Positive = Field(512, description="numbers of an embedding, of an image as of a text")


NETWORKS = {
    "unet": NetworkConfig,
    "linear-attention": LinearAttentionConfig,
    "mlp": MLPConfig,
    "prior": PriorConfig,
    "vae": VAEConfig,
    "autoencoder": AutoencoderConfig,
    "classifier": ClassifierConfig,
    "clip": CLIPConfig,
}


def _network_tag(value: Any) -> str | None:
    """Which of the networks is meant: the U-Net unless `kind` says otherwise."""
    kind = value.get("kind", "unet") if isinstance(value, dict) else getattr(value, "kind", None)
    return f"<{kind}>" if isinstance(kind, str) and kind in NETWORKS else None


AnyNetworkConfig = Annotated[
    Annotated[NetworkConfig, Tag("<unet>")]
    | Annotated[LinearAttentionConfig, Tag("<linear-attention>")]
    | Annotated[MLPConfig, Tag("<mlp>")]
    | Annotated[PriorConfig, Tag("<prior>")]
    | Annotated[VAEConfig, Tag("<vae>")]
    | Annotated[AutoencoderConfig, Tag("<autoencoder>")]
    | Annotated[ClassifierConfig, Tag("<classifier>")]
    | Annotated[CLIPConfig, Tag("<clip>")],
    Discriminator(
        _network_tag,
        custom_error_type="network_kind",
        custom_error_message=f"expected `kind` to be one of {', '.join(NETWORKS)}",
    ),
]
