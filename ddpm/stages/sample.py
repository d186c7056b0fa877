"""`ddpm sample MODEL`: images from a model directory, a deploy directory or a registered model."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ddpm.codecs.embedding import Embedding
from ddpm.codecs.scale import Codec
from ddpm.conditioning.columns import NAMES, PICTURES, Column, PromptColumn
from ddpm.drawer import Drawer
from ddpm.drawer.likeness import Likeness
from ddpm.errors import DdpmWarning, UserError, brief, listed
from ddpm.files import atomic_directory, atomic_file
from ddpm.opening import load
from ddpm.stages.alike import Alike

if TYPE_CHECKING:
    from ddpm.deploy.runtime import Precision, Sampler
    from ddpm.drawer.cascade import Cascade
    from ddpm.model import Model


def sample_to(
    model: str,
    out: Path,
    *,
    count: int,
    seed: int = 0,
    batch_size: int = 64,
    precision: Precision = "fp32",
    guide: str | None = None,
    pictures: Mapping[str, Path | None] | None = None,
    alike: Alike | None = None,
    **overrides: Any,
) -> NDArray[Any]:
    """Draw data and write them where `out` says: FILE.npz (key `images`, `points` or `sequences`), FILE.png (a
    picture of all), or, of images, a directory of PNGs.

    Args:
        pictures: of the columns `low`, `image` and `mask`, a file or a directory of files, which are taken in turn.
        alike: pictures that the data are to be like, of a model that draws those of embeddings.

    Raises:
        UserError: no such model, numbers that no plan can be made of, a picture that cannot be read or has another
            size, or an `out` that cannot be written.
    """
    files = {name: path for name, path in (pictures or {}).items() if path is not None}
    if count < 1:
        raise UserError(f"--n must be at least 1, found {count}")
    if batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, found {batch_size}")
    if not 0 <= seed < 2**64:
        raise UserError(f"--seed must be in 0..2**64-1, found {seed}")
    if alike is not None:
        alike.check()
    write = _writer(out)
    opened = open_model(model, precision)
    if write is _write_picture and isinstance(opened.codec, Embedding):
        raise UserError(f"--out {out}: {model} draws embeddings, which no picture shows: use FILE.npz")
    if guide is not None:
        if not hasattr(opened, "guided_by"):
            what = "a cascade" if len(opened.links) > 1 else "an exported one"
            raise UserError(f"--guide is for a trained model, such as models/V; {model} is {what}")
        opened = opened.guided_by(guide)
    if write is _write_directory and not opened.codec.pictures:
        raise UserError(
            f"--out {out}: a directory is for images; {model} makes {opened.codec.name}: use FILE.npz or FILE.png"
        )
    likeness = None if alike is None else alike.likeness(opened, model)
    one_noise = likeness is not None and likeness.steps is not None
    _refuse_more({"like": [] if alike is None or one_noise else alike.files, **overrides}, count, one_noise=one_noise)
    try:
        overrides |= {name: _pictures_of(opened.column(name), path) for name, path in files.items()}
        if likeness is None:
            opened.check(overrides)
        if guide is not None:
            _refuse_unguided(opened, overrides)
    except ValueError as error:
        raise UserError(str(error)) from None
    for column in opened.columns:
        if isinstance(column, PromptColumn) and overrides.get(column.name) is not None:
            _warn_of_unread("prompt", column, overrides[column.name])
    if alike is not None and alike.change is not None and opened.encoder is not None:
        for option, text in zip(("--from", "--to"), alike.change, strict=True):
            _warn_of_unread(option, opened.encoder.column, text)
    total = count if likeness is None else likeness.steps or count
    options = {"seed": seed, "batch_size": batch_size, **overrides}
    with _progress(total, opened.codec, f"samples of {model}") as on_batch:
        if likeness is None:
            images = opened.sample(total, on_batch=on_batch, **options)
        else:
            images = _alike(opened, likeness, total, on_batch=on_batch, **options)
    pictured = {_title(name): path.name for name, path in files.items()}
    if alike is not None:
        pictured |= alike.in_words
    write(images, out, opened.codec, {**origin_of(opened, seed, overrides), **pictured})
    return images


def _refuse_more(asked: Mapping[str, Any], count: int, *, one_noise: bool) -> None:
    """
    Args:
        asked: values by their options' names; image i gets the one at i modulo their number.
        count: of the images.
        one_noise: whether all of them are drawn as image 0.

    Raises:
        UserError: an option has more values than images get.
    """
    for name in ("like", "label", "prompt"):
        found = len(asked[name]) if isinstance(asked.get(name), (list, tuple)) else 0
        if one_noise and found > 1:
            raise UserError(f"--{name}: --mix, --from and --to draw all images with the same one; found {found}")
        if found > count:
            raise UserError(f"--{name}: found {found}, more than the images that --n draws, {count}")


def _refuse_unguided(opened: Drawer, overrides: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: the plan has no guidance, for which there is a guide.
        ValueError: there is no plan.
    """
    chosen = {name: value for name, value in overrides.items() if name not in (*NAMES, *PICTURES)}
    if not opened.plan(**chosen).column("guidance").any():
        raise UserError(
            f"--guide: no step is guided: --guidance-scale is {opened.unguided_scale:g}, or --guidance-interval leaves "
            "out all steps"
        )


