"""A model is a directory: `model.safetensors` (the weights) and `model.json` (everything else needed to use them)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ddpm.codecs.embedding import Embedding
from ddpm.codecs.scale import Codec, KindName, codec_for, smaller
from ddpm.conditioning.columns import Column, Given, LabelColumn, PromptColumn, columns_of, united
from ddpm.conditioning.control_weights import WEIGHTS, Steered, weights_of
from ddpm.conditioning.guidance import GRADIENTS, Autoguidance, by_itself, guidable
from ddpm.conditioning.hints import HintColumn
from ddpm.conditioning.network import ConditionalNetwork, answered_by, bind, columns_in, ports_for, tensors
from ddpm.conditioning.pictures import known_part
from ddpm.conditioning.text import Text, clip_of
from ddpm.config.base import Section, validate
from ddpm.config.data import Attribution
from ddpm.config.model import ModelConfig
from ddpm.config.network import CLIPConfig
from ddpm.config.process import ProcessConfig
from ddpm.config.sampling import SamplingConfig
from ddpm.diffusion import sampling
from ddpm.diffusion.known import Known
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.plans import SamplingPlan
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.sampling import Denoiser
from ddpm.diffusion.schedules import Schedule
from ddpm.drawer import Drawer
from ddpm.drawer.parts import Drawn, Float32, Part
from ddpm.errors import DdpmWarning, NotFiniteError, UpstreamError, UserError, listed
from ddpm.files import read_json, sha256_of, write_json
from ddpm.first_stage import PREFIX, LatentFacts, latents_in_words, saved
from ddpm.joint_space import JointSpace
from ddpm.layout import find_model, made_by
from ddpm.nets import build
from ddpm.nets.autoencoder import Frozen
from ddpm.nets.clip import CLIP

CLIP_PREFIX = "clip."  # before the names of a CLIP's weights, in the file of a model that it is a part of
MOST_TENSORS = 20_000  # of a network; those of the papers have hundreds
# Where the plan of a model trained here comes from, if nothing else says: training does not depend on sampling.
DEFAULT_PLAN = "a general default, since a training writes none"
# ᾱ_T, the share of an image's variance that is left at the end of the process. Sampling starts as if it were 0.
SIGNAL_WORTH_A_WARNING, SIGNAL_TO_REFUSE = 0.01, 0.2


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


@dataclass(frozen=True)
class Model(Drawer):
    """A network with what is needed to sample from it."""

    network: nn.Module
    card: ModelCard
    plan_source: str = "model.json"
    guide: Model | None = None
    """The classifier, the CLIP or the weaker model that guides it; None: it guides itself, if it can."""
    directory: Path | None = None
    """That it was read from."""
    autoencoder: Frozen | None = None
    """Of a model of latents."""
    clip: Model | None = None
    """Of a model that is conditioned on embeddings, what made them."""

    @property
    def encoder(self) -> JointSpace | None:
        """Of a model that is conditioned on embeddings, what embeds pictures and texts."""
        facts = self.card.data.encoder
        if self.clip is None or facts is None:
            return None
        return JointSpace(cast(CLIP, self.clip.network), self.clip.codec, facts.variant, facts.sha256)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def schedule(self) -> Schedule:
        return Schedule.of(self.card.config.process.model_dump())

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one datum: of an image (height, width, channels)."""
        return self.card.data.shape

    @property
    def codec(self) -> Codec:
        """Between what is stored and what the network sees; it says what the model makes."""
        facts = self.card.data
        if facts.latent is None or self.autoencoder is None:
            return facts.codec
        return facts.latent.codec(facts.stored).opened(self.autoencoder)

    def sampled_by(
        self,
        sampling: SamplingConfig | Mapping[str, Any],
        source: str = "the caller",
        *,
        root: Path | str = Path(),
    ) -> Model:
        """The same weights with another sampling plan as their own, and the guide that it names.

        Args:
            source: where the plan comes from.
            root: the project's folder, where a guide's relative path starts.

        Raises:
            UserError: the section is not valid, or the guide is missing or damaged, or of other data, another process
                or other classes.
        """
        sampling_config = validate(SamplingConfig, sampling, source)
        config = self.card.config.model_copy(update={"sampling": sampling_config})
        card = self.card.model_copy(update={"config": config, "own_plan": True})
        name, guide = sampling_config.guide, None
        if name is not None and name == self.card.config.sampling.guide:
            guide = self.guide  # whatever folder its path started at
        if name is not None and guide is None:
            guide = load(find_model(name, exported=False, root=Path(root)), self.device)
            _check_guide(self, guide, name)
        return replace(self, card=card, plan_source=source, guide=guide)

    def guided_by(self, guide: Path | str, *, root: Path | str = Path()) -> Model:
        """The same model and plan with a guide: a directory of a classifier or of a weaker model.

        Raises:
            UserError: as `sampled_by`.
        """
        sampling_config = self.card.config.sampling.model_copy(update={"guide": str(guide)})
        return self.sampled_by(sampling_config, self.plan_source, root=root)

    def plan(self, **overrides: Any) -> SamplingPlan:
        config = self.card.config
        if config.draws_nothing is not None:
            raise ValueError(f"{self.card.variant} is {config.draws_nothing.format(self.card.variant)}")
        if config.sampling.guide is not None and self.guide is None:
            raise ValueError(f"the guide {config.sampling.guide} was not opened: use guided_by")
        return super().plan(**overrides)

    @property
    def variant(self) -> str:
        return self.card.variant

    @property
    def fingerprint(self) -> str:
        return self.card.training.fingerprint

    @property
    def weights(self) -> str:
        return self.card.training.weights

    @property
    def attribution(self) -> str | None:
        return self.card.data.attribution

    def process(self) -> GaussianProcess:
        """The process the model was trained on, on the model's device."""
        return build_process(self.card.config, self.device, self.codec.levels)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Those that its network is conditioned on, and those that a classifier guides it by."""
        return united(answered_by(self.guide.network) if self.guide else (), columns_in(self.network))

    @property
    def choices(self) -> tuple[dict[str, Any], dict[str, Any]]:
        config = self.card.config
        return config.process.model_dump(), config.sampling.model_dump()

    @property
    def guidable(self) -> bool:
        return self.guide is not None or guidable(self.network)

    @property
    def by_classifier(self) -> bool:
        return self.guide is not None and self.guide.card.config.guides_by_gradient

    @property
    def guide_mark(self) -> str | None:
        if self.guide is None or self.guide.directory is None:
            return None
        weights = sha256_of(self.guide.directory / "model.safetensors")
        return f"{self.guide.card.variant} {weights[:12]}"

    def denoiser(self, given: Given | None = None) -> Denoiser:
        """The network with its condition, as a function of x and t; guided where a plan's row has a weight.

        Args:
            given: a value of each column, [N, ...].
        """
        given = given or {}
        own = tensors(given, self.device)
        if WEIGHTS not in given:
            return self._guided(own)

        def with_weights(weights: tuple[float, ...] | None) -> Denoiser:
            values = own | tensors(weights_of(given, weights), self.device)
            if weights is not None and not any(weights[:2]):
                del values[HintColumn.name]  # the model that is controlled, alone
            return self._guided(values)

        return Steered(with_weights)

    def _guided(self, values: Mapping[str, Tensor]) -> Denoiser:
        """`denoiser` with the control's weights as they are given."""
        own = {column.name: values[column.name] for column in columns_in(self.network) if column.name in values}
        if self.guide is None:
            return by_itself(self.network, own)
        denoise = bind(self.network, own)
        if not self.by_classifier:
            names = [column.name for column in columns_in(self.guide.network)]
            weaker = {name: values[name] for name in names if name in values}
            return Autoguidance(denoise, bind(self.guide.network, weaker))
        (answer,) = answered_by(self.guide.network)
        gradient = GRADIENTS[self.guide.card.config.network.kind]
        return gradient(denoise, self.guide.network, values[answer.name], self.process())

    @torch.inference_mode()
    def scores(self, x: Float32, given: Given) -> Float32:
        """The dot products of embeddings with those of the texts that were asked for (Ramesh et al. 2022, §2.2)."""
        text = self.network.get_submodule(Text.saved_as)
        assert isinstance(text, Text)  # the configuration has seen to it
        wanted = text.embedding(tensors(given, self.device)).cpu().numpy()
        return (self.codec.decode(x) * wanted).sum(1)

    def draw_parts(self, plan: SamplingPlan, parts: Sequence[Part]) -> list[Drawn]:
        def run(draw: Callable[[], Float32], given: Given) -> Float32:
            def noise() -> Tensor:
                return torch.from_numpy(draw()).to(self.device)

            return self.run(plan, noise(), noise, given).cpu().numpy()

        return self._in_one_run(parts, run)

    def run(self, plan: SamplingPlan, x: Tensor, draw: Callable[[], Tensor], given: Given) -> Tensor:
        """Run a plan from x_T [N, C, ...] to x_0 in about [−1, 1].

        Args:
            draw: gives the z of each row that adds noise.
            given: a value of each column, [N, ...].
        """
        known = known_part(given)
        part = None if known is None else Known(*(torch.from_numpy(each).to(self.device) for each in known))
        return sampling.sample(self.denoiser(given), plan, x, draw, part)

    def noise(self, count: int, seed: int, *, first: int = 0) -> Callable[[], Tensor]:
        """Draws of the images `first` .. `first + count − 1` of a seed, [count, C, ...] on the model's device."""
        stream = ImageNoise(seed, count, self.codec.network_shape, first=first)
        return lambda: torch.from_numpy(stream.draw()).to(self.device)


