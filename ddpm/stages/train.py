"""`ddpm train V`: a prepared data set in, a model directory out; a killed run continues with the same command."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ddpm import tracking
from ddpm.codecs.scale import Codec
from ddpm.compute.device import pick_device
from ddpm.compute.parallel import Ranks, check_devices, joined, launch, launched
from ddpm.conditioning.tokenizers import fit_tokenizer
from ddpm.config.condition import PromptConfig
from ddpm.config.model import ModelConfig, VariantConfig
from ddpm.config.params import PARAMS_FILE, Params
from ddpm.config.sampling import SamplingConfig
from ddpm.data.store import PreparedData, Split
from ddpm.errors import Interrupted, NotFiniteError, UserError
from ddpm.files import atomic_directory
from ddpm.layout import MODELS, PREPARED, TRAINING_STATES
from ddpm.model import Model, save
from ddpm.model.card import DataFacts, TextFacts
from ddpm.model.network import codec_of, columns_for
from ddpm.model.process import check_end
from ddpm.stages import fingerprint
from ddpm.stages.encoder import UsedEncoder, used_encoder, warn_of_pairs_twice
from ddpm.stages.latents import FirstStage, first_stage
from ddpm.stages.live_metrics import Watch
from ddpm.stages.memory import check_room, explained
from ddpm.stages.progress import bar, stop_requests
from ddpm.training.checkpoint import Checkpoints, exclusive
from ddpm.training.configured import Start, card_of, initial, make_fast, parameter_count, train_configured
from ddpm.training.ema import EMA
from ddpm.training.loop import DivergedError
from ddpm.training.options import Hooks, LossPoint
from ddpm.training.perceptual import Perceptual
from ddpm.training.power_ema import SNAPSHOTS, write_snapshot

MOST_CAPTIONS = 10_000  # that a model keeps, to draw from


def train_variant(params: Params, variant: str, *, root: Path = Path(), perceptual: Perceptual | None = None) -> None:
    """Write `models/V/`: model.safetensors, model.json and loss.csv.

    With `training.devices` it starts a process for each, unless it is one that torchrun has started.

    Args:
        perceptual: of an autoencoder, what its loss compares images by.

    Raises:
        UserError: the configuration does not fit the data or the machine, the loss diverged, the memory does not
            suffice, or another process trains this model.
        UpstreamError: a checkpoint, or the model, cannot be written.
        Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    config = params.variant(variant)
    check_end(config, f"models.{variant}.process")
    data = PreparedData.open(root / PREPARED)
    first = first_stage(config, data, f"models.{variant}", torch.device("cpu"), root=root)
    codec = codec_of(config, data.codec, f"models.{variant}") if first is None else first.codec
    used = used_encoder(config, data, f"models.{variant}", torch.device("cpu"), root=root)
    if used is not None:
        config, codec = used.described(config), used.codec(codec)
    for key in ("horizontal_flip", "sample_every"):
        if getattr(config.training, key) and not codec.pictures:
            raise UserError(f"models.{variant}.training.{key} is for images; the prepared data are {codec.name}")
    if config.training.horizontal_flip and config.condition.shows_given_hints:
        raise UserError(
            f"models.{variant}.training.horizontal_flip mirrors images, but not the hints that lie beside them: set it "
            "to false"
        )
    if not launched():  # the processes of one training say it once
        warn_of_pairs_twice(config, len(data.split("train")), f"models.{variant}")
    if config.training.devices > 1 and not launched():
        check_devices(config.training.devices, f"models.{variant}.training.devices")
        check_room(config, codec, pick_device(), variant)  # if it cannot be, one process says so
        with contextlib.chdir(root):
            launch(config.training.devices, "train", variant, params)
        return
    split = (data if first is None else first.latents).split("train")
    if used is not None:
        split = used.train_split(split)
    material = _Material(data, codec, split, first, perceptual, used)
    with joined() as ranks, explained(config, codec, pick_device(), variant):
        _train(params, config, material, ranks, variant, root)


class _Material(NamedTuple):
    """What a training is of."""

    data: PreparedData
    codec: Codec
    split: Split  # that is trained on
    first: FirstStage | None  # of a model of latents
    perceptual: Perceptual | None  # of an autoencoder
    used: UsedEncoder | None  # of a model with a CLIP


