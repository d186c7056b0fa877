"""`ddpm evaluate V`: figures with their protocol, and pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from PIL import Image

from ddpm.compute.device import pick_device
from ddpm.compute.parallel import Ranks, check_devices, joined, launch, launched
from ddpm.config.model import ModelConfig
from ddpm.config.params import Params
from ddpm.data.store import SPLITS, PreparedData
from ddpm.diffusion.plans import decisive_choices
from ddpm.drawer import Drawer
from ddpm.drawer.parts import data_of
from ddpm.errors import UserError
from ddpm.evaluation.accessory import open_space
from ddpm.evaluation.agreement import hint_columns
from ddpm.evaluation.classifier import accuracy_by_noise, accuracy_evaluations, picture, table
from ddpm.evaluation.curves import column, curves
from ddpm.evaluation.denoising import denoising
from ddpm.evaluation.extractor import load_extractor
from ddpm.evaluation.joint_retrieval import joint_retrieval, nearest_pictures
from ddpm.evaluation.likelihood import (
    gigaflops_per_image,
    likelihood_figures,
    likelihood_table,
    split_bounds,
    split_ode_likelihoods,
)
from ddpm.evaluation.measure import Measurement, asked_for, check_fit, check_plan, facts_of, finite, measure
from ddpm.evaluation.pictures import captioned, credit, in_turn, origin, save_png
from ddpm.evaluation.prior import prior_figures
from ddpm.evaluation.reconstruction import reconstruct
from ddpm.evaluation.reconstruction import table as channel_table
from ddpm.evaluation.retrieval import PLACES
from ddpm.evaluation.sharding import sharded_batches
from ddpm.figures.figure import OTHER_LINKS
from ddpm.figures.protocol import mark_of
from ddpm.files import atomic_directory, write_bytes, write_json
from ddpm.layout import EXTRACTOR, MODELS, PREPARED, REPORTS
from ddpm.model import Model, load
from ddpm.stages.compose import open_composed
from ddpm.stages.control import check_base
from ddpm.stages.encoder import used_encoder
from ddpm.stages.progress import show

# The first process may take long for the features of all real images, for which the others wait.
_PATIENCE = timedelta(days=1)
SHOWN_PAIRS = 32  # images of a cascade with those that earlier links drew, or of a control with the hints


def evaluate_variant(params: Params, variant: str, *, root: Path = Path()) -> Measurement | None:
    """Write `reports/V/`: metrics.json, protocol.json, pictures, and nll.csv with the terms of the likelihood's bound.

    Of a cascade it has links.png, with what each link of images drew, in place of the likelihood and the way to the
    data. Of a classifier it is metrics.json, and its accuracy at levels of noise as CSV and as a picture.
    Of an autoencoder: metrics.json, latents.csv with what each channel is like, and reconstruction.png.
    Of a CLIP: metrics.json, and nearest.png with captions beside the images nearest to them.

    With `evaluation.devices` it starts a process for each, unless it is one that torchrun has started.

    Returns:
        The figures and their protocol; None of a model that draws nothing, and where another process has them.

    Raises:
        UserError: the model, the extractor or the prepared data is missing or damaged, the model cannot be sampled by
            the protocol's plan, or there are fewer devices.
    """
    if variant not in params.composed and (evaluate := _other_figures(params.variant(variant))):
        evaluate(params, variant, root)
        return None
    devices = params.evaluation.devices
    if devices > 1 and not launched():
        check_devices(devices, "evaluation.devices")
        _opened(params, variant, torch.device("cpu"), root)  # what is wrong with it, one process says
        with contextlib.chdir(root):
            launch(devices, "evaluate", variant, params)
        return None
    with joined(_PATIENCE) as ranks:
        return _evaluate(params, variant, ranks, root)


def _opened(params: Params, variant: str, device: torch.device, root: Path) -> tuple[Drawer, PreparedData]:
    """The model with the plan it is measured under, and the data that it fits."""
    model: Drawer
    if variant in params.composed:
        model = open_composed(params, variant, device, root=root)
        key = f"the plan of models/{variant}/{model.leading}"
        if params.evaluation.sampling:
            model, key = model.sampled_by(params.evaluation.sampling.model_dump()), "evaluation.sampling"
    else:
        sampling, key = params.measured_plan(variant)
        model = load(root / MODELS / variant, device).sampled_by(sampling, root=root)
        check_base(model, root=root)
    data = PreparedData.open(root / PREPARED)
    check_fit(model, data, f"models/{variant}", key)
    return model, data


def _evaluate_classifier(params: Params, variant: str, root: Path) -> None:
    """`evaluate_variant`, of a classifier: metrics.json, accuracy.csv and accuracy.png of it at levels of noise."""
    model, data = load(root / MODELS / variant, pick_device()), PreparedData.open(root / PREPARED)
    total = accuracy_evaluations(data, model.card.config.process.timesteps)
    with show(total, data.codec.unit, f"accuracy of {variant}") as done:
        levels = accuracy_by_noise(model, data, seed=params.seed, batch_size=params.evaluation.batch_size, on_data=done)
    metrics = {
        "model": mark_of(model.card.training.fingerprint),
        "validation_sha256": data.split("validation").sha256,
        "validation_count": len(data.split("validation")),
        "seed": params.seed,
        "accuracy": sum(level.accuracy for level in levels) / len(levels),
        "accuracy_least_noise": levels[0].accuracy,
        "cross_entropy": sum(level.cross_entropy for level in levels) / len(levels),
    }
    with atomic_directory(root / REPORTS / variant) as out:
        write_json(out / "metrics.json", metrics)
        write_bytes(out / "accuracy.csv", table(levels).encode())
        save_png(picture(levels), out / "accuracy.png", {"Model": variant})
    print(f"{variant}: " + ", ".join(f"{level.accuracy:.0%} at t = {level.t}" for level in levels))


def _evaluate_autoencoder(params: Params, variant: str, root: Path) -> None:
    """`evaluate_variant`, of an autoencoder: metrics.json, latents.csv, reconstruction.png."""
    device = pick_device()
    model, data = load(root / MODELS / variant, device), PreparedData.open(root / PREPARED)
    extractor = load_extractor(root / EXTRACTOR, weights=params.extractor.weights, device=device)
    validation = data.split("validation")
    with show(len(validation), data.codec.unit, f"reconstructions of {variant}") as done:
        found = reconstruct(model, data, extractor, batch_size=params.evaluation.batch_size, on_data=done)
    marks = {
        "model": mark_of(model.card.training.fingerprint),
        "extractor": extractor.identity["kind"],
        "extractor_sha256": extractor.identity["sha256"],
        "validation_sha256": validation.sha256,
        "validation_count": len(validation),
    }
    with atomic_directory(root / REPORTS / variant) as out:
        write_json(out / "metrics.json", marks | finite(found.figures, f"models/{variant}"))
        write_bytes(out / "latents.csv", channel_table(found.channels).encode())
        save_png(found.picture, out / "reconstruction.png", {"Model": variant, **credit(model.attribution)})
    print(f"{variant}: " + ", ".join(f"{name} {value:.4g}" for name, value in found.figures.items()))


def _evaluate_prior(params: Params, variant: str, root: Path) -> None:
    """`evaluate_variant`, of a prior: metrics.json."""
    device, data, options = pick_device(), PreparedData.open(root / PREPARED), params.evaluation
    config = params.variant(variant)
    sampling, key = params.measured_plan(variant)
    model = load(root / MODELS / variant, device).sampled_by(sampling, root=root)
    check_plan(model, f"models/{variant}", key)
    used = used_encoder(config, data, f"models.{variant}", device, root=root)
    if used is None or used.embeddings is None or model.card.data.encoder is None:
        raise UserError(f"models/{variant} is no prior: it was trained without codec.embedding")
    if model.card.data.encoder.sha256 != used.space.sha256:
        name, found = used.space.variant, model.card.data.encoder.sha256[:12]
        raise UserError(
            f"models/{variant} draws embeddings of {name} {found}, which now has {used.space.sha256[:12]}: run `ddpm "
            f"train {variant}`"
        )
    counts = [min(options.samples, len(data.split(split))) for split in SPLITS]
    with show(sum(counts), model.codec.unit, f"embeddings of {variant}") as done:
        figures = prior_figures(
            model,
            used.space,
            used.embeddings,
            data,
            count=options.samples,
            seed=params.seed,
            batch_size=options.batch_size,
            on_data=done,
        )
    marks = {
        "model": mark_of(model.card.training.fingerprint),
        "encoder": f"{used.space.variant} {used.space.sha256[:12]}",
        "validation_sha256": data.split("validation").sha256,
        "validation_count": counts[SPLITS.index("validation")],
        "train_count": counts[SPLITS.index("train")],
        "seed": params.seed,
        "sampling": decisive_choices(sampling.model_dump(), variance=config.process.variance),
    }
    with atomic_directory(root / REPORTS / variant) as out:
        write_json(out / "metrics.json", marks | finite(figures, f"models/{variant}"))
    print(f"{variant}: {_of_embeddings(figures)}")


def _of_embeddings(figures: Mapping[str, float]) -> str:
    """The figures of a prior in words, those of the validation captions."""

    def within(key: str) -> str:
        value, low, high = (figures[f"{key}{end}"] for end in ("", "_low", "_high"))
        return f"{value:.3g} [{low:.3g}, {high:.3g}]"

    shares = ", ".join(
        f"R@{place} {within(f'r_{place}')}, at random {figures[f'r_{place}_chance']:.2g}" for place in PLACES
    )
    return (
        f"cosine to the embedding of the true picture {within('cosine')}, of the caption's own embedding "
        f"{figures['cosine_text']:.3g}, of a random picture's {figures['cosine_random']:.3g}; {shares}"
    )


def _evaluate_clip(params: Params, variant: str, root: Path) -> None:
    """`evaluate_variant`, of a CLIP: metrics.json, nearest.png."""
    data = PreparedData.open(root / PREPARED)
    model, space = open_space(variant, data.codec, f"models/{variant}", root, pick_device())
    figures: dict[str, float] = {"scale": float(space.network.scale)}
    with show(len(SPLITS), "splits", f"retrieval by {variant}") as done:
        for name in reversed(SPLITS):
            figures |= joint_retrieval(space, data.split(name)).figures(name)
            done(1)
    marks = {
        "model": mark_of(model.fingerprint),
        "validation_sha256": data.split("validation").sha256,
        "validation_count": len(data.split("validation")),
        "train_count": len(data.split("train")),
    }
    with atomic_directory(root / REPORTS / variant) as out:
        write_json(out / "metrics.json", marks | finite(figures, f"models/{variant}"))
        facts = {"Model": variant, **credit(model.attribution)}
        save_png(nearest_pictures(space, data), out / "nearest.png", facts)
    for what in ("caption", "image"):
        key = f"validation_{what}_r"
        shares = ", ".join(f"R@{place} {figures[f'{key}_{place}']:.1%}" for place in PLACES)
        print(f"{variant}: the right {what} {shares}, at random {figures[f'{key}_1_chance']:.1%}")


_ACCESSORIES = {
    "classifier": _evaluate_classifier,
    "autoencoder": _evaluate_autoencoder,
    "clip": _evaluate_clip,
}


def _other_figures(config: ModelConfig) -> Callable[[Params, str, Path], None] | None:
    """What evaluates a model that draws no data of the prepared kind; None of others."""
    return _evaluate_prior if config.codec.embedding is not None else _ACCESSORIES.get(config.network.kind)


def _loss_curve(path: Path) -> str:
    """The text of a training's curve; empty where there is none.

    Raises:
        UserError: it is not one.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        column(text, "step", "loss")
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from None
    return text


