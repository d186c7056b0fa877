"""params.yaml, `models.V`: a model as a composition of its sections."""

from __future__ import annotations

from typing import Any, Self

from pydantic import (
    model_validator,
)

from ddpm.config.base import Section
from ddpm.config.codec import CodecConfig
from ddpm.config.condition import ConditionConfig
from ddpm.config.network import AnyNetworkConfig, LinearAttentionConfig, NetworkConfig
from ddpm.config.objective import ObjectiveConfig
from ddpm.config.process import ProcessConfig
from ddpm.config.sampling import SamplingConfig
from ddpm.config.training import TrainingConfig
from ddpm.diffusion.schedules import Schedule
from ddpm.errors import brief

_ACCESSORIES = {
    "classifier": "a classifier, which draws nothing; it guides other models: ddpm sample MODEL --guide models/{}",
    "autoencoder": "an autoencoder, which draws nothing; models of its latents do: "
    "codec: {{latent: {{autoencoder: models/{}}}}}",
    "clip": "a CLIP, which draws nothing; it embeds images and texts: ddpm embed {}",
}


class ModelConfig(Section):
    """What a model is made of: a composition of parts. How it was trained is None where nobody knows."""

    network: AnyNetworkConfig = NetworkConfig()
    condition: ConditionConfig = ConditionConfig()
    codec: CodecConfig = CodecConfig()
    process: ProcessConfig = ProcessConfig()
    objective: ObjectiveConfig | None = None
    training: TrainingConfig | None = None
    sampling: SamplingConfig = SamplingConfig()

    @property
    def classifies(self) -> bool:
        """Whether it is a classifier, which guides other models and draws nothing itself."""
        return self.network.kind == "classifier"

    @property
    def reconstructs(self) -> bool:
        """Whether it is an autoencoder, whose latents other models draw."""
        return self.network.kind == "autoencoder"

    @property
    def contrasts(self) -> bool:
        """Whether it is a CLIP, which embeds images and texts in one space."""
        return self.network.kind == "clip"

    @property
    def guides_by_gradient(self) -> bool:
        """Whether other models move along the gradient of what it answers, and not away from what it draws."""
        return self.classifies or self.contrasts

    @property
    def encoders(self) -> dict[str, str]:
        """The CLIP whose embeddings it draws or is conditioned on, or whose text encoder it has, by each key that names
        it; none of other models."""
        condition, codec = self.condition, self.codec
        named = {
            "codec.embedding.encoder": None if codec.embedding is None else codec.embedding.encoder,
            "condition.embedding.encoder": None if condition.embedding is None else condition.embedding.encoder,
            "condition.prompt.of": None if condition.prompt is None else condition.prompt.of,
        }
        return {key: name for key, name in named.items() if name is not None}

    @property
    def draws_nothing(self) -> str | None:
        """What it is, of a model that draws nothing, with {} for its name; None of one that draws."""
        return _ACCESSORIES.get(self.network.kind)

    @model_validator(mode="after")
    def _steps_exist(self) -> Self:
        if self.sampling.levels > self.process.timesteps:
            raise ValueError(
                f"sampling.steps is {self.sampling.steps}, but the process has only {self.process.timesteps} timesteps"
            )
        return self

    @model_validator(mode="after")
    def _levels_have_numbers_where_they_need_them(self) -> Self:
        if not self.process.continuous:
            return self
        why = f"needs numbered levels, which process.{self.process.timed_by.replace(':', '')} has not"
        if self.objective and self.objective.loss not in ("simple", "elbo"):
            raise ValueError(f"objective.loss {self.objective.loss} {why}")
        if self.objective and self.objective.timestep_sampler != "uniform":
            raise ValueError(f"objective.timestep_sampler {self.objective.timestep_sampler} {why}")
        if self.network.kind == "vae":
            raise ValueError(f"network.kind vae {why}")
        if self.training and self.training.cuda_graphs:
            raise ValueError(f"training.cuda_graphs {why}")
        return self

    @model_validator(mode="after")
    def _a_logarithm_is_of_what_is_above_0(self) -> Self:
        if getattr(self.network, "time_embedding", None) != "fourier":
            return self
        if (least := Schedule.of(self.process.model_dump()).timesteps[0]) <= 0:
            raise ValueError(
                f"network.time_embedding fourier takes the logarithm of the network's time, and that begins at "
                f"{least:g} with process.{self.process.timed_by.replace(':', '')}: use process.kind ve with "
                "process.time sigma"
            )
        return self

    @model_validator(mode="after")
    def _guidance_has_something_to_move_away_from(self) -> Self:
        why = self.condition.why_not_guidable
        if self.sampling.guide is None and self.sampling.guidance_scale != 1 and why:
            raise ValueError(f"sampling.guidance_scale is {self.sampling.guidance_scale:g}, but {why}")
        return self

    @model_validator(mode="after")
    def _what_is_concatenated_is_there(self) -> Self:
        concatenates = isinstance(self.network, LinearAttentionConfig) and self.network.vector == "concatenate"
        if concatenates and self.condition.label is None:
            raise ValueError("network.vector is concatenate, but condition has no label")
        return self

    @model_validator(mode="after")
    def _a_frozen_encoder_has_learned_something(self) -> Self:
        prompt, training = self.condition.prompt, self.training
        if prompt and prompt.frozen and training and not (prompt.weights or prompt.of or training.start_from):
            raise ValueError(
                "condition.prompt.frozen is true, but the text encoder has random weights: give "
                "condition.prompt.weights, or training.start_from"
            )
        return self

    @model_validator(mode="after")
    def _weights_are_of_a_control(self) -> Self:
        own, default = self.sampling, SamplingConfig()
        for key in ("control_scale", "control_interval", "guess"):
            if self.condition.control is None and getattr(own, key) != getattr(default, key):
                raise ValueError(f"sampling.{key} is {brief(getattr(own, key))}, but condition has no control")
        return self

    @model_validator(mode="after")
    def _a_control_is_of_a_u_net(self) -> Self:
        if self.condition.control is not None and self.network.kind != "unet":
            raise ValueError(f"condition.control is for network.kind unet, found {self.network.kind}")
        return self

    def check_controls(self, base: ModelConfig, name: str) -> None:
        """Check that this model can control another one: that all but the control is alike.

        Args:
            name: what errors call the other one.

        Raises:
            ValueError: it cannot; names the key.
        """
        if base.condition.control is not None:
            raise ValueError(f"{name} is controlled itself: name the model that it controls")
        pairs = {key: (getattr(self, key), getattr(base, key)) for key in ("network", "process", "codec")}
        pairs |= {f"condition.{key}": (section, getattr(base.condition, key)) for key, section in self.condition}
        del pairs["condition.control"]
        for key, sections in pairs.items():
            own, other = map(_in_common, sections)
            if (own is None) != (other is None):
                names = ("this model", name) if own is None else (name, "this model")
                raise ValueError(f"{names[1]} has {key}, and {names[0]} has not: the two must be equal")
            for inner, value in (own or {}).items():
                if value != (other or {}).get(inner):
                    found = brief((other or {}).get(inner))
                    raise ValueError(f"{key}.{inner} is {brief(value)}, and {found} of {name}: the two must be equal")

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

    @model_validator(mode="after")
    def _a_classifier_tells_classes_apart(self) -> Self:
        loss, label = self.objective and self.objective.loss, self.condition.label
        if loss is not None and self.classifies != (loss == "cross_entropy"):
            raise ValueError(
                "network.kind classifier and objective.loss cross_entropy go together; "
                f"found {self.network.kind} and {loss}"
            )
        others = [key for key, section in self.condition if section is not None and key != "label"]
        if self.classifies and (label is None or label.drop or others):
            found = others[0] if others else "no label" if label is None else f"drop {label.drop:g}"
            raise ValueError(f"network.kind classifier needs condition: {{label: {{drop: 0}}}}, found {found}")
        return self

    @model_validator(mode="after")
    def _an_autoencoder_reconstructs(self) -> Self:
        loss = self.objective and self.objective.loss
        if loss is not None and self.reconstructs != (loss == "reconstruction"):
            raise ValueError(
                "network.kind autoencoder and objective.loss reconstruction go together; "
                f"found {self.network.kind} and {loss}"
            )
        conditions = [key for key, section in self.condition if section is not None]
        if self.reconstructs and conditions:
            raise ValueError(f"network.kind autoencoder takes no condition: found condition.{conditions[0]}")
        return self

    @model_validator(mode="after")
    def _a_clip_contrasts_images_with_captions(self) -> Self:
        loss, prompt = self.objective and self.objective.loss, self.condition.prompt
        if loss is not None and self.contrasts != (loss == "contrastive"):
            raise ValueError(
                f"network.kind clip and objective.loss contrastive go together; found {self.network.kind} and {loss}"
            )
        others = [key for key, section in self.condition if section is not None and key != "prompt"]
        if self.contrasts and (prompt is None or prompt.drop or others):
            found = others[0] if others else "no prompt" if prompt is None else f"drop {prompt.drop:g}"
            raise ValueError(f"network.kind clip needs condition: {{prompt: {{drop: 0}}}}, found {found}")
        if self.contrasts and self.codec.side is not None:
            raise ValueError("network.kind clip sees the images as they are prepared: leave codec.side out")
        if self.contrasts and self.training and self.training.micro_batch_size is not None:
            raise ValueError(
                f"training.micro_batch_size is {brief(self.training.micro_batch_size)}, but objective.loss contrastive "
                "compares all images of a batch with all its captions: set it to null, or lower batch_size"
            )
        return self

    @model_validator(mode="after")
    def _latents_are_drawn(self) -> Self:
        if self.codec.latent is None:
            return self
        if self.draws_nothing or self.network.kind == "vae":
            raise ValueError(f"codec.latent is for models that denoise, found network.kind {self.network.kind}")
        for key in ("low", "mask"):
            if getattr(self.condition, key) is not None:
                raise ValueError(f"condition.{key} is made of the pixels of x, which codec.latent has none of")
        if self.training and self.training.horizontal_flip:
            raise ValueError(
                "training.horizontal_flip must be false with codec.latent: the images are encoded once, before "
                "training, and the latents of a mirrored image are not the mirrored latents"
            )
        return self

    @model_validator(mode="after")
    def _embeddings_are_drawn(self) -> Self:
        kind = self.network.kind
        if self.codec.embedding is None:
            if self.objective is not None and kind == "prior":
                raise ValueError("network.kind prior draws the embeddings of a CLIP: give codec.embedding")
            return self
        if kind not in ("prior", "mlp"):
            raise ValueError(f"codec.embedding is for network.kind prior or mlp, found {kind}")
        for key in ("embedding", "low", "mask", "control"):
            if getattr(self.condition, key) is not None:
                raise ValueError(f"condition.{key} is of models that draw pixels, and codec.embedding has none")
        if self.training and self.training.horizontal_flip:
            raise ValueError(
                "training.horizontal_flip must be false with codec.embedding: the images are embedded once, before "
                "training"
            )
        return self

    @model_validator(mode="after")
    def _there_is_one_clip(self) -> Self:
        (key, name), *others = self.encoders.items() or [("", "")]
        for other, found in others:
            if found != name:
                raise ValueError(f"{other} is {found}, and {key} is {name}: the two must be the same CLIP")
        for key, off in (("sample_every", "0"), ("horizontal_flip", "false")):
            if self.condition.embedding is not None and self.training and getattr(self.training, key):
                raise ValueError(
                    f"training.{key} must be {off} with condition.embedding: the embeddings are of the images as they "
                    "are prepared"
                )
        return self

    @model_validator(mode="after")
    def _candidates_are_compared_with_a_text(self) -> Self:
        prompt = self.condition.prompt
        if self.sampling.candidates > 1 and (prompt is None or not (prompt.of or prompt.embedding)):
            raise ValueError(
                f"sampling.candidates is {self.sampling.candidates}: a prior with condition.prompt.of compares what it "
                "draws with the text's embedding; other models have none"
            )
        return self

    @model_validator(mode="after")
    def _samples_are_drawn(self) -> Self:
        if self.draws_nothing and self.training and self.training.sample_every:
            raise ValueError(f"training.sample_every must be 0: network.kind {self.network.kind} draws nothing")
        return self


def _in_common(section: Section | None) -> dict[str, Any] | None:
    """What a model and its control have in common of a section: all but how it is trained, and of `drop` only whether
    there is any."""
    if section is None:
        return None
    kept = {key: value for key, value in section.model_dump(mode="json").items() if key not in _OF_TRAINING}
    return {**kept, "drop": kept["drop"] > 0} if "drop" in kept else kept


_OF_TRAINING = ("dropout", "init", "checkpointing")


class VariantConfig(ModelConfig):
    """A model of params.yaml, which also says how to train it."""

    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
