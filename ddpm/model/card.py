"""What a model's `model.json` says: its configuration, its data, its training."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import model_validator

from ddpm.codecs.embedding import Embedding
from ddpm.codecs.scale import Codec, KindName, codec_for
from ddpm.conditioning.columns import Column, columns_of
from ddpm.config.base import Section
from ddpm.config.data import Attribution
from ddpm.config.model import ModelConfig
from ddpm.first_stage import LatentFacts


class TextFacts(Section):
    """What a model keeps of the training captions, which its column `prompt` is made of."""

    tokenizer: dict[str, Any]
    captions: tuple[str, ...]  # some of them, which are drawn from where nobody asks for a text


class EmbeddingFacts(Section):
    """The scale of the embeddings that a model draws, as of `codecs.embedding.Embedding`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    unit_norm: bool

    @classmethod
    def of(cls, codec: Embedding) -> Self:
        return cls(mean=codec.mean, std=codec.std, unit_norm=codec.unit_norm)

    @property
    def codec(self) -> Embedding:
        """
        Raises:
            ValueError: the numbers do not describe one.
        """
        if not (len(self.mean) == len(self.std) > 0 and all(each > 0 for each in self.std)):
            raise ValueError("embedding: expected a mean and a std above 0 of each number")
        return Embedding(self.mean, self.std, self.unit_norm)


class EncoderFacts(Section):
    """The CLIP whose embeddings a model draws, or is conditioned on, or whose text encoder it has."""

    variant: str
    fingerprint: str  # of its training
    sha256: str  # of its weights' file
    numbers: int  # of an embedding
    card: ModelCard | None = None  # of a CLIP that is a part of the model, so that pictures can be embedded with it


class DataFacts(Section):
    """What a model knows of the data it was trained on; None where it was imported and nobody said."""

    name: str
    shape: tuple[int, ...]  # of a datum: height, width, channels of an image
    classes: tuple[str, ...] | None
    mean: tuple[float, ...] | None = None  # of each channel of the training split; of images in [0, 1]
    std: tuple[float, ...] | None = None
    train_sha256: str | None = None  # of the training split's pixels
    train_count: int | None = None
    kind: KindName = "images"
    low: tuple[float, ...] | None = None  # of each channel, where the kind does not say
    high: tuple[float, ...] | None = None
    class_counts: tuple[int, ...] | None = None  # of the training split, of each class
    attribution: Attribution | None = None  # the credit that goes with what the model draws
    text: TextFacts | None = None  # of a model that is conditioned on captions
    hint_shape: tuple[int, ...] | None = None  # of a model that is shown hints that lie beside the images
    latent: LatentFacts | None = None  # of a model that draws the latents of the data
    embedding: EmbeddingFacts | None = None  # of a model that draws embeddings; `kind` and `shape` are theirs
    encoder: EncoderFacts | None = None

    @property
    def codec(self) -> Codec:
        """Of a model of latents without the autoencoder, which `Model.codec` has.

        Raises:
            ValueError: the numbers do not describe one.
        """
        if self.embedding is not None:
            return self.embedding.codec
        return self.stored if self.latent is None else self.latent.codec(self.stored)

    @property
    def stored(self) -> Codec:
        """The kind of the data themselves."""
        return codec_for(self.kind, self.shape, self.low, self.high)


class StartFacts(Section):
    """The model whose weights a training started from, or left as they are."""

    variant: str
    fingerprint: str  # as of `TrainingFacts`
    sha256: str  # of its weights' file


class TrainingFacts(Section):
    """What a training run has to say of itself beyond its configuration; None where the model was imported."""

    seed: int | None = None
    images_seen: int | None = None
    final_loss: float | None = None
    precision: str | None = None
    device: str | None = None
    devices: int | None = None  # that trained together
    torch: str | None = None  # version
    fingerprint: str  # of everything that decides the weights; of an import, their file's SHA-256
    weights: Literal["ema", "imported"] = "ema"
    start_from: StartFacts | None = None  # None: from random weights
    control_of: StartFacts | None = None  # of a ControlNet the model that it controls, whose weights it also has
    ema_length: float | None = None  # of weights that `ddpm tune-ema` averaged: their standard deviation in time


class ModelCard(Section):
    """model.json. `config` has neither `objective` nor `training` where the model was imported."""

    format: Literal[1] = 1
    variant: str
    config: ModelConfig
    data: DataFacts
    training: TrainingFacts
    parameters: int
    # Whether `config.sampling` was chosen for this model. False: it is a general default, since a training does not
    # depend on how its model is sampled. None: not said, as in files from before this key.
    own_plan: bool | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the model is conditioned on.

        Raises:
            ValueError: the condition does not fit the data.
        """
        return columns_of(self.config.condition.model_dump(), self.data.model_dump())

    @model_validator(mode="before")
    @classmethod
    def _of_before_conditions(cls, raw: Any) -> Any:
        """Cards of format 1 name a number of classes, always null, among the network's options."""
        try:
            network = dict(raw["config"]["network"])
            if network.pop("num_classes") is None:
                return {**raw, "config": {**raw["config"], "network": network}}
        except (KeyError, TypeError, ValueError):
            pass  # whatever else it is, the fields say so
        return raw

    @model_validator(mode="after")
    def _nobody_knows_how_an_import_was_trained(self) -> ModelCard:
        # Cards of earlier versions have the defaults there.
        if self.training.weights == "imported":
            unknown = self.config.model_copy(update={"objective": None, "training": None})
            object.__setattr__(self, "config", unknown)
        return self


EncoderFacts.model_rebuild()
DataFacts.model_rebuild()
ModelCard.model_rebuild()
