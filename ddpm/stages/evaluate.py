"""`ddpm evaluate V`: figures with their protocol, and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ddpm.config import Params
from ddpm.data.store import PreparedData
from ddpm.device import pick_device
from ddpm.diffusion import sampling
from ddpm.errors import UserError
from ddpm.evaluation.distances import MAX_COUNT, chosen, mmd, wasserstein
from ddpm.evaluation.extractor import Extractor, coordinates, load_coordinates, load_extractor
from ddpm.evaluation.metrics import extract, frechet_distance, inception_score
from ddpm.evaluation.pictures import grid, save_png
from ddpm.evaluation.plots import processes, side_by_side
from ddpm.evaluation.protocol import EvaluationProtocol
from ddpm.files import atomic_directory, write_json
from ddpm.layout import EXTRACTOR, MODELS, PREPARED, REPORTS
from ddpm.model import Model, load
from ddpm.stages.progress import bar

GRID_COLUMNS, GRID_IMAGES = 8, 64
STRIP_IMAGES, STRIP_MOMENTS = 8, 11
SHOWN_VALUES, SHOWN_MOMENTS = 2000, 5


def evaluate_variant(params: Params, variant: str, *, root: Path = Path()) -> None:
    """Write `reports/V/`: metrics.json, protocol.json, samples.png and denoising.png.

    Raises:
        UserError: the model, the extractor or the prepared data is missing or damaged.
    """
    device = pick_device()
    config = params.variant(variant)
    model = load(root / MODELS / variant, device).sampled_by(config.sampling)
    data = PreparedData.open(root / PREPARED)
    if model.kind.name != data.kind.name:
        raise UserError(f"models/{variant} makes {model.kind.name}, but the prepared data are {data.kind.name}")
    measured_as: type[_Images] | type[_Values] = _Images if data.kind.name == "images" else _Values
    measured: _Measured = measured_as(root, params, data, device)
    protocol = _protocol(params, model, data, measured.identity)

    options = params.evaluation
    with bar(options.samples, "img", f"samples of {variant}") as progress:
        images = model.sample(
            options.samples,
            seed=params.seed,
            batch_size=options.batch_size,
            on_batch=lambda done: progress.update(done - progress.n),
        )
    with atomic_directory(root / REPORTS / variant) as out:
        write_json(out / "metrics.json", {"protocol": protocol.id, **measured.figures(images)})
        write_json(out / "protocol.json", {"id": protocol.id, **protocol.as_dict()})
        save_png(measured.samples(images), out / "samples.png")
        save_png(measured.denoising(model), out / "denoising.png")


class _Measured(Protocol):
    """How one kind of data is measured and drawn."""

    identity: dict[str, Any]  # what enters the protocol: the kind of features, and their hash

    def figures(self, generated: NDArray[Any]) -> dict[str, float | int]: ...

    def samples(self, generated: NDArray[Any]) -> Image.Image: ...

    def denoising(self, model: Model) -> Image.Image: ...


class _Images:
    """FID and IS; grids."""

    def __init__(self, root: Path, params: Params, data: PreparedData, device: torch.device) -> None:
        _check_enough(params, len(data.split("validation")))
        self._extractor = load_extractor(root / EXTRACTOR, weights=params.extractor.weights, device=device)
        self.identity = self._extractor.identity
        self._params, self._data = params, data

    def figures(self, generated: NDArray[np.uint8]) -> dict[str, float | int]:
        return measure(generated, self._data, self._extractor, self._params)

    def samples(self, generated: NDArray[np.uint8]) -> Image.Image:
        return grid(generated[:GRID_IMAGES], GRID_COLUMNS)

    def denoising(self, model: Model) -> Image.Image:
        return denoising_strip(model, self._params.seed)


class _Values:
    """Wasserstein distance and MMD of points or sequences; plots."""

    def __init__(self, root: Path, params: Params, data: PreparedData, device: torch.device) -> None:
        self.identity = load_coordinates(root / EXTRACTOR)
        self._seed, self._data = params.seed, data

    def figures(self, generated: NDArray[np.float32]) -> dict[str, float | int]:
        """Each with its floor: what the validation data score against the same training data."""
        splits = [self._data.split("train"), self._data.split("validation")]
        count = min(len(generated), MAX_COUNT, *map(len, splits))
        reference, validation = (
            coordinates(self._data.kind, split.rows(chosen(len(split), count, self._seed))) for split in splits
        )
        samples = coordinates(self._data.kind, generated[:count])
        bandwidth = self.identity["bandwidth"]
        return {
            "wasserstein": wasserstein(samples, reference),
            "wasserstein_floor": wasserstein(validation, reference),
            "mmd": mmd(samples, reference, bandwidth),
            "mmd_floor": mmd(validation, reference, bandwidth),
            "samples": len(generated),
            "same_count": count,
        }

    def samples(self, generated: NDArray[np.float32]) -> Image.Image:
        return side_by_side([("real", self._real()), ("generated", generated[:SHOWN_VALUES])])

    def denoising(self, model: Model) -> Image.Image:
        """The forward process of real data above the reverse process of generated ones (Sohl-Dickstein et al. 2015)."""
        return forward_and_reverse(model, self._real(), self._seed)

    def _real(self) -> NDArray[np.float32]:
        split = self._data.split("validation")
        return split.rows(chosen(len(split), SHOWN_VALUES, self._seed))


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


def _protocol(params: Params, model: Model, data: PreparedData, extractor: Mapping[str, Any]) -> EvaluationProtocol:
    plan = model.card.config.sampling
    reference = data.split("train")
    return EvaluationProtocol(
        extractor=extractor["kind"],
        extractor_sha256=extractor["sha256"],
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
    columns = [model.kind.decode(states[moment].cpu().numpy()) for moment in moments]
    rows = np.stack(columns, axis=1).reshape(-1, *model.shape)
    return grid(rows, len(moments))


def forward_and_reverse(model: Model, real: NDArray[np.float32], seed: int) -> Image.Image:
    """Real data [N, ...] on their way to noise, t rising, above noise on its way to data, t falling."""
    kind = model.kind
    x0 = kind.encode(torch.from_numpy(real)).to(model.device)
    process, noise = model.process(), model.noise(len(x0), seed)
    forward = [(0, real)]
    for t in np.unique(np.linspace(0, process.timesteps - 1, SHOWN_MOMENTS).round().astype(int))[1:]:
        xt = process.q_sample(x0, torch.full((len(x0),), int(t), device=model.device), noise())
        forward.append((int(t) + 1, kind.decode(xt.cpu().numpy())))

    plan = model.plan()
    x = noise()
    states = [x, *(state for state, _ in sampling.trajectory(model.network, plan, x, noise))]
    times = [*(t + 1 for t, _ in plan.rows()), 0]
    moments = np.unique(np.linspace(0, len(states) - 1, SHOWN_MOMENTS).round().astype(int))
    reverse = [(times[moment], kind.decode(states[moment].cpu().numpy())) for moment in moments]
    return processes([("forward", forward), ("reverse", reverse)])