def _check_guide(model: Model, guide: Model, name: str) -> None:
    """
    Args:
        name: what names the guide, for errors.

    Raises:
        UserError: it cannot guide the model.
    """
    whose = f"{name} cannot guide {model.card.variant}"
    data, other, classifies = model.card.data, guide.card.data, guide.card.config.classifies
    if (data.kind, data.shape, data.low, data.high) != (other.kind, other.shape, other.low, other.high):
        shapes = [f"{each.kind} of {'×'.join(map(str, each.shape))}" for each in (other, data)]
        raise UserError(f"{whose}: it was trained on {shapes[0]}, and the model on {shapes[1]}")
    if other.latent != data.latent:
        found, expected = map(latents_in_words, (other.latent, data.latent))
        raise UserError(f"{whose}: it was trained on {found}, and the model on {expected}")
    process, others = model.card.config.process, guide.card.config.process
    ours, theirs = model.schedule, guide.schedule
    if ours.coordinates != theirs.coordinates or not np.array_equal(ours.alphas_cumprod, theirs.alphas_cumprod):
        processes = [f"{_levels_of(each)} with {each.timesteps} timesteps" for each in (others, process)]
        raise UserError(f"{whose}: it was trained with {processes[0]}, and the model with {processes[1]}")
    if guide.card.config.contrasts:
        _check_clip(model, guide, whose)
        return
    if not classifies and process.prediction != others.prediction:
        raise UserError(f"{whose}: it predicts {others.prediction}, and the model {process.prediction}")
    classes = columns_in(model.network), answered_by(guide.network) if classifies else columns_in(guide.network)
    own, its = (tuple(c.classes for c in columns if isinstance(c, LabelColumn)) for columns in classes)
    if classifies and not own and data.classes is not None:
        own = (data.classes,)
    if own != its and (own or not classifies):
        raise UserError(f"{whose}: it has {_classes_of(its)}, and the model {_classes_of(own)}")
    own_names, its_names = ([column.name for column in columns] for columns in classes)
    if own_names != its_names and not classifies:
        raise UserError(f"{whose}: it is conditioned on {_listed(its_names)}, and the model on {_listed(own_names)}")