def _train(
    params: Params,
    config: VariantConfig,
    material: _Material,
    ranks: Ranks,
    variant: str,
    root: Path,
) -> None:
    """`train_variant`, in one of the processes that do it together."""
    data, codec, _, first, perceptual, used = material
    if ranks.count > config.training.batch_size:
        raise UserError(
            f"models.{variant}.training.batch_size is {config.training.batch_size}, too few for {ranks.count} processes"
        )
    check_room(config, codec, pick_device(), variant)
    facts = data_facts(data, config, f"models.{variant}", root)
    if first is not None:
        facts = facts.model_copy(update={"latent": first.facts})
    facts = facts if used is None else used.told(facts)
    columns = columns_for(config, facts, f"models.{variant}")
    where = f"{PARAMS_FILE}: models.{variant}"
    start = initial(params.seed, config, codec, columns, where=where, root=root, latent=facts.latent)
    network, device, precision, base, text_encoder, controlled = start
    if used is not None:
        used.fill(network)
    if first is not None:
        first.network.to(device)
    hashes = hashes_of(data, facts) | ({} if base is None else {"model that it starts from": base.sha256})
    hashes |= {} if text_encoder is None else {"text encoder that it starts from": text_encoder}
    hashes |= {} if controlled is None else {"model that it controls": controlled.sha256}
    hashes |= {} if first is None else {"set of latents": first.latents.sha256}
    hashes |= {} if used is None else used.hashes
    if perceptual is not None:
        hashes["features of the perceptual loss"] = perceptual.sha256
    decided = fingerprint.decisions(config, params.seed, hashes, precision, device)
    mark = fingerprint.fingerprint(decided)
    states = root / TRAINING_STATES / variant
    checkpoints = Checkpoints(states / mark[:16])
    if ranks.first:
        size = f"{parameter_count(network) / 1e6:.2f} M parameters"
        together = f", {ranks.count} processes" if ranks.count > 1 else ""
        print(f"{variant}: {size} on {device.type}, {precision}{together}", flush=True)

    with exclusive(states / "lock", f"is training {variant}") if ranks.first else contextlib.nullcontext():
        if ranks.first:
            _begin(checkpoints, decided, variant)
        make_fast(network, config.training, codec, precision, ranks)
        try:
            curve = _run(params, config, start, material, checkpoints, ranks, variant)
        except (DivergedError, Interrupted) as error:
            if not ranks.first:
                return  # all meet it in the same step; one says it, and ends with its code
            if isinstance(error, Interrupted):
                raise
            raise UserError(
                f"{variant}: {error}; the last good checkpoint is kept in {checkpoints.directory}. "
                f"Lower models.{variant}.training.learning_rate or grad_clip, or let it go back with `rewind: 3`"
            ) from None
        if not ranks.first:
            return
        card = card_of(
            variant,
            _unsampled(config),
            facts,
            start,
            curve,
            seed=params.seed,
            fingerprint=mark,
            own_plan=False,
            devices=ranks.count,
        )
        with atomic_directory(root / MODELS / variant) as out:
            autoencoder, clip = first.network if first else None, used.carried if used else None
            save(Model(network, card, autoencoder=autoencoder, clip=clip), out)
            if config.training.ema_snapshots:
                shutil.copytree(checkpoints.directory / SNAPSHOTS, out / SNAPSHOTS)
            write_curve(curve, out / "loss.csv")
        # This run's state stays until another takes its place: a kill may yet come before DVC has the model.
        checkpoints.discard_others()


def _begin(checkpoints: Checkpoints, decided: dict[str, dict[str, Any]], variant: str) -> None:
    """Write down what decides a training, and say why one that was begun earlier does not continue."""
    if not checkpoints.any():
        for other in checkpoints.others():
            why = fingerprint.difference(decided, other.directory)
            print(f"{variant}: begins at step 0; {other.directory} is of another training: {why}", flush=True)
        fingerprint.remember(decided, checkpoints.directory)
    checkpoints.clean()


def _unheard(step: int, metrics: Mapping[str, float], picture: Any = None) -> None:
    """The live curve of a process that is not the first."""


def _unsampled(config: VariantConfig) -> VariantConfig:
    """The configuration with a plan that training does not depend on; `evaluate` and `export` put the variant's own."""
    return config.model_copy(update={"sampling": SamplingConfig(steps=min(50, config.process.timesteps))})


