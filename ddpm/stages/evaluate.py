"""`ddpm evaluate V`: figures with their protocol, and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddpm.config import Params
from ddpm.data.store import PreparedData
from ddpm.device import pick_device
from ddpm.diffusion import sampling
from ddpm.diffusion.pixels import to_uint8
from ddpm.errors import UserError
from ddpm.evaluation.extractor import Extractor, load_extractor
from ddpm.evaluation.metrics import extract, frechet_distance, inception_score
from ddpm.evaluation.pictures import grid, save_png
from ddpm.evaluation.protocol import EvaluationProtocol
from ddpm.files import atomic_directory, write_json
from ddpm.model import Model, load
from ddpm.stages.layout import EXTRACTOR, MODELS, PREPARED, REPORTS
from ddpm.stages.progress import bar

GRID_COLUMNS, GRID_IMAGES = 8, 64
STRIP_IMAGES, STRIP_MOMENTS = 8, 11


def evaluate_variant(params: Params, variant: str, *, root: Path = Path()) -> None:
    """Write `reports/V/`: metrics.json, protocol.json, samples.png and denoising.png.

    Raises:
        UserError: the model, the extractor or the prepared data is missing or damaged.
    """
    device = pick_device()
    config = params.variant(variant)
    model = load(root / MODELS / variant, device).sampled_by(config.sampling)
    data = PreparedData.open(root / PREPARED)
    _check_enough(params, len(data.split("validation")))
    extractor = load_extractor(root / EXTRACTOR, weights=params.extractor.weights, device=device)
    protocol = _protocol(params, model, data, extractor)

    options = params.evaluation
    with bar(options.samples, "img", f"samples of {variant}") as progress:
        images = model.sample(
            options.samples,
            seed=params.seed,
            batch_size=options.batch_size,
            on_batch=lambda done: progress.update(done - progress.n),
        )
    with atomic_directory(root / REPORTS / variant) as out:
        write_json(out / "metrics.json", {"protocol": protocol.id, **measure(images, data, extractor, params)})
        write_json(out / "protocol.json", {"id": protocol.id, **protocol.as_dict()})
        save_png(grid(images[:GRID_IMAGES], GRID_COLUMNS), out / "samples.png")
        save_png(denoising_strip(model, params.seed), out / "denoising.png")


def _check_enough(params: Params, validation: int) -> None:
    """Refuse before the work what no figure could be computed of."""
    splits = params.evaluation.splits
    for count, what in (
        (params.evaluation.samples, "evaluation.samples"),
        (validation, "the number of validation images"),
    ):
        if count < 2 * splits:
            raise UserError(
                f"{what} is {count}, but an Inception Score of evaluation.splits = {splits} parts needs at least "
                f"{2 * splits}: use more images or fewer splits"
            )


def measure(
    images: NDArray[np.uint8], data: PreparedData, extractor: Extractor, params: Params
) -> dict[str, float | int]:
    """FID, IS, and what real images score under the same measures.

    `fid_floor` is the FID of the real validation images, `inception_score_real` their IS. Both measures depend on the
    number of images, so `…_same_count` are those of as many generated ones, and only these compare with the real ones.
    """
    size, splits = params.evaluation.batch_size, params.evaluation.splits
    validation_split = data.split("validation")
    reference = extract(extractor, data.split("train").batches(size))
    validation = extract(extractor, validation_split.batches(size))
    generated = extract(extractor, _batches(images, size))
    same_count = min(len(validation), len(generated))
    score, deviation = inception_score(generated, splits)
    as_many = generated.spread(same_count)
    real = validation.spread(same_count)
    return {
        "fid": frechet_distance(generated, reference),
        "fid_same_count": frechet_distance(as_many, reference),
        "fid_floor": frechet_distance(real, reference),
        "inception_score": score,
        "inception_score_std": deviation,
        "inception_score_same_count": inception_score(as_many, splits)[0],
        "inception_score_real": inception_score(real, splits)[0],
        "samples": len(generated),
        "same_count": same_count,
    }


def _batches(images: NDArray[np.uint8], size: int) -> Iterator[NDArray[np.uint8]]:
    return (images[first : first + size] for first in range(0, len(images), size))


def _protocol(params: Params, model: Model, data: PreparedData, extractor: Extractor) -> EvaluationProtocol:
    plan = model.card.config.sampling
    reference = data.split("train")
    return EvaluationProtocol(
        extractor=extractor.identity["kind"],
        extractor_sha256=extractor.identity["sha256"],
        reference="train",
        reference_sha256=reference.sha256,
        reference_count=len(reference),
        samples=params.evaluation.samples,
        sampler=plan.sampler,
        steps=plan.steps,
        variance=plan.variance or model.card.config.process.variance,
        eta=plan.eta,
        spacing=plan.spacing,
        clip=plan.clip,
        dynamic_threshold=plan.dynamic_threshold,
        weights=model.card.training.weights,
        splits=params.evaluation.splits,
        seed=params.seed,
    )


def denoising_strip(model: Model, seed: int) -> Image.Image:
    """A row an image, from x_T on the left to x_0 on the right."""
    noise = model.noise(STRIP_IMAGES, seed)
    x = noise()
    plan = model.plan()
    states = [x, *(state for state, _ in sampling.trajectory(model.network, plan, x, noise))]
    moments = np.unique(np.linspace(0, len(states) - 1, STRIP_MOMENTS).round().astype(int))
    columns = [to_uint8(states[moment]).cpu().numpy() for moment in moments]
    rows = np.stack(columns, axis=1).reshape(-1, *model.shape)
    return grid(rows, len(moments))