def _check_clip(model: Model, guide: Model, whose: str) -> None:
    """What `_check_guide` checks of a CLIP alone."""
    objective = guide.card.config.objective
    if objective is None or not objective.noised:
        raise UserError(f"{whose}: it has seen no noisy images; train a CLIP with objective.noised true")
    (caption,) = answered_by(guide.network)
    for column in columns_in(model.network):
        if isinstance(column, PromptColumn) and column.tokenizer != cast(PromptColumn, caption).tokenizer:
            raise UserError(f"{whose}: it was trained with another tokenizer than the model")


def _levels_of(process: ProcessConfig) -> str:
    return f"schedule {process.schedule}" if process.kind == "vp" else f"kind {process.kind}"


def _classes_of(columns: Sequence[Sequence[str]]) -> str:
    return f"the classes {listed(columns[0])}" if columns else "no classes"


def _listed(names: Sequence[str]) -> str:
    return listed(names) if names else "nothing"


def build_network(
    config: ModelConfig, codec: Codec, where: str = "params.yaml", columns: Sequence[Column] = ()
) -> nn.Module:
    """The variant's network for a kind of data, freshly initialised.

    Args:
        where: the file that the configuration is of, for errors.
        columns: that it is conditioned on, as a `ConditionalNetwork`; or of a classifier or a CLIP, that it answers.
            Of a CLIP without them it is the image tower alone.

    Raises:
        UserError: the configuration does not fit the data, or is of a network that no memory could hold.
    """
    channels, *sides = codec.network_shape
    if len(set(sides)) > 1:
        size = "×".join(map(str, sides))
        raise UserError(f"{where}: the images are {size}; the U-Net needs square ones: set data.image_size")
    try:
        condition = _condition_of(config, codec)
        with _at_most(MOST_TENSORS):
            network = build(
                config.network.model_dump(),
                image_size=sides[0] if sides else 1,
                channels=channels,
                dims=len(sides),
                out_channels=_outputs(config, channels, columns),
                ports=ports_for(columns, condition),
            )
            if config.classifies:
                network.answers = tuple(columns)  # type: ignore[assignment]  # the stub knows tensors and modules
                return network
            if isinstance(config.network, CLIPConfig) and columns:
                return clip_of(network, columns, condition["prompt"], config.network.embedding)
            if not columns:
                return network
            return ConditionalNetwork(network, columns, condition)
    except ValueError as error:
        raise UserError(f"{where}: {error if columns else f'network: {error}'}") from None
    except _LargerError:
        raise UserError(
            f"{where}: network: more than {MOST_TENSORS:,} tensors; expected fewer blocks or layers"
        ) from None
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise UserError(f"{where}: network: one of its tensors is larger than any memory; make it narrower") from None


