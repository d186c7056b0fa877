"""params.yaml, `models.V.condition`: what the network is conditioned on."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ddpm.config.base import Bool, FilePath, Float, Int, Later, Positive, Section

MOST_TOKENS = 4096  # of a caption
LEAST_PAIRS = 513  # each byte within a word and at its end, and the padding


class LabelConfig(Section):
    """The class of a datum."""

    drop: Float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the training data whose label is replaced by the null class, for guidance; 0: none",
    )
    perceptron: Bool = Field(
        False, description="two layers between the class's embedding and the network, as denoising_diffusion_pytorch"
    )


class PromptConfig(Section):
    """The caption of a datum, by a text encoder: GLIDE's (Nichol et al. 2022, §4.1) or CLIP's (Radford et al. 2021)."""

    tokenizer: Literal["words", "bpe"] = Field(
        "words",
        description="what makes tokens of a caption; words: those of the training captions; bpe: parts of words, as "
        "CLIP's and GLIDE's, with which any text can be written",
    )
    length: Int = Field(
        16,
        gt=0,
        le=MOST_TOKENS,
        description="tokens of a caption; what is longer is cut off. GLIDE: 128; Stable Diffusion: 75, which encoder: "
        "clip puts between two marks",
    )
    drop: Float = Field(
        0.2,
        ge=0,
        lt=1,
        description="share of the training data whose caption is replaced by the empty one, for guidance; 0: none",
    )
    minimum_count: Positive = Field(
        1,
        description="of words: how often a word must occur in the training captions to be one; others are all the same",
    )
    vocabulary_size: Int = Field(
        4096, ge=LEAST_PAIRS, description="of bpe: how many tokens are learned from the training captions at most"
    )
    vocabulary: FilePath | None = Field(
        None,
        description="of bpe: a directory with CLIP's vocab.json and merges.txt, in place of what would be learned. DVC "
        "does not track it",
    )
    encoder: Literal["glide", "clip"] = Field(
        "glide",
        description="glide: every token attends to all, and padding has embeddings of its own; clip: a token attends "
        "to those before it, and the caption is marked at its start and its end",
    )
    width: Positive = Field(512, description="of the text encoder")
    layers: Positive = Field(16, description="of the text encoder")
    heads: Positive = Field(8, description="of each attention of the text encoder; must divide its width")
    activation: Literal["gelu", "quick_gelu"] = Field(
        "gelu", description="in the text encoder's blocks; quick_gelu: OpenAI's CLIP, and so Stable Diffusion 1's"
    )
    pooled: Bool = Field(
        True,
        description="whether a projection of the encoder's last position joins the timestep's embedding (GLIDE: yes; "
        "Stable Diffusion: no)",
    )
    filler: Int | None = Field(
        None, ge=0, description="of encoder: clip, the id after a caption's end; null: the end's. Stable Diffusion 2: 0"
    )
    weights: FilePath | None = Field(
        None,
        description="of encoder: clip, a directory of a CLIPTextModel (transformers) whose weights it starts with. DVC "
        "does not track it",
    )
    frozen: Bool = Field(False, description="whether the text encoder stays as it is; then it needs weights")
    of: Later[FilePath | None] = Field(
        None,
        description="a CLIP, a model directory such as models/clip, whose tokenizer and text encoder the model has; "
        "they stay as they are, and the keys above that describe them are its. The text's embedding joins the "
        "condition",
    )
    embedding: Later[Positive | None] = Field(
        None,
        description="numbers of the text's embedding, a projection of the position that stands for the whole text; it "
        "takes the place of the last position in `pooled`. null: none, or with `of` that CLIP's",
    )
    masked: Later[Bool] = Field(
        False, description="whether the network cannot see the padding after a caption, as in DALL-E 2's prior"
    )

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> PromptConfig:
        if self.width % self.heads:
            raise ValueError(f"heads is {self.heads}, which does not divide the width {self.width}")
        return self

    @model_validator(mode="after")
    def _keys_are_of_the_tokenizer_or_the_encoder(self) -> PromptConfig:
        for key, choice, wanted in (
            ("minimum_count", "tokenizer", "words"),
            ("vocabulary_size", "tokenizer", "bpe"),
            ("vocabulary", "tokenizer", "bpe"),
            ("filler", "encoder", "clip"),
            ("weights", "encoder", "clip"),
        ):
            found = getattr(self, choice)
            if found != wanted and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"`{key}` is for `{choice}: {wanted}`, found `{choice}: {found}`")
        return self


# Keys of `prompt` that describe its tokenizer and its text encoder.
OF_TEXT = (
    *("tokenizer", "length", "minimum_count", "vocabulary_size", "vocabulary"),
    *("encoder", "width", "layers", "heads", "activation", "filler"),
)


class EmbeddingConfig(Section):
    """The embedding of the image by a CLIP, of a decoder (Ramesh et al. 2022, DALL-E 2, §2.1)."""

    encoder: FilePath = Field(
        description="the CLIP that makes them, a model directory such as models/clip; `ddpm embed` makes those of the "
        "prepared images with it. It becomes a part of the model"
    )
    drop: Float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the training data whose embedding is replaced by zeros, for guidance; 0: none",
    )
    tokens: Positive = Field(4, le=64, description="tokens that are made of it, beside those of a prompt")
    width: Positive = Field(512, description="of these tokens; with a prompt the width of its encoder")


class LowConfig(Section):
    """The image in fewer pixels, of an upsampler. Training derives it from the image."""

    side: Positive = Field(16, description="pixels of the low image; must divide the image's")
    noise: Float = Field(
        0.0,
        ge=0,
        le=1,
        description="largest standard deviation of the noise that training adds to the low image, and tells the "
        "network; 0: none. Some helps where the low image was drawn by another model",
    )


class MaskConfig(Section):
    """The known part of an image, of a model that fills in the rest. Training makes the masks: boxes, strokes."""

    unknown: Float = Field(
        0.1, ge=0, lt=1, description="share of the training images of which nothing is known, so that all can be drawn"
    )


class HintConfig(Section):
    """What a control is shown. Training derives it from the image, or takes what is given beside it."""

    hint: Literal["edges", "silhouette", "colour", "given"] = Field(
        "edges",
        description="what the picture shows. edges: Canny's, white on black; silhouette: what differs from the "
        "background, white on black; colour: the image in few pixels; given: the picture that metadata.jsonl names as "
        "control_file_name of each image",
    )
    sigma: Float = Field(1.0, gt=0, le=100, description="of edges: standard deviation of the blur before, in pixels")
    side: Positive | None = Field(None, description="of colour: pixels of the hint; must divide the image's. null: 8")

    @model_validator(mode="after")
    def _keys_are_of_the_hint(self) -> Self:
        for key, hint in (("sigma", "edges"), ("side", "colour")):
            if self.hint != hint and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"`{key}` is for `hint: {hint}`, found `hint: {self.hint}`")
        return self


class ControlConfig(HintConfig):
    """A picture that steers a model that is trained already: ControlNet (Zhang et al. 2023). `network`, `process` and
    the other keys of `condition` are those of that model."""

    of: FilePath = Field(
        description="the model that is controlled, such as models/base. Its weights stay as they are; a copy of its "
        "way down is trained"
    )
    also: tuple[HintConfig, ...] = Field(
        (), max_length=2, description="hints of further controls, which add to the first: all are given together"
    )
    widths: tuple[Positive, ...] = Field(
        (16, 32),
        min_length=1,
        description="channels of the layers that encode the hint. Stable Diffusion's: 16, 32, 96, 256",
    )
    shrink: Positive | None = Field(
        None,
        description="sides of the picture / sides of what the network sees, which is all that it can be. 1: pixels; "
        "8: Stable Diffusion's latents. null: what it is",
    )


class ConditionConfig(Section):
    """What a model is conditioned on; of a classifier, what it answers. Without a key a model is unconditional."""

    label: LabelConfig | None = Field(None, description="the class: of data with labels, such as class folders")
    prompt: PromptConfig | None = Field(None, description="the caption: of data with captions")
    embedding: Later[EmbeddingConfig | None] = Field(
        None, description="the embedding of the image by a CLIP: the model is a decoder, for the embeddings of a prior"
    )
    mask: MaskConfig | None = Field(
        None, description="the part of the image that is known: the model fills in the rest"
    )
    low: LowConfig | None = Field(None, description="the image in fewer pixels: the model is an upsampler")
    control: ControlConfig | None = Field(None, description="a picture that steers a trained model, which is frozen")

    @property
    def shows_given_hints(self) -> bool:
        """Whether a control is shown pictures that lie beside the images."""
        return self.control is not None and "given" in (self.control.hint, *(each.hint for each in self.control.also))

    @property
    def drops(self) -> dict[str, float]:
        """The share of the training data in which each is dropped, of those that are."""
        return {key: getattr(self, key).drop for key in self.droppable if getattr(self, key).drop}

    @property
    def why_not_guidable(self) -> str:
        """Why a model with this condition cannot be guided away from itself; empty if it can."""
        if self.drops:
            return ""
        kept = ", ".join(f"condition.{key}.drop is 0" for key in self.droppable)
        return kept or "condition has nothing that training can drop, such as a label"

    @property
    def droppable(self) -> tuple[str, ...]:
        """The keys of those that can be dropped in training."""
        return tuple(key for key, section in self if hasattr(section, "drop"))
