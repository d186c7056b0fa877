"""A model is a directory: `model.safetensors` (the weights) and `model.json` (everything else needed to use them)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor, nn

from ddpm.config import ModelConfig, SamplingConfig, Section, validate
from ddpm.data.kinds import DataKind, KindName, data_kind
from ddpm.diffusion import sampling
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.plans import SamplingPlan, plan_for
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.schedules import Schedule
from ddpm.errors import UpstreamError, UserError
from ddpm.files import read_json, write_json
from ddpm.nets import build


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

    @property
    def data_kind(self) -> DataKind:
        return data_kind(self.kind, self.shape, self.low, self.high)


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


class ModelCard(Section):
    """model.json. `config` has neither `objective` nor `training` where the model was imported."""

    format: Literal[1] = 1
    variant: str
    config: ModelConfig
    data: DataFacts
    training: TrainingFacts
    parameters: int

    @model_validator(mode="after")
    def _nobody_knows_how_an_import_was_trained(self) -> ModelCard:
        # Cards of earlier versions have the defaults there.
        if self.training.weights == "imported":
            unknown = self.config.model_copy(update={"objective": None, "training": None})
            object.__setattr__(self, "config", unknown)
        return self


@dataclass(frozen=True)
class Model:
    """A network with what is needed to sample from it."""

    network: nn.Module
    card: ModelCard

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
    def kind(self) -> DataKind:
        """What the model makes."""
        return self.card.data.data_kind

    def sampled_by(self, sampling_config: SamplingConfig) -> Model:
        """The same weights with another plan of their own: how a model is sampled is no matter of its training."""
        config = self.card.config.model_copy(update={"sampling": sampling_config})
        return Model(self.network, self.card.model_copy(update={"config": config}))

    def process(self) -> GaussianProcess:
        """The process the model was trained on, on the model's device."""
        return build_process(self.card.config, self.device)

    def plan(self, **overrides: Any) -> SamplingPlan:
        """The model's own sampling plan, or one with some of its choices (config's `sampling`) replaced."""
        config = self.card.config
        return plan_for(config.process.model_dump(), config.sampling.model_dump(), **overrides)

    def sample(
        self,
        count: int,
        *,
        seed: int = 0,
        batch_size: int = 64,
        on_batch: Callable[[int], object] = lambda done: None,
        **overrides: Any,
    ) -> NDArray[Any]:
        """Draw `count` data, images [count, H, W, C] uint8; the same ones whatever the batch size.

        Args:
            seed: of the noise; image i of a seed is always the same.
            on_batch: called with the number of images done after every batch.
            overrides: as for `plan`.

        Raises:
            ValueError: a name or a number that no plan can be made of.
        """
        images = np.empty((count, *self.shape), dtype=self.kind.dtype)
        done = 0
        for batch in self.batches(count, seed=seed, batch_size=batch_size, **overrides):
            images[done : done + len(batch)] = batch
            done += len(batch)
            on_batch(done)
        return images

    def batches(self, count: int, *, seed: int = 0, batch_size: int = 64, **overrides: Any) -> Iterator[NDArray[Any]]:
        """As `sample`, in the memory of one batch: [≤ batch_size, *shape] at a time."""
        plan = self.plan(**overrides)
        for first in range(0, count, batch_size):
            yield self.draw(min(batch_size, count - first), plan, seed=seed, first=first)

    def draw(self, count: int, plan: SamplingPlan, *, seed: int, first: int) -> NDArray[Any]:
        """The data `first` .. `first + count − 1` of a seed in one batch, [count, *shape]."""
        noise = self.noise(count, seed, first=first)
        return self.kind.decode(sampling.sample(self.network, plan, noise(), noise).cpu().numpy())

    def noise(self, count: int, seed: int, *, first: int = 0) -> Callable[[], Tensor]:
        """Draws of the images `first` .. `first + count − 1` of a seed, [count, C, ...] on the model's device."""
        stream = ImageNoise(seed, count, self.kind.network_shape, first=first)
        return lambda: torch.from_numpy(stream.draw()).to(self.device)


def build_network(config: ModelConfig, kind: DataKind, where: str = "params.yaml") -> nn.Module:
    """The variant's network for a kind of data, freshly initialised.

    Args:
        where: the file that the configuration is of, for errors.

    Raises:
        UserError: the configuration does not fit the data.
    """
    channels, *sides = kind.network_shape
    if len(set(sides)) > 1:
        size = "×".join(map(str, sides))
        raise UserError(f"{where}: the images are {size}; the U-Net needs square ones: set data.image_size")
    try:
        return build(
            config.network.model_dump(),
            image_size=sides[0] if sides else 1,
            channels=channels,
            dims=len(sides),
            # The second half says where each pixel's variance lies in its range.
            out_channels=2 * channels if config.process.variance == "learned_range" else channels,
        )
    except ValueError as error:
        raise UserError(f"{where}: network: {error}") from None


def build_process(config: ModelConfig, device: torch.device | str = "cpu") -> GaussianProcess:
    """The variant's process with its tables on a device."""
    process = config.process
    return GaussianProcess(
        Schedule.of(process.model_dump()),
        prediction=process.prediction,
        variance=process.variance,
        device=device,
    )


def save(model: Model, directory: Path) -> None:
    """Write the model's two files into an existing directory.

    Raises:
        UpstreamError: the weights cannot be written, as on a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.network.state_dict().items()}
    try:
        save_file(weights, directory / "model.safetensors")
    except SafetensorError as error:
        raise UpstreamError(f"{directory / 'model.safetensors'} cannot be written ({error})") from None
    write_json(directory / "model.json", model.card.model_dump(mode="json"))


def load(directory: Path | str, device: torch.device | str = "cpu") -> Model:
    """Read a model directory; nothing else is needed, and no pickle is loaded.

    Raises:
        UserError: a file is missing, damaged, or the weights are of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    directory = Path(directory)
    described = directory / "model.json"
    try:
        card = validate(ModelCard, read_json(described), str(described))
        weights = load_file(directory / "model.safetensors")
    except FileNotFoundError as error:
        raise UserError(
            f"{directory} is not a model directory: {error.filename or 'model.safetensors'} is missing"
        ) from None
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{directory}: damaged: {error}") from None
    try:
        kind = card.data.data_kind
    except ValueError as error:
        raise UserError(f"{described}: damaged: {error}") from None
    network = build_network(card.config, kind, str(described))
    _load_weights(network, weights, directory / "model.safetensors")
    return Model(network.to(device).eval().requires_grad_(False), card)


def _load_weights(network: nn.Module, weights: dict[str, Tensor], where: Path) -> None:
    """Fill the network, naming what does not fit."""
    expected = network.state_dict()
    missing = sorted(expected.keys() - weights.keys())
    unexpected = sorted(weights.keys() - expected.keys())
    if missing or unexpected:
        raise UserError(f"{where}: another network: missing {missing[:3]}, unexpected {unexpected[:3]}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            found, wanted = list(tensor.shape), list(expected[name].shape)
            raise UserError(f"{where}: another network: {name} is {found}, expected {wanted}")
    network.load_state_dict(weights)
