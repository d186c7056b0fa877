"""`ddpm sample MODEL`: images from a model directory, a deploy directory or a registered model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.kinds import DataKind
from ddpm.errors import UserError
from ddpm.files import atomic_directory, atomic_file
from ddpm.layout import find_model, is_uri

if TYPE_CHECKING:
    from ddpm.deploy.runtime import Precision, Sampler
    from ddpm.model import Model


def sample_to(
    model: str,
    out: Path,
    *,
    count: int,
    seed: int = 0,
    batch_size: int = 64,
    precision: Precision = "fp32",
    **overrides: Any,
) -> NDArray[Any]:
    """Draw data and write them where `out` says: FILE.npz (key `images`, `points` or `sequences`), FILE.png (a
    picture of all), or, of images, a directory of PNGs.

    Raises:
        UserError: no such model, numbers that no plan can be made of, or an `out` that cannot be written.
    """
    if count < 1:
        raise UserError(f"--n must be at least 1, found {count}")
    if batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, found {batch_size}")
    if not 0 <= seed < 2**64:
        raise UserError(f"--seed must be in 0..2**64-1, found {seed}")
    write = _writer(out)
    opened = open_model(model, precision)
    if write is _write_directory and opened.kind.name != "images":
        raise UserError(
            f"--out {out}: a directory is for images; {model} makes {opened.kind.name}: use FILE.npz or FILE.png"
        )
    try:
        opened.plan(**overrides)
    except ValueError as error:
        raise UserError(str(error)) from None
    with _progress(count, opened.kind, f"samples of {model}") as on_batch:
        images = opened.sample(count, seed=seed, batch_size=batch_size, on_batch=on_batch, **overrides)
    write(images, out, opened.kind, _origin_of(opened, seed, overrides))
    return images


@contextlib.contextmanager
def _progress(count: int, kind: DataKind, describe: str) -> Iterator[Callable[[int], object]]:
    """A bar that is moved to as many as are done; none where tqdm is not installed, as beside an exported model."""
    try:
        from ddpm.stages.progress import bar
    except ModuleNotFoundError:
        yield lambda done: None
        return
    with bar(count, kind.unit, describe) as progress:
        yield progress.reach


def _origin_of(opened: Model | Sampler, seed: int, overrides: dict[str, Any]) -> dict[str, str]:
    """What pictures of the samples say of where they are from."""
    from ddpm.evaluation.pictures import origin
    from ddpm.figures.protocol import mark_of

    if hasattr(opened, "card"):
        card = opened.card
        model, training = card.variant, card.training.fingerprint
        sampling, variance = card.config.sampling.model_dump(), card.config.process.variance
    else:
        facts = opened.facts
        model, training = facts.get("variant", ""), facts.get("training", {}).get("fingerprint", "")
        sampling, variance = facts["sampling"], facts["process"]["variance"]
    chosen = {**sampling, **{name: value for name, value in overrides.items() if value is not None}}
    return origin(model=model, training=mark_of(training), seed=seed, sampling=chosen, variance=variance)


def open_model(model: str, precision: Precision = "fp32") -> Model | Sampler:
    """What MODEL names: a model directory (torch), a deploy directory (onnxruntime) or an MLflow URI (onnxruntime); of
    this project also by its name alone.

    Raises:
        UserError: no such model, or none of this precision.
    """
    if is_uri(model):
        return open_registered(model, precision=precision)
    directory = find_model(model)
    if not (directory / "model.json").is_file():
        return _exported(directory, precision)
    if precision != "fp32":
        raise UserError(f"--precision {precision} is for exported models; {directory} is a trained one")
    return _trained(directory)


def _trained(directory: Path) -> Model:
    """A model directory, on the best device."""
    from ddpm.compute.device import pick_device
    from ddpm.opening import trained

    return trained(directory, pick_device())


def open_registered(uri: str, root: Path = Path(), precision: Precision = "fp32") -> Sampler:
    """What an MLflow URI names.

    Raises:
        UserError: no such model, or none of this precision.
    """
    from ddpm import tracking

    return _exported(tracking.resolve(uri, root), precision)


def _exported(directory: Path, precision: Precision) -> Sampler:
    """A deploy directory, and a line about what it runs on."""
    from ddpm.deploy.runtime import Sampler

    sampler = Sampler(directory, precision=precision)
    print(f"sampling with {sampler.where}")
    return sampler


def _writer(out: Path) -> Any:
    """The function that writes images to `out`, chosen before any work is done."""
    if out.suffix.lower() == ".npz":
        return _write_npz
    if out.suffix.lower() == ".png":
        return _write_picture
    if out.suffix:
        raise UserError(f"--out {out}: expected FILE.npz, FILE.png or a directory")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is not an empty directory")
    return _write_directory


def _write_npz(images: NDArray[Any], out: Path, kind: DataKind, facts: dict[str, str]) -> None:
    with atomic_file(out) as temporary, temporary.open("wb") as stream:
        arrays: dict[str, Any] = {kind.name: images}
        np.savez_compressed(stream, **arrays)


def _write_picture(images: NDArray[Any], out: Path, kind: DataKind, facts: dict[str, str]) -> None:
    from ddpm.evaluation.pictures import WIDTH, grid, save_png
    from ddpm.evaluation.plots import side_by_side

    with atomic_file(out) as temporary:
        if kind.name == "images":
            save_png(grid(images, max(1, round(len(images) ** 0.5)), width=WIDTH), temporary, facts)
        else:
            save_png(side_by_side([("generated", images)]), temporary, facts)


def _write_directory(images: NDArray[np.uint8], out: Path, kind: DataKind, facts: dict[str, str]) -> None:
    from ddpm.evaluation.pictures import as_picture, save_png

    digits = len(str(len(images) - 1))
    with atomic_directory(out) as temporary:
        for index, image in enumerate(images):
            save_png(as_picture(image), temporary / f"{index:0{digits}d}.png", {**facts, "Sample": str(index)})