def _evaluate(params: Params, variant: str, ranks: Ranks, root: Path) -> Measurement | None:
    """`evaluate_variant`, in one of the processes that draw the samples; the first does all else."""
    options, device = params.evaluation, pick_device()
    model, data = _opened(params, variant, device, root)
    loss = _loss_curve(root / MODELS / variant / "loss.csv")
    asked = asked_for(options, model.columns, data)
    drawn = sharded_batches(model, ranks, options.samples, seed=params.seed, batch_size=options.batch_size, **asked)
    if not ranks.first:
        for _ in drawn:
            raise AssertionError("the first process has all batches")
        return None
    facts = facts_of(model)
    measured = measure(
        model,
        params,
        facts,
        data=data,
        root=root,
        device=device,
        name=f"models/{variant}",
        drawn=drawn,
        show=show,
    )
    protocol = measured.protocol
    more = _of_links(model, params, data) if len(model.links) > 1 else _of_model(cast(Model, model), params, data, loss)
    metrics = {**measured.metrics, **finite(more.figures, f"models/{variant}")}
    marks = {"protocol": protocol.id, "model": mark_of(model.fingerprint), **more.marks}
    with atomic_directory(root / REPORTS / variant) as out:
        noted = {} if model.attribution is None else {"attribution": model.attribution}
        write_json(out / "metrics.json", {**marks, **noted, **metrics})
        write_json(out / "protocol.json", {"id": protocol.id, **protocol.as_dict()})
        facts_of_pictures = origin(
            model=variant,
            training=mark_of(model.fingerprint),
            seed=params.seed,
            sampling=facts.sampling.model_dump(),
            variance=facts.variance,
            protocol=protocol.id,
            attribution=model.attribution,
            other_plans=model.other_plans,
        )
        for name, picture in {**measured.pictures, **more.pictures}.items():
            save_png(captioned(picture, f"protocol {protocol.id}"), out / name, facts_of_pictures)
        more.write(out, facts_of_pictures)
    return replace(measured, metrics=metrics)


