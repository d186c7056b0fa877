"""A model is a directory: `model.safetensors` (the weights) and `model.json` (everything else needed to use them)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ddpm.codecs.scale import Codec
from ddpm.conditioning.columns import Column, Given, united
from ddpm.conditioning.control_weights import WEIGHTS, Steered, weights_of
from ddpm.conditioning.guidance import GRADIENTS, Autoguidance, by_itself, guidable
from ddpm.conditioning.hints import HintColumn
from ddpm.conditioning.network import answered_by, bind, columns_in, tensors
from ddpm.conditioning.pictures import known_part
from ddpm.conditioning.text import Text
from ddpm.config.base import validate
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
from ddpm.errors import UpstreamError, UserError
from ddpm.files import read_json, sha256_of, write_json
from ddpm.first_stage import PREFIX, saved
from ddpm.joint_space import JointSpace
from ddpm.layout import find_model, made_by
from ddpm.model.card import ModelCard
from ddpm.model.guides import check_guide
from ddpm.model.network import build_network
from ddpm.model.process import build_process, warn_of_end
from ddpm.model.weights import CLIP_PREFIX, check_shapes, of_clip, refuse_not_finite_weights, shapes_in, taken_out
from ddpm.nets.autoencoder import Frozen
from ddpm.nets.clip import CLIP

# Where the plan of a model trained here comes from, if nothing else says: training does not depend on sampling.
DEFAULT_PLAN = "a general default, since a training writes none"


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
    def embedded_by(self) -> str | None:
        facts = self.card.data.encoder
        return None if facts is None else facts.sha256

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
            check_guide(self.card, guide.card, name)
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
    tensors |= of_clip(model.clip.network.state_dict()) if model.clip else {}
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
        shapes = shapes_in(where)
    except FileNotFoundError as error:
        missing = error.filename or "model.safetensors"
        raise UserError(f"{directory} is not a model directory: {missing} is missing{made_by(directory)}") from None
    except (OSError, SafetensorError, ValueError) as error:  # OSError: model.safetensors is a directory
        raise UserError(f"{directory}: damaged: {error}") from None
    try:
        codec, columns = card.data.codec, card.columns
    except ValueError as error:
        raise UserError(f"{described}: damaged: {error}") from None
    check_shapes(card, codec, shapes, directory)
    warn_of_end(card.config, str(described))
    try:
        weights = load_file(where)
    except SafetensorError as error:
        raise UserError(f"{directory}: damaged: {error}") from None
    refuse_not_finite_weights(weights, str(where))
    network, latent = build_network(card.config, codec, str(described), columns), card.data.latent
    inner = card.data.encoder and card.data.encoder.card
    frozen = taken_out(weights, PREFIX) if latent else {}
    clip_weights = taken_out(weights, CLIP_PREFIX) if inner else {}
    network.load_state_dict(weights)
    autoencoder = latent.open(card.data.stored, frozen, device) if latent else None
    own_plan = card.training.weights == "imported" if card.own_plan is None else card.own_plan
    source = "model.json" if own_plan else DEFAULT_PLAN
    network = network.to(device).eval().requires_grad_(False)
    clip = _opened_clip(inner, clip_weights, str(described), device) if inner else None
    return Model(network, card, source, directory=directory, autoencoder=autoencoder, clip=clip)


def _opened_clip(card: ModelCard, weights: Mapping[str, Tensor], where: str, device: torch.device | str) -> Model:
    """The CLIP that is a part of a model."""
    network = build_network(card.config, card.data.codec, where, card.columns)
    network.load_state_dict({name.removeprefix(CLIP_PREFIX): each for name, each in weights.items()})
    return Model(network.to(device).eval().requires_grad_(False), card)
