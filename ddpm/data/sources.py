"""The upstreams: how each one's published bytes get here, and how images are read from them."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddpm.config.data import DataConfig
from ddpm.data import arrays, emoji, folder
from ddpm.data.images import Levels, RawImages, Sample, decode
from ddpm.errors import UpstreamError, UserError, brief, listed

_DIGITS = "digits.csv.gz"
_CELEBA, _CELEBA_PARTITION = "img_align_celeba.zip", "list_eval_partition.txt"
_CELEBA_ATTRIBUTES = "list_attr_celeba.txt"


@dataclass(frozen=True)
class Source:
    """One upstream.

    `fetch` puts the files, exactly as published, into an empty directory (UserError, UpstreamError);
    `read` finds the images, or the array, in such a directory, without a network (UserError);
    `read_split` does too where the upstream publishes images for validation or test, and marks them.
    """

    fetch: Callable[[Path], None]
    read: Callable[[Path], RawImages | arrays.RawArray]
    read_split: Callable[[Path], RawImages] | None = None


def source_of(config: DataConfig, root: Path) -> Source:
    """The upstream that `data.source` names; `data.path` is relative to `root`."""
    if config.source == "sequences" and config.path is not None:
        return Source(partial(arrays.copy_sequences, root / Path(config.path).expanduser()), arrays.read_sequences)
    if config.path is not None:
        return Source(
            partial(folder.copy, root / Path(config.path).expanduser(), subfolders=config.subfolders),
            partial(folder.read, subfolders=config.subfolders, captions=config.captions),
        )
    return {
        "digits": Source(_fetch_digits, _read_digits),
        "emoji": Source(emoji.fetch, partial(emoji.read, size=config.image_size or emoji.SIZE)),
        "mnist": _torchvision_source("MNIST", "MNIST/raw"),
        "fashion-mnist": _torchvision_source("FashionMNIST", "FashionMNIST/raw"),
        "cifar10": _torchvision_source("CIFAR10", "."),
        "celeba": Source(
            partial(_download, "CelebA"),
            partial(_read_celeba, attribute=config.attribute),
            partial(_read_celeba, attribute=config.attribute, split=True),
        ),
        "swiss-roll": Source(arrays.make_swiss_roll, arrays.read_points),
    }[config.source]


def _fetch_digits(into: Path) -> None:
    """Scikit-learn's own copy of the UCI optical digits, found without importing scikit-learn."""
    try:
        published = metadata.distribution("scikit-learn").locate_file(f"sklearn/datasets/data/{_DIGITS}")
    except metadata.PackageNotFoundError:
        raise UserError("data.source: digits come with scikit-learn, which is not installed") from None
    shutil.copyfile(str(published), into / _DIGITS)


def _read_digits(data: Path) -> RawImages:
    """1,797 digits of 8×8: a row is 64 counts in 0..16, scaled to 0..255, and the digit."""
    table = np.loadtxt(data / _DIGITS, delimiter=",", dtype=np.int64)
    images = np.round(table[:, :64] * 255 / 16).astype(np.uint8).reshape(-1, 8, 8)
    return _in_memory([Image.fromarray(image) for image in images], table[:, 64], [str(digit) for digit in range(10)])


def _download(name: str, into: Path) -> None:
    """Have torchvision download and verify a data set, and keep what was published, not what was unpacked of it."""
    if name == "CelebA" and importlib.util.find_spec("gdown") is None:
        raise UserError("data.source: celeba needs the package gdown to be downloaded: pip install gdown")
    with tempfile.TemporaryDirectory(dir=into) as scratch:
        try:
            _torchvision(name)(scratch, download=True)
        except Exception as error:  # URLError, RuntimeError, and whatever the drive's client raises
            raise UpstreamError(f"{name}: the download failed: {' '.join(str(error).split())}") from error
        for file in _published(name):
            next(Path(scratch).rglob(file)).replace(into / file)


def _torchvision(name: str) -> Any:
    import torchvision.datasets  # seconds, and only these sources need it

    return getattr(torchvision.datasets, name)


def _published(name: str) -> list[str]:
    """The names of a torchvision data set's files as the upstream has them."""
    dataset = _torchvision(name)
    match name:
        case "CIFAR10":
            return [dataset.filename]
        case "CelebA":
            return [file for _, _, file in dataset.file_list]
        case _:
            return [file for file, _ in dataset.resources]


def _torchvision_source(name: str, where: str) -> Source:
    """MNIST and Fashion-MNIST, 60,000 training and 10,000 test images of 28×28×1, or CIFAR-10, 50,000 and 10,000 of
    32×32×3. torchvision verifies each batch of CIFAR-10 before unpickling it.

    Args:
        where: torchvision looks for the unpacked files there.
    """
    read = partial(_unpacked, name, where=where)
    return Source(partial(_download, name), partial(read, parts=(True,)), partial(read, parts=(True, False)))