def _condition_of(config: ModelConfig, codec: Codec) -> dict[str, Any]:
    """The section `condition` as JSON has it, with how much smaller the network's x is than the hint of a control.

    Raises:
        ValueError: the section says otherwise.
    """
    condition = config.condition.model_dump()
    if (control := condition["control"]) is not None and codec.pictures:
        smaller = codec.pixels.network_shape[1] // codec.network_shape[1]
        if control["shrink"] not in (None, smaller):
            what = "pixels" if smaller == 1 else f"latents, whose sides are 1/{smaller} of the picture's"
            raise ValueError(f"condition.control.shrink is {control['shrink']}, expected {smaller}: x is {what}")
        control["shrink"] = smaller
    return condition


def _outputs(config: ModelConfig, channels: int, columns: Sequence[Column]) -> int | None:
    """Channels of the network's output; None: the network's own default."""
    if config.classifies:
        return next((len(column.classes) for column in columns if isinstance(column, LabelColumn)), None)
    # The second half says where each pixel's variance lies in its range.
    return 2 * channels if config.process.variance == "learned_range" else channels


def codec_of(config: ModelConfig, stored: Codec, where: str) -> Codec:
    """What stands between the prepared data and the network of a model, by its section `codec`.

    Args:
        stored: of the prepared data.
        where: the model is described, for errors.

    Raises:
        UserError: the section does not fit the data.
    """
    if config.codec.side is None:
        return stored
    try:
        return smaller(stored, config.codec.side)
    except ValueError as error:
        raise UserError(f"{where}.{error}") from None


def columns_for(config: ModelConfig, facts: DataFacts, where: str) -> tuple[Column, ...]:
    """What a model of such data is conditioned on.

    Args:
        where: the model is described, for errors.

    Raises:
        UserError: the condition does not fit the data.
    """
    try:
        columns = columns_of(config.condition.model_dump(), facts.model_dump())
    except ValueError as error:
        raise UserError(f"{where}.{error}") from None
    if columns and facts.class_counts and facts.classes and 0 in facts.class_counts:
        empty = facts.classes[facts.class_counts.index(0)]
        raise UserError(f"{where}.condition.label: the class {empty!r} has no training data")
    return columns