class _More(NamedTuple):
    """What is said of one kind of model alone.

    Attributes:
        marks: that stand before the figures in metrics.json.
        pictures: by file name, without captions.
        write: writes other files into a directory; the argument after it goes into each picture's file.
    """

    figures: dict[str, float]
    marks: dict[str, Any]
    pictures: dict[str, Image.Image]
    write: Callable[[Path, Mapping[str, str]], None]


def _of_model(model: Model, params: Params, data: PreparedData, loss: str) -> _More:
    """The likelihood, the cost, and the way to the data.

    Args:
        loss: as `_loss_curve` reads it.
    """
    bounds = split_bounds(model, data, params.evaluation, seed=params.seed, show=show)
    by_ode = split_ode_likelihoods(model, data, params.evaluation, seed=params.seed, show=show)
    if model.autoencoder is not None:
        print(f"{model.variant}: no likelihood, which is of numbers on 256 levels: latents are continuous")
    with show(2, "steps", f"cost and way to data of {model.variant}") as done:
        cost = gigaflops_per_image(model)
        done(1)
        shown = denoising(model, data, params.seed)
        done(1)
    table = likelihood_table(bounds)
    pictures = {"denoising.png": shown.picture, **_with_hints(model, params, data)}

    def write(out: Path, facts: Mapping[str, str]) -> None:
        write_bytes(out / "nll.csv", table.encode())
        if drawn := curves(loss, table):
            save_png(drawn, out / "curves.png", facts)
        write_bytes(out / "denoising.gif", shown.film(facts))

    figures = {**likelihood_figures(bounds, by_ode), "gflops_per_image": cost}
    return _More(figures, {}, pictures, write)


