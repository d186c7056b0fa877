"""Training as a configuration describes it: the one way from its sections to a network, to `train`, and to what the
model says of it afterwards. For the stages and for `ddpm.fit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from ddpm.codecs.scale import Codec
from ddpm.compute.device import pick_device, resolve_precision
from ddpm.compute.parallel import ALONE, Ranks
from ddpm.conditioning.columns import Column, stored
from ddpm.conditioning.network import answered_by, columns_in
from ddpm.conditioning.values import ValuesAt
from ddpm.config.model import VariantConfig
from ddpm.config.objective import ReconstructionConfig
from ddpm.config.training import TrainingConfig
from ddpm.data.loader import TrainingData, TrainingImages
from ddpm.data.shown import values_of_pictures
from ddpm.data.store import Split
from ddpm.diffusion.objectives import Objective
from ddpm.first_stage import LatentFacts
from ddpm.model.card import DataFacts, ModelCard, StartFacts, TrainingFacts
from ddpm.model.network import build_network
from ddpm.model.process import build_process
from ddpm.nets.discriminator import PatchDiscriminator
from ddpm.training.checkpoint import Checkpoints
from ddpm.training.compression import Compress, Weights
from ddpm.training.contrast import Contrast
from ddpm.training.control import take_control
from ddpm.training.loop import train
from ddpm.training.options import NO_HOOKS, Hooks, LossPoint, TrainingOptions
from ddpm.training.perceptual import Perceptual
from ddpm.training.speed import accelerate, batches_ahead, on_cuda
from ddpm.training.start import start_from, text_encoder_from
from ddpm.training.tasks import Classify, Denoise, Reconstruct, Task


class Start(NamedTuple):
    """Where a training begins."""

    network: nn.Module
    device: torch.device
    precision: str  # that `training.precision` comes to on the device
    base: StartFacts | None = None  # the model whose weights it has; None: they are random
    text_encoder: str | None = None  # what identifies the published weights that its text encoder has
    controlled: StartFacts | None = None  # of a ControlNet the model that it controls, which is frozen


def initial(
    seed: int,
    config: VariantConfig,
    codec: Codec,
    columns: Sequence[Column] = (),
    *,
    device: torch.device | None = None,
    where: str = "params.yaml",
    root: Path = Path(),
    latent: LatentFacts | None = None,
) -> Start:
    """The network of a training's first step, on the device.

    Args:
        columns: that the network is conditioned on.
        device: None: CUDA where there is a device, else the CPU.
        where: the configuration is from, for errors.
        root: the project's folder, where the relative path of `training.start_from` begins.
        latent: the autoencoder, of a model of latents.

    Raises:
        UserError: the configuration does not fit the data, or the model that training starts from, or that is
            controlled, is missing or of another network.
    """
    device, base, control = device or pick_device(), config.training.start_from, config.condition.control
    torch.manual_seed(seed)
    network = build_network(config, codec, where, columns)
    controlled = None
    if control is not None:
        of = f"{where}: condition.control.of"
        controlled = take_control(network, config, codec.shape, of, root=root, latent=latent)
    facts, text = None, None
    if base is not None:
        facts = start_from(network, base, f"{where}: training.start_from", root=root, controlled=controlled)
    if controlled is None:  # else the text encoder has the weights of the model that is controlled
        text = text_encoder_from(network, config.condition.prompt, f"{where}: condition", root=root)
    precision = resolve_precision(config.training.precision, device)
    return Start(network.to(device), device, precision, facts, text, controlled)


def make_fast(network: nn.Module, options: TrainingConfig, codec: Codec, precision: str, ranks: Ranks = ALONE) -> None:
    """Compile and record the network, as far as the configuration asks for it."""
    device = next(network.parameters()).device
    part = ranks.part_of(options.batch_size)
    rows = part.stop - part.start
    if isinstance(options.micro_batch_size, int):
        rows = min(rows, options.micro_batch_size)
    accelerate(
        network,
        torch.zeros(rows, *codec.network_shape, device=device),
        precision,
        compiled=on_cuda(options.compile, device),
        graphs=options.cuda_graphs,
        say=print if ranks.first else lambda line: None,
    )


def train_configured(
    network: nn.Module,
    config: VariantConfig,
    codec: Codec,
    images: TrainingImages,
    hooks: Hooks = NO_HOOKS,
    *,
    seed: int,
    precision: str,
    checkpoints: Checkpoints | None = None,
    ranks: Ranks = ALONE,
    perceptual: Perceptual | None = None,
    **more: Any,
) -> list[LossPoint]:
    """`train` by the sections condition, process, objective and training.

    Args:
        network: as `initial` made it.
        images: with what the network is conditioned on, or answers, of each.
        perceptual: of an autoencoder's loss; None: without.
        more: options of the training that differ from the configuration's.

    Raises:
        DivergedError, OutOfMemoryError, Interrupted: as `train`.
    """
    device = next(network.parameters()).device
    if config.objective.reconstruction is not None:
        task = compression_task(config.objective.reconstruction, codec, perceptual, seed, device)
    else:
        task = task_of(config, codec, columns_in(network) or answered_by(network), device, ranks)
    # `precision` is resolved; the others are not of the loop.
    elsewhere = {"precision", "devices", "compile", "cuda_graphs", "sample_every", "horizontal_flip", "start_from"}
    chosen = config.training.model_dump(exclude=elsewhere) | {
        "prefetch": batches_ahead(config.training.prefetch, device),
        "timestep_sampler": config.objective.timestep_sampler,
    }
    options = TrainingOptions(seed=seed, precision=precision, **(chosen | more))
    data = TrainingData(
        images,
        codec.encode,
        _values_of(task.columns, codec, images),
        config.training.horizontal_flip,
        getattr(codec, "sample", None),
    )
    return train(network, task, data, options, hooks, checkpoints=checkpoints, ranks=ranks)


def _values_of(columns: Sequence[Column], codec: Codec, images: TrainingImages) -> dict[str, ValuesAt]:
    """What accompanies the data, by the columns' names. What is not among it follows from x_0."""
    data = cast(Split, images)  # or anything like it
    held: dict[str, ValuesAt] = {column.name: column.of_data(data) for column in stored(columns)}
    return held | values_of_pictures(columns, codec, data)


