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

from ddpm.config import DataConfig
from ddpm.data import arrays, folder
from ddpm.data.images import Levels, RawImages, Sample, decode
from ddpm.errors import UpstreamError, UserError

_DIGITS = "digits.csv.gz"
_CELEBA = "img_align_celeba.zip"


@dataclass(frozen=True)
class Source:
    """One upstream.

    `fetch` puts the files, exactly as published, into an empty directory (UserError, UpstreamError);
    `read` finds the images, or the array, in such a directory, without a network (UserError).
    """

    fetch: Callable[[Path], None]
    read: Callable[[Path], RawImages | arrays.RawArray]


def source_of(config: DataConfig, root: Path) -> Source:
    """The upstream that `data.source` names; `data.path` is relative to `root`."""
    if config.source == "sequences" and config.path is not None:
        return Source(partial(arrays.copy_sequences, root / Path(config.path).expanduser()), arrays.read_sequences)
    if config.path is not None:
        return Source(
            partial(folder.copy, root / Path(config.path).expanduser()),
            partial(folder.read, subfolders=config.subfolders),
        )
    return {
        "digits": Source(_fetch_digits, _read_digits),
        "mnist": Source(partial(_download, "MNIST"), partial(_read_mnist, "MNIST")),
        "fashion-mnist": Source(partial(_download, "FashionMNIST"), partial(_read_mnist, "FashionMNIST")),
        "cifar10": Source(partial(_download, "CIFAR10"), _read_cifar10),
        "celeba": Source(partial(_download, "CelebA"), _read_celeba),
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


def _read_mnist(name: str, data: Path) -> RawImages:
    """The training part, 60,000 images of 28×28×1."""
    return _unpacked(name, data, f"{name}/raw")


def _read_cifar10(data: Path) -> RawImages:
    """The training part, 50,000 images of 32×32×3. torchvision verifies each batch before unpickling it."""
    return _unpacked("CIFAR10", data, ".")


def _unpacked(name: str, data: Path, where: str) -> RawImages:
    """Unpack the archives where torchvision looks for their content, and have it read the training part."""
    from torchvision.datasets.utils import extract_archive

    with tempfile.TemporaryDirectory() as scratch:
        unpacked = Path(scratch, where)
        unpacked.mkdir(parents=True, exist_ok=True)
        try:
            for file in _published(name):
                extract_archive(data / file, unpacked)
            dataset = _torchvision(name)(scratch)  # holds all images in memory: 47 or 150 MB
        except Exception as error:  # of gzip, of tarfile, or torchvision's own
            reason = " ".join(str(error).split())
            raise UserError(f"{data}: not {name} as published ({reason}); run `ddpm fetch`") from None
    return _in_memory(_Images(dataset), dataset.targets, dataset.classes)


class _Images:
    """The images of a torchvision data set as a sequence."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Image.Image:
        return self._dataset[index][0]


def _in_memory(images: Any, labels: Any, classes: list[str]) -> RawImages:
    def load(row: int, levels: Levels) -> Image.Image:
        image: Image.Image = images[row]
        return levels.apply(image, 8)

    samples = (Sample(f"image {row}", partial(load, row), int(label)) for row, label in enumerate(labels))
    return RawImages(len(images), tuple(classes), samples)


def _read_celeba(data: Path) -> RawImages:
    """202,599 faces of 178×218×3, read from the archive as they are asked for.

    The 40 attributes are not classes, so there are no labels.
    """
    try:
        archive = zipfile.ZipFile(data / _CELEBA)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{data / _CELEBA}: not CelebA as published ({error}); run `ddpm fetch`") from None
    names = sorted(name for name in archive.namelist() if not name.endswith("/"))

    def load(name: str, levels: Levels) -> Image.Image:
        with archive.open(name) as stream:
            return decode(stream, levels)

    def samples() -> Iterator[Sample]:
        with archive:
            for name in names:
                yield Sample(name, partial(load, name), None)

    return RawImages(len(names), None, samples())