def _with_hints(model: Model, params: Params, data: PreparedData) -> dict[str, Image.Image]:
    """hints.png, of a model with controls: hints of validation images, and what is drawn of each."""
    hints = hint_columns(model.columns)
    if not hints:
        return {}
    count = min(SHOWN_PAIRS, params.evaluation.samples)
    given = model.given(count, seed=params.seed, **asked_for(params.evaluation, model.columns, data))
    drawn = model.draw(count, model.plan(), seed=params.seed, given=given)
    return {"hints.png": in_turn([*(hint.as_picture(given[hint.name], drawn.shape[-1]) for hint in hints), drawn])}


def _of_links(cascade: Drawer, params: Params, data: PreparedData) -> _More:
    """The cost of all links, their weights, and what each of them draws. No likelihood is bounded of a cascade."""
    costs = {name: gigaflops_per_image(cast(Model, link)) for name, link in cascade.links.items()}
    others = sum(cost for name, cost in costs.items() if name != cascade.leading)
    figures = {"gflops_per_image": costs[cascade.leading] + others, OTHER_LINKS: others}
    marks = {name: f"{link.variant} {mark_of(link.fingerprint)}" for name, link in cascade.links.items()}
    asked = asked_for(params.evaluation, cascade.columns, data)
    given = cascade.given(SHOWN_PAIRS, seed=params.seed, **asked)
    (drawn,) = cascade.draw_links(cascade.plan(), [cascade.part(SHOWN_PAIRS, seed=params.seed, given=given)])
    picture = in_turn([data_of(drawn)[name] for name, link in cascade.links.items() if link.codec.pictures])
    return _More(figures, {"links": marks}, {"links.png": picture}, lambda out, facts: None)