def _run(
    params: Params,
    config: VariantConfig,
    start: Start,
    material: _Material,
    checkpoints: Checkpoints,
    ranks: Ranks,
    variant: str,
) -> list[LossPoint]:
    """The loop with its bar, its live curve and its way out; of several processes only the first is heard."""
    options, network, codec = config.training, start.network, material.codec
    watch = Watch(config, codec, start.device, params.seed, material.data.split("validation"))
    with (
        bar(options.steps * options.batch_size, codec.unit, variant, shown=ranks.first) as progress,
        stop_requests() as asked,
        tracking.live_curve() if ranks.first else contextlib.nullcontext(_unheard) as log,
    ):

        def say(text: str) -> None:
            if ranks.first:
                print(text, flush=True)

        def on_resume(step: int) -> None:
            say(f"continuing {variant} from step {step} of {options.steps}")
            progress.move(step * options.batch_size)

        def on_rewind(why: str, step: int) -> None:
            say(f"{variant}: {why}; back at step {step}, on with other noise")
            progress.move(step * options.batch_size)

        def on_point(point: LossPoint) -> None:
            progress.set_postfix(loss=f"{point.loss:.4f}", refresh=False)
            curve = {"loss": point.loss, "grad_norm": point.grad_norm, "learning_rate": point.learning_rate}
            log(point.step, curve | watch.figures())

        def on_average(step: int, ema: EMA) -> None:
            watch.average(ema)
            if ranks.first and watch.due(step):
                try:
                    log(step, {}, watch.samples(network, ema))
                except NotFiniteError as error:  # whether training goes on is decided by its loss
                    say(f"{variant}: no samples at step {step}: {error}")

        hooks = Hooks(
            on_resume=on_resume,
            on_rewind=on_rewind,
            on_less_memory=lambda at_once: say(f"{variant}: out of memory; from now on {at_once} {codec.name} at once"),
            on_losses=watch.losses,
            on_average=on_average,
            on_snapshot=partial(write_snapshot, checkpoints.directory / SNAPSHOTS),
            on_step=lambda step: progress.update(options.batch_size),
            on_point=on_point,
            should_stop=lambda: asked() or ranks.orphaned(),
        )
        return train_configured(
            network,
            config,
            codec,
            material.split,
            hooks,
            seed=params.seed,
            precision=start.precision,
            checkpoints=checkpoints,
            ranks=ranks,
            perceptual=material.perceptual,
        )


def hashes_of(data: PreparedData, facts: DataFacts) -> dict[str, str | None]:
    """What identifies the data of a training."""
    return {
        "training split": data.split("train").sha256,
        "labels": data.manifest.labels_sha256,
        "captions": data.manifest.captions_sha256,
        "hints": None if facts.hint_shape is None else data.manifest.hints_sha256,
        **({} if facts.latent is None else {"autoencoder": facts.latent.sha256}),
        "tokenizer": None
        if facts.text is None
        else hashlib.sha256(json.dumps(facts.text.tokenizer).encode()).hexdigest(),
    }


def data_facts(data: PreparedData, config: ModelConfig, where: str = "params.yaml", root: Path = Path()) -> DataFacts:
    """What a model keeps of the data that it is trained on.

    Args:
        where: the model is described, for errors.
        root: the project's folder.

    Raises:
        UserError: the model cannot be of such data.
    """
    manifest, split, prompt = data.manifest, data.split("train"), config.condition.prompt
    labels, classes = split.labels, manifest.classes or ()
    return DataFacts(
        name=manifest.name,
        shape=codec_of(config, data.codec, where).shape,
        classes=manifest.classes,
        mean=manifest.mean,
        std=manifest.std,
        train_sha256=split.sha256,
        train_count=len(split),
        kind=manifest.kind,
        low=manifest.low,
        high=manifest.high,
        attribution=manifest.attribution,
        hint_shape=manifest.hint_shape if config.condition.shows_given_hints else None,
        text=None if prompt is None else _text_facts(split.captions, prompt, root),
        class_counts=None if labels is None else tuple(np.bincount(labels, minlength=len(classes)).tolist()),
    )


def _text_facts(captions: Sequence[Sequence[str]] | None, options: PromptConfig, root: Path) -> TextFacts | None:
    """The tokenizer, learned from all captions of the training split, and as many of them as a model keeps; None
    without captions."""
    if captions is None:
        return None
    texts = [text for each in captions for text in each]
    tokenizer = fit_tokenizer(texts, options.model_dump(), root)
    kept = np.sort(np.random.RandomState(0).permutation(len(texts))[:MOST_CAPTIONS])
    return TextFacts(tokenizer=tokenizer.as_json(), captions=tuple(texts[row] for row in kept))


def write_curve(curve: list[LossPoint], path: Path) -> None:
    """The loss curve as CSV, for `dvc plots`."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=["step", "loss", "grad_norm", "learning_rate"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(point) for point in curve)