def build_process(config: ModelConfig, device: torch.device | str = "cpu", levels: int | None = 256) -> GaussianProcess:
    """The variant's process with its tables on a device, for data on so many levels, or continuous ones."""
    process = config.process
    return GaussianProcess(
        Schedule.of(process.model_dump()),
        prediction=process.prediction,
        variance=process.variance,
        device=device,
        levels=levels,
    )


def check_end(config: ModelConfig, where: str) -> None:
    """Check that the forward process ends in noise: sampling starts there from noise alone.

    Warns where ᾱ_T is above 0.01.

    Args:
        where: what the process is of, for messages.

    Raises:
        UserError: ᾱ_T is above 0.2.
    """
    left = signal_left(config)
    if left > SIGNAL_TO_REFUSE:
        raise UserError(f"{where}: {_at_the_end(config, left)}. Use {_more_noise(config.process)}")
    if left > SIGNAL_WORTH_A_WARNING:
        warnings.warn(f"{where}: {_at_the_end(config, left)}", DdpmWarning, stacklevel=2)


def signal_left(config: ModelConfig) -> float:
    """ᾱ_T of the variant's process, in 0..1."""
    return float(build_process(config).signal[-1] ** 2)


def _more_noise(process: ProcessConfig) -> str:
    return "schedule cosine, or linear with more timesteps" if process.kind == "vp" else "a larger sigma_max"


def _at_the_end(config: ModelConfig, left: float) -> str:
    process = config.process
    return (
        f"{_levels_of(process)} with {process.timesteps} timesteps ends at alpha_bar = {left:.2g}, where the "
        "image is still visible, but sampling starts from noise without an image"
    )


def save(model: Model, directory: Path | str) -> None:
    """Write the model's two files into a directory, which is made if it is not there.

    Raises:
        NotFiniteError: the weights hold NaN or infinite values.
        UpstreamError: the weights cannot be written, as on a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = model.network.state_dict() | (saved(model.autoencoder.network) if model.autoencoder else {})
    tensors |= _of_clip(model.clip.network.state_dict()) if model.clip else {}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    refuse_not_finite_weights(weights, model.card.variant)
    try:
        save_file(weights, directory / "model.safetensors")
    except SafetensorError as error:
        raise UpstreamError(f"{directory / 'model.safetensors'} cannot be written ({error})") from None
    write_json(directory / "model.json", model.card.model_dump(mode="json"))


def load(directory: Path | str, device: torch.device | str = "cpu") -> Model:
    """Read a model directory; nothing else is needed, and no pickle is loaded.

    model.json is held against the header of the weights before any memory is taken for the network. Warns where the
    process does not end in noise.

    Raises:
        UserError: a file is missing, damaged, or the weights are of another network.
        NotFiniteError: the weights hold NaN or infinite values.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    directory = Path(directory)
    described, where = directory / "model.json", directory / "model.safetensors"
    try:
        card = validate(ModelCard, read_json(described), str(described))
        shapes = _shapes_in(where)
    except FileNotFoundError as error:
        missing = error.filename or "model.safetensors"
        raise UserError(f"{directory} is not a model directory: {missing} is missing{made_by(directory)}") from None
    except (OSError, SafetensorError, ValueError) as error:  # OSError: model.safetensors is a directory
        raise UserError(f"{directory}: damaged: {error}") from None
    try:
        codec, columns = card.data.codec, card.columns
    except ValueError as error:
        raise UserError(f"{described}: damaged: {error}") from None
    _check_shapes(_expected_shapes(card, codec, shapes, described), shapes, where)
    if (left := signal_left(card.config)) > SIGNAL_WORTH_A_WARNING:
        warnings.warn(f"{described}: {_at_the_end(card.config, left)}", DdpmWarning, stacklevel=2)
    try:
        weights = load_file(where)
    except SafetensorError as error:
        raise UserError(f"{directory}: damaged: {error}") from None
    refuse_not_finite_weights(weights, str(where))
    network, latent = build_network(card.config, codec, str(described), columns), card.data.latent
    inner = card.data.encoder and card.data.encoder.card
    frozen = _taken_out(weights, PREFIX) if latent else {}
    of_clip = _taken_out(weights, CLIP_PREFIX) if inner else {}
    network.load_state_dict(weights)
    autoencoder = latent.open(card.data.stored, frozen, device) if latent else None
    own_plan = card.training.weights == "imported" if card.own_plan is None else card.own_plan
    source = "model.json" if own_plan else DEFAULT_PLAN
    network = network.to(device).eval().requires_grad_(False)
    clip = _opened_clip(inner, of_clip, str(described), device) if inner else None
    return Model(network, card, source, directory=directory, autoencoder=autoencoder, clip=clip)