def _unpacked(name: str, data: Path, *, where: str, parts: tuple[bool, ...]) -> RawImages:
    """Unpack the archives where torchvision looks for their content, and have it read the training part (True) and
    the test part (False), one after the other."""
    from torchvision.datasets.utils import extract_archive

    with tempfile.TemporaryDirectory() as scratch:
        unpacked = Path(scratch, where)
        unpacked.mkdir(parents=True, exist_ok=True)
        try:
            for file in _published(name):
                extract_archive(data / file, unpacked)
            # A part holds all its images in memory: 47 or 150 MB.
            datasets = [_torchvision(name)(scratch, train=train) for train in parts]
            for dataset in datasets:
                if len(dataset.targets) != len(dataset):
                    raise ValueError(f"{len(dataset)} images, but {len(dataset.targets)} labels")
        except Exception as error:  # of gzip, of tarfile, or torchvision's own
            reason = " ".join(str(error).split())
            raise UserError(f"{data}: not {name} as published ({reason}); run `ddpm fetch`") from None
    labels = [int(label) for dataset in datasets for label in dataset.targets]
    return _in_memory(_Images(datasets), labels, datasets[0].classes, trained_on=len(datasets[0]))


class _Images:
    """The images of torchvision data sets, one after the other, as a sequence."""

    def __init__(self, datasets: list[Any]) -> None:
        self._datasets = datasets

    def __len__(self) -> int:
        return sum(map(len, self._datasets))

    def __getitem__(self, index: int) -> Image.Image:
        for dataset in self._datasets:
            if index < len(dataset):
                return dataset[index][0]
            index -= len(dataset)
        raise IndexError


def _in_memory(images: Any, labels: Any, classes: list[str], trained_on: int | None = None) -> RawImages:
    """Images that are decoded already; those after the first `trained_on` are held out, or none is."""
    first_held_out = len(images) if trained_on is None else trained_on

    def load(row: int, levels: Levels) -> Image.Image:
        image: Image.Image = images[row]
        return levels.apply(image, 8)

    samples = (
        Sample(f"image {row}", partial(load, row), int(label), held_out=row >= first_held_out)
        for row, label in enumerate(labels)
    )
    return RawImages(len(images), tuple(classes), samples)


def _read_celeba(data: Path, *, attribute: str | None = None, split: bool = False) -> RawImages:
    """202,599 faces of 178×218×3, read from the archive as they are asked for.

    The 40 attributes are not classes, so there are no labels unless one of them is named.

    Args:
        attribute: one of them: its two values are the classes.
        split: mark as held out what is published for validation and for test, 39,829 images.
    """
    held_out = _published_as_held_out(data / _CELEBA_PARTITION) if split else set()
    labels = _values_of(attribute, data / _CELEBA_ATTRIBUTES) if attribute else {}
    try:
        archive = zipfile.ZipFile(data / _CELEBA)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{data / _CELEBA}: not CelebA as published ({error}); run `ddpm fetch`") from None
    names = sorted(name for name in archive.namelist() if not name.endswith("/"))
    if attribute and (missing := [name for name in names if Path(name).name not in labels]):
        archive.close()
        raise UserError(f"{data / _CELEBA_ATTRIBUTES}: has no line for {Path(missing[0]).name}; run `ddpm fetch`")

    def load(name: str, levels: Levels) -> Image.Image:
        with archive.open(name) as stream:
            return decode(stream, levels)

    def samples() -> Iterator[Sample]:
        with archive:
            for name in names:
                file = Path(name).name
                yield Sample(name, partial(load, name), labels.get(file), held_out=file in held_out)

    return RawImages(len(names), (f"not_{attribute}", attribute) if attribute else None, samples())


def _values_of(attribute: str, file: Path) -> dict[str, int]:
    """By each image's name, 1 where it has the attribute and 0 where it has not.

    The file has a line with the number of images, one with the attributes' names, and one for each image, with its name
    and 1 or -1 for each attribute.
    """
    try:
        count, names, *rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if [len(rows), 1 + len(names)] != [int(*count), *{len(row) for row in rows}]:
            raise ValueError("its lines are not as many or as long as the first two say")
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not CelebA's as published ({error}); run `ddpm fetch`") from None
    if attribute not in names:
        raise UserError(f"data.attribute: CelebA has no {brief(attribute)}; there are: {listed(names, 40)}")
    place = 1 + names.index(attribute)
    if strange := {row[place] for row in rows} - {"1", "-1"}:
        raise UserError(f"{file}: not CelebA's as published ({attribute} is {strange.pop()}); run `ddpm fetch`")
    return {row[0]: int(row[place] == "1") for row in rows}


def _published_as_held_out(partition: Path) -> set[str]:
    """The names of the images that are published for validation (1) and test (2), not for training (0)."""
    try:
        rows = [line.split() for line in partition.read_text(encoding="utf-8").splitlines() if line.strip()]
        parts = {name: int(part) for name, part in rows}
    except (OSError, ValueError) as error:
        raise UserError(f"{partition}: not CelebA's as published ({error}); run `ddpm fetch`") from None
    return {name for name, part in parts.items() if part > 0}
