"""What a model has of a CLIP: the embeddings that it draws or is conditioned on, or the text encoder."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ddpm.codecs.embedding import Embedding
from ddpm.codecs.scale import Codec
from ddpm.conditioning.text import Text
from ddpm.config.condition import OF_TEXT
from ddpm.config.model import ModelConfig
from ddpm.data.embeddings import Embeddings
from ddpm.data.store import PreparedData, Split
from ddpm.errors import DdpmWarning
from ddpm.evaluation.accessory import open_space
from ddpm.joint_space import JointSpace
from ddpm.layout import EMBEDDINGS
from ddpm.model import Model
from ddpm.model.card import DataFacts, EmbeddingFacts, EncoderFacts, TextFacts

Config = TypeVar("Config", bound=ModelConfig)


@dataclass(frozen=True)
class UsedEncoder:
    """A trained CLIP, as a model uses it.

    Attributes:
        config: of the model.
        model: the CLIP.
        space: the same, as what embeds pictures and texts.
        embeddings: of the prepared images; None of a model that has its text encoder alone.
    """

    config: ModelConfig
    model: Model
    space: JointSpace
    embeddings: Embeddings | None

    def described(self, config: Config) -> Config:
        """The configuration with the CLIP's own text encoder under `condition.prompt`, if that is `of` it."""
        prompt, theirs = config.condition.prompt, self.model.card.config.condition.prompt
        if prompt is None or prompt.of is None or theirs is None:
            return config
        own = {key: getattr(theirs, key) for key in OF_TEXT}
        own |= {"frozen": True, "embedding": self.space.dimension}
        condition = config.condition.model_copy(update={"prompt": prompt.model_copy(update=own)})
        return config.model_copy(update={"condition": condition})

    def codec(self, own: Codec) -> Codec:
        """Of embeddings, if the model draws these; else its own."""
        return Embedding.of_unit_norm(self.space.dimension) if self.config.codec.embedding is not None else own

    def train_split(self, own: Split) -> Split:
        """What the model is trained on: embeddings, or its own data with those of their images."""
        if self.embeddings is None:
            return own
        return self.embeddings.split("train") if self.config.codec.embedding else self.embeddings.beside(own)

    def told(self, facts: DataFacts) -> DataFacts:
        """What the model keeps of its data, with what it keeps of the CLIP."""
        card, carried = self.model.card, self.carried
        encoder = EncoderFacts(
            variant=card.variant,
            fingerprint=card.training.fingerprint,
            sha256=self.space.sha256,
            numbers=self.space.dimension,
            card=None if carried is None else carried.card,
        )
        told: dict[str, Any] = {"encoder": encoder}
        if self._prompt_is_its and facts.text is not None:
            told["text"] = TextFacts(tokenizer=self.space.column.tokenizer.as_json(), captions=facts.text.captions)
        if self.config.codec.embedding is not None:
            codec = Embedding.of_unit_norm(self.space.dimension)
            told |= {"kind": codec.name, "shape": codec.shape, "embedding": EmbeddingFacts.of(codec)}
            told |= dict.fromkeys(("mean", "std", "low", "high"))
        return facts.model_copy(update=told)

    @property
    def carried(self) -> Model | None:
        """The CLIP as a part of a decoder, which can embed pictures with it; None of other models. The captions of its
        training are left out."""
        if self.config.condition.embedding is None:
            return None
        model = self.model
        text = TextFacts(tokenizer=self.space.column.tokenizer.as_json(), captions=("",))
        data = model.card.data.model_copy(update={"text": text})
        return replace(model, card=model.card.model_copy(update={"data": data}))

    @property
    def _prompt_is_its(self) -> bool:
        prompt = self.config.condition.prompt
        return prompt is not None and prompt.of is not None

    @property
    def hashes(self) -> dict[str, str]:
        """What identifies the CLIP and the embeddings, for the training's fingerprint."""
        found = {"CLIP": self.space.sha256}
        return found if self.embeddings is None else {**found, "set of embeddings": self.embeddings.sha256}

    def fill(self, network: nn.Module) -> None:
        """Copy the CLIP's text encoder and its projection into a network that is described as `of` it."""
        if not self._prompt_is_its:
            return
        text, theirs = network.get_submodule(Text.saved_as), self.space.network.text
        assert isinstance(text, Text)
        assert text.embed is not None  # as described
        text.encoder.load_state_dict(theirs.encoder.state_dict())
        text.embed.load_state_dict(theirs.projection.state_dict())


def used_encoder(
    config: ModelConfig, data: PreparedData, where: str, device: torch.device, *, root: Path = Path()
) -> UsedEncoder | None:
    """The CLIP that a model names; None: it names none.

    Args:
        where: the model is described, for errors.
        root: the project's folder.

    Raises:
        UserError: the CLIP or the embeddings are missing or damaged, or do not fit each other or the data.
    """
    if not config.encoders:
        return None
    key, name = next(iter(config.encoders.items()))
    model, space = open_space(name, data.codec, f"{where}.{key}", root, device)
    embeddings = None
    if config.codec.embedding is not None or config.condition.embedding is not None:
        embeddings = Embeddings.open(root / EMBEDDINGS / space.variant, data, space.sha256)
    return UsedEncoder(config, model, space, embeddings)


def warn_of_pairs_twice(config: ModelConfig, count: int, where: str) -> None:
    """Warn of a CLIP whose batches are larger than its training data, so that a pair is told apart from itself.

    Args:
        count: of the training images.
        where: the key of the model.
    """
    batch = config.training.batch_size if config.training else 0
    if config.network.kind == "clip" and batch > count:
        warnings.warn(
            f"{where}.training.batch_size is {batch}, more than the {count} training images: a pair that is in a batch "
            "twice counts as a wrong answer to itself",
            DdpmWarning,
            stacklevel=2,
        )