def _taken_out(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin with the prefix, which the others are then without."""
    return {name: weights.pop(name) for name in list(weights) if name.startswith(prefix)}


def _of_clip(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a CLIP, or their shapes, by their names in the file of a model that it is a part of."""
    return {f"{CLIP_PREFIX}{name}": each for name, each in weights.items()}


def _opened_clip(card: ModelCard, weights: Mapping[str, Tensor], where: str, device: torch.device | str) -> Model:
    """The CLIP that is a part of a model."""
    network = build_network(card.config, card.data.codec, where, card.columns)
    network.load_state_dict({name.removeprefix(CLIP_PREFIX): each for name, each in weights.items()})
    return Model(network.to(device).eval().requires_grad_(False), card)


def refuse_not_finite_weights(weights: Mapping[str, Tensor], where: str) -> None:
    """
    Args:
        where: what they are of, for the error.

    Raises:
        NotFiniteError: there are NaN or infinite values among them; names the first tensor.
    """
    bad = {name: count for name, tensor in weights.items() if (count := int((~tensor.isfinite()).sum()))}
    if bad:
        (name, count), others = next(iter(bad.items())), len(bad) - 1
        more = f" (and {others} more tensors)" if others else ""
        raise NotFiniteError(f"{where}: {count} of {weights[name].numel()} values of {name} are NaN or infinite{more}")


def _shapes_in(path: Path) -> dict[str, list[int]]:
    """The shapes of a .safetensors file's tensors by name, from its header."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _expected_shapes(
    card: ModelCard, codec: Codec, found: Mapping[str, list[int]], where: Path
) -> dict[str, list[int]]:
    """The shapes of the weights that a configuration asks for, without memory for them.

    Args:
        found: the shapes that there are: the network is not built further than these allow.

    Raises:
        UserError: the configuration is not of a network, or of a much larger one.
    """
    try:
        # A few more tensors than there are, so that a network that is merely another one is named by what it lacks.
        with torch.device("meta"), _at_most(1000 + 2 * len(found)):
            network = build_network(card.config, codec, str(where), card.columns)
            frozen = card.data.latent.expected(card.data.stored) if card.data.latent else {}
            if card.data.encoder and (inner := card.data.encoder.card):
                clip = build_network(inner.config, inner.data.codec, str(where), inner.columns)
                frozen |= _of_clip({name: list(tensor.shape) for name, tensor in clip.state_dict().items()})
    except (ArithmeticError, MemoryError, RuntimeError, TypeError) as error:
        raise UserError(f"{where}: damaged: not a network that can be built ({type(error).__name__})") from None
    except _LargerError:
        raise UserError(f"{where}: describes a larger network than model.safetensors has weights for") from None
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()} | frozen


class _LargerError(Exception):
    """A network has more parameters than it may have."""


@contextlib.contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Within the block, modules that register more parameters raise _LargerError."""
    registered = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal registered
        registered += parameter is not None
        if registered > parameters:
            raise _LargerError

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _check_shapes(expected: Mapping[str, list[int]], found: Mapping[str, list[int]], where: Path) -> None:
    """Name what does not fit."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    if missing or unexpected:
        raise UserError(f"{where}: another network: missing {missing[:3]}, unexpected {unexpected[:3]}")
    for name, shape in found.items():
        if shape != expected[name]:
            raise UserError(f"{where}: another network: {name} is {shape}, expected {expected[name]}")