def _alike(opened: Drawer, likeness: Likeness, count: int, **options: Any) -> NDArray[Any]:
    """As `Drawer.alike`.

    Raises:
        UserError: where that has a ValueError.
    """
    try:
        return opened.alike(likeness, count, **options)
    except ValueError as error:
        raise UserError(str(error)) from None


def _pictures_of(column: Column, path: Path) -> NDArray[Any]:
    """The pictures of a file or a directory as values of a column, [n, *shape].

    Raises:
        UserError: a file is missing, is not an image, or has another size.
    """
    from ddpm.data.given import pictures_in, read_picture
    from ddpm.data.images import BadImageError

    files = pictures_in(path)
    if not files:
        raise UserError(f"--{column.name} {path}: the directory has no files")

    def read(file: Path) -> NDArray[Any]:
        def said(count: int) -> None:
            text = f"--{column.name} {file}: {count} pixels are neither black nor white; each counts as the nearer one"
            warnings.warn(text, DdpmWarning, stacklevel=2)

        try:
            return read_picture(column, file, on_grey=said)
        except OSError as error:
            raise UserError(f"--{column.name} {file}: {error.strerror}") from None
        except BadImageError as error:
            raise UserError(f"--{column.name} {file}: {error}") from None

    return np.stack([read(file) for file in files])


def _warn_of_unread(option: str, column: PromptColumn, asked: str | Sequence[str]) -> None:
    """Say which words of an option's texts the model cannot read."""
    for text in dict.fromkeys([asked] if isinstance(asked, str) else asked):
        (cut,) = column.tokenizer.cut([text])
        if cut:
            _warn(
                f"{option}: the model reads the first {column.tokenizer.length} tokens of {brief(text)}; {cut} more "
                "are left out"
            )
        if unknown := column.tokenizer.unknown_words(text):
            _warn(f"{option}: no training caption has these words of {brief(text)}: {listed(unknown)}")


def _warn(text: str) -> None:
    warnings.warn(text, DdpmWarning, stacklevel=3)


@contextlib.contextmanager
def _progress(count: int, codec: Codec, describe: str) -> Iterator[Callable[[int], object]]:
    """A bar that is moved to as many as are done; none where tqdm is not installed, as beside an exported model."""
    try:
        from ddpm.stages.progress import bar
    except ModuleNotFoundError:
        yield lambda done: None
        return
    with bar(count, codec.unit, describe) as progress:
        yield progress.reach


def origin_of(opened: Drawer, seed: int, overrides: dict[str, Any]) -> dict[str, str]:
    """What pictures of the samples say of where they are from."""
    from ddpm.evaluation.pictures import origin
    from ddpm.figures.protocol import mark_of

    process, sampling = opened.choices
    asked = {name: value for name, value in overrides.items() if value is not None}
    conditions = {_title(name): _in_words(asked[name]) for name in NAMES if name in asked}
    chosen = {name: value for name, value in asked.items() if name not in (*NAMES, *PICTURES)}
    found = origin(
        model=opened.variant,
        training=mark_of(opened.fingerprint),
        seed=seed,
        sampling={**sampling, **chosen},
        variance=process["variance"],
        attribution=opened.attribution,
        other_plans=opened.other_plans,
    )
    return {**found, **conditions}


def _title(name: str) -> str:
    return name.capitalize().replace("_", " ")


def _in_words(asked: Any) -> str:
    """What was asked of a column, a value or several."""
    return ", ".join(map(str, asked if isinstance(asked, (list, tuple)) else [asked]))


def open_model(model: str, precision: Precision = "fp32", root: Path = Path()) -> Model | Sampler | Cascade:
    """What MODEL names, as `ddpm.load` has it, on the best device; prints what an exported model runs on.

    Raises:
        UserError: no such model, or none of this precision.
    """
    opened = load(model, None, precision=precision, root=root)
    if opened.where:
        print(f"sampling with {opened.where}")
    return opened


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


def _write_npz(images: NDArray[Any], out: Path, codec: Codec, facts: dict[str, str]) -> None:
    with atomic_file(out) as temporary, temporary.open("wb") as stream:
        arrays: dict[str, Any] = {codec.name: images}
        np.savez_compressed(stream, **arrays)


def _write_picture(images: NDArray[Any], out: Path, codec: Codec, facts: dict[str, str]) -> None:
    from ddpm.evaluation.pictures import WIDTH, grid, save_png
    from ddpm.evaluation.plots import side_by_side

    with atomic_file(out) as temporary:
        if codec.pictures:
            save_png(grid(images, max(1, round(len(images) ** 0.5)), width=WIDTH), temporary, facts)
        else:
            save_png(side_by_side([("generated", images)]), temporary, facts)


def _write_directory(images: NDArray[np.uint8], out: Path, codec: Codec, facts: dict[str, str]) -> None:
    from ddpm.evaluation.pictures import as_picture, save_png

    digits = len(str(len(images) - 1))
    with atomic_directory(out) as temporary:
        for index, image in enumerate(images):
            save_png(as_picture(image), temporary / f"{index:0{digits}d}.png", {**facts, "Sample": str(index)})