def task_of(
    config: VariantConfig, codec: Codec, columns: Sequence[Column], device: torch.device, ranks: Ranks = ALONE
) -> Task:
    """What the configuration minimises."""
    objective = config.objective
    if objective.loss == "elbo":
        return Reconstruct(objective.reconstruction_weight)
    if objective.loss == "cross_entropy":
        return Classify(build_process(config, device, codec.levels), columns)
    if objective.loss == "contrastive":
        process = build_process(config, device, codec.levels)
        return Contrast(process, columns, objective.noised, config.training.batch_size, ranks)
    chosen = Objective(objective.loss, objective.weighting, objective.gamma)
    return Denoise(
        build_process(config, device, codec.levels),
        chosen,
        columns,
        config.condition.drops,
        together=objective.dropping == "together",
    )


def compression_task(
    options: ReconstructionConfig, codec: Codec, perceptual: Perceptual | None, seed: int, device: torch.device
) -> Task:
    """What the training of an autoencoder minimises.

    Args:
        perceptual: None: without such a distance, whatever its weight.
        seed: of the discriminator's weights.
    """
    opponent = None
    if options.adversarial:
        # Beside the random numbers of the network itself.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            channels = codec.network_shape[0]
            opponent = PatchDiscriminator(
                channels, width=options.discriminator_width, layers=options.discriminator_layers
            ).to(device)
    weights = Weights(options.perceptual, options.kl, options.adversarial, options.adversarial_from)
    return Compress(weights, None if perceptual is None else perceptual.to(device), opponent)


def parameter_count(network: nn.Module) -> int:
    """Of all its parameters together."""
    return sum(parameter.numel() for parameter in network.parameters())


def card_of(
    variant: str,
    config: VariantConfig,
    data: DataFacts,
    start: Start,
    curve: Sequence[LossPoint],
    *,
    seed: int,
    fingerprint: str,
    own_plan: bool,
    devices: int = 1,
) -> ModelCard:
    """What a model says of itself after its training.

    Args:
        fingerprint: of everything that decided the weights.
        own_plan: whether `config.sampling` was chosen for this model.
    """
    facts = TrainingFacts(
        seed=seed,
        images_seen=config.training.steps * config.training.batch_size,
        final_loss=curve[-1].loss,
        precision=start.precision,
        device=start.device.type,
        devices=devices,
        torch=torch.__version__,
        fingerprint=fingerprint,
        start_from=start.base,
        control_of=start.controlled,
    )
    return ModelCard(
        variant=variant,
        config=config,
        data=data,
        training=facts,
        parameters=parameter_count(start.network),
        own_plan=own_plan,
    )
