"""Every upstream's own format, in small, through the code that reads the real one.

What stands in for the network is a web server on this machine; torchvision's download, its verification and its
parsers are the real ones, told of other addresses and other checksums.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import torchvision.datasets
from PIL import Image

from ddpm.cli import main
from ddpm.config.params import Params
from ddpm.data.sources import source_of
from ddpm.data.store import PreparedData
from ddpm.errors import UpstreamError, UserError
from ddpm.model import load
from ddpm.stages.fetch import fetch
from ddpm.stages.prepare import prepare, published_split
from ddpm.stages.train import train_variant

Upstream = tuple[str, dict[str, bytes]]
RANDOM = np.random.RandomState(0)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST's files: two zero bytes, the type, the number of dimensions, each dimension, the values."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


def tar_of(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture(params=["mnist", "fashion-mnist"])
def mnist(request: pytest.FixtureRequest, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    address, served = upstream
    images, labels = RANDOM.randint(0, 256, (40, 28, 28)), np.arange(40) % 10
    files = {
        "train-images-idx3-ubyte.gz": idx(images),
        "train-labels-idx1-ubyte.gz": idx(labels),
        "t10k-images-idx3-ubyte.gz": idx(images[:10] // 2),
        "t10k-labels-idx1-ubyte.gz": idx(labels[:10]),
    }
    served.update(files)
    dataset = {"mnist": torchvision.datasets.MNIST, "fashion-mnist": torchvision.datasets.FashionMNIST}[request.param]
    monkeypatch.setattr(dataset, "mirrors", [address])
    monkeypatch.setattr(dataset, "resources", [(name, md5(content)) for name, content in files.items()])
    return {
        "source": request.param,
        "dataset": dataset,
        "files": files,
        "images": images[..., None],
        "labels": labels,
        "test_images": images[:10, ..., None] // 2,
        "test_labels": labels[:10],
        "served": served,
    }


@pytest.fixture
def cifar10(upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    address, served = upstream
    images, labels = RANDOM.randint(0, 256, (50, 32, 32, 3)).astype(np.uint8), np.arange(50) % 10
    planes = images.transpose(0, 3, 1, 2).reshape(50, -1)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    batches = {
        f"data_batch_{number + 1}": {"data": planes[number::5], "labels": labels[number::5].tolist()}
        for number in range(5)
    }
    batches["test_batch"] = {"data": planes[:10] // 2, "labels": labels[:10].tolist()}
    batches["batches.meta"] = {"label_names": names}
    pickles = {name: pickle.dumps(batch, protocol=2) for name, batch in batches.items()}
    archive = tar_of({f"cifar-10-batches-py/{name}": content for name, content in pickles.items()})
    dataset = torchvision.datasets.CIFAR10
    served[dataset.filename] = archive
    monkeypatch.setattr(dataset, "url", address + dataset.filename)
    monkeypatch.setattr(dataset, "tgz_md5", md5(archive))
    monkeypatch.setattr(dataset, "train_list", [[name, md5(pickles[name])] for name, _ in dataset.train_list])
    monkeypatch.setattr(dataset, "test_list", [[name, md5(pickles[name])] for name, _ in dataset.test_list])
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5(pickles["batches.meta"])})
    order = np.concatenate([np.arange(number, 50, 5) for number in range(5)])
    return {
        "source": "cifar10",
        "files": {dataset.filename: archive},
        "images": images[order],
        "labels": labels[order],
        "test_images": images[:10] // 2,
        "test_labels": labels[:10],
        "classes": tuple(names),
        "served": served,
        "folder": tmp_path,
    }


@pytest.fixture
def celeba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """CelebA, and in the place of the drive's client a module that copies files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("img_align_celeba/", b"")
        for number in (3, 1, 4, 2):
            face = io.BytesIO()
            Image.new("RGB", (178, 218), (number * 40, 0, 0)).save(face, "JPEG", quality=100)
            archive.writestr(f"img_align_celeba/{number:06}.jpg", face.getvalue())
    rows = "".join(f"{number:06}.jpg {{}}\n" for number in (1, 2, 3, 4))
    files = {
        "img_align_celeba.zip": stream.getvalue(),
        "list_attr_celeba.txt": ("4\nSmiling Young\n" + rows.format("-1  1", " 1  1", " 1  1", "-1 -1")).encode(),
        "identity_CelebA.txt": rows.format(1, 2, 3, 4).encode(),
        "list_bbox_celeba.txt": ("4\nx_1 y_1 width height\n" + rows.format(*["1 2 3 4"] * 4)).encode(),
        "list_landmarks_align_celeba.txt": ("4\nlefteye_x\n" + rows.format(1, 2, 3, 4)).encode(),
        "list_eval_partition.txt": rows.format(0, 0, 1, 2).encode(),
    }
    drive = tmp_path / "drive"
    drive.mkdir()
    for name, content in files.items():
        (drive / name).write_bytes(content)
    (drive / "gdown.py").write_text(
        "import pathlib, shutil\n"
        "def download(id, output, quiet, user_agent):\n"
        f"    shutil.copyfile(pathlib.Path({str(drive)!r}, id), output)\n"
    )
    listed = [(name, md5(content), name) for name, content in files.items()]
    monkeypatch.setattr(torchvision.datasets.CelebA, "file_list", listed)
    monkeypatch.syspath_prepend(str(drive))
    monkeypatch.delitem(sys.modules, "gdown", raising=False)
    return {"source": "celeba", "files": files, "drive": drive}


def test_digits_are_scikit_learns(root: Path, prepared: Callable) -> None:
    manifest = prepared()
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    stored = np.load(root / "prepared/images.npy")
    assert stored.shape == (1797, 8, 8, 1)
    assert (stored.reshape(1797, 64) == np.round(pixels * 255 / 16)).all()
    assert (np.load(root / "prepared/labels.npy") == labels).all()
    assert manifest.classes == tuple("0123456789")
    assert manifest.shape == (8, 8, 1)
    check_a_conditional_model(root)


def test_mnist(mnist: dict[str, Any], root: Path, prepared: Callable) -> None:
    check_against_upstream(mnist, root, prepared)


def test_cifar10(cifar10: dict[str, Any], root: Path, prepared: Callable) -> None:
    check_against_upstream(cifar10, root, prepared)


def check_against_upstream(known: dict[str, Any], root: Path, prepared: Callable) -> None:
    """data/ is the upstream's bytes and nothing else; prepared/ is its training part and then its test part, in their
    order, and the test part is the validation. With a share it is the training part alone."""
    manifest = prepared(source=known["source"])
    assert {file.name: file.read_bytes() for file in (root / "data").rglob("*")} == known["files"]
    images, labels = (np.concatenate([known[name], known[f"test_{name}"]]) for name in ("images", "labels"))
    count = len(known["images"])
    assert (np.load(root / "prepared/images.npy") == images).all()
    assert (np.load(root / "prepared/labels.npy") == labels).all()
    assert np.load(root / "prepared/train.npy").tolist() == list(range(count))
    assert np.load(root / "prepared/validation.npy").tolist() == list(range(count, count + 10))
    assert (manifest.counts.train, manifest.counts.validation) == (count, 10)
    assert manifest.rules.validation_fraction is None
    assert len(manifest.classes) == 10
    assert manifest.classes == known.get("classes", manifest.classes)
    assert manifest.splits["train"].sha256 == hashlib.sha256(known["images"].astype(np.uint8).tobytes()).hexdigest()
    assert PreparedData.open(root / "prepared").reference("published") == ("train",)
    check_a_conditional_model(root)

    manifest = prepared(source=known["source"], validation_fraction=0.2)
    assert (np.load(root / "prepared/images.npy") == known["images"]).all()
    assert (np.load(root / "prepared/labels.npy") == known["labels"]).all()
    assert (manifest.counts.train, manifest.counts.validation) == (count - 10, 10)
    assert PreparedData.open(root / "prepared").reference("published") == ("train", "validation")


def check_a_conditional_model(root: Path) -> None:
    """Two steps of training on prepared/, with a conditional model that is then asked for a class by name."""
    sections = {
        "network": {"width": 8, "multipliers": [1], "blocks": 1, "groups": 4, "attention_resolutions": []},
        "condition": {"label": {}},
        "process": {"schedule": "cosine"},
        "training": {"steps": 2, "batch_size": 4, "warmup_steps": 0, "log_every": 1},
    }
    train_variant(Params.model_validate({"models": {"ddpm": sections}}), "ddpm", root=root)
    model, data = load(root / "models/ddpm"), PreparedData.open(root / "prepared")
    classes = data.manifest.classes
    counts = np.bincount(data.split("train").labels, minlength=len(classes))
    assert (model.card.data.classes, model.card.data.class_counts) == (classes, tuple(counts.tolist()))
    assert model.sample(2, label=classes[-1], guidance_scale=2, steps=2).shape == (2, *data.manifest.shape)


def test_class_folders(root: Path, photos: Callable, prepared: Callable) -> None:
    photos({f"{name}/{number}.png": ("RGB", (8, 8)) for name in ("cat", "dog") for number in range(5)})
    assert prepared(source="folder", path="../photos").classes == ("cat", "dog")
    assert np.load(root / "prepared/labels.npy").tolist() == [0] * 5 + [1] * 5
    check_a_conditional_model(root)


def test_prepare_needs_no_network(cifar10: dict[str, Any], root: Path, params: Callable) -> None:
    fetch(params(source="cifar10"), root=root)
    cifar10["served"].clear()
    prepare(params(source="cifar10"), root=root)


def test_celeba(celeba: dict[str, Any], root: Path, prepared: Callable) -> None:
    manifest = prepared(source="celeba", image_size=64)
    assert {file.name: file.read_bytes() for file in (root / "data").rglob("*")} == celeba["files"]
    images = np.load(root / "prepared/images.npy")
    assert images.shape == (4, 64, 64, 3)
    assert np.abs(images[:, 32, 32, 0].astype(int) - [40, 80, 120, 160]).max() <= 2  # in the order of the names
    assert manifest.classes is None
    assert np.load(root / "prepared/validation.npy").tolist() == [2, 3]  # published for validation, and for test
    assert prepared(source="celeba", image_size=64, validation_fraction=0.5).rules.validation_fraction == 0.5


def test_an_attribute_of_celeba_makes_two_classes(celeba: dict[str, Any], root: Path, prepared: Callable) -> None:
    manifest = prepared(source="celeba", image_size=64, attribute="Smiling")
    assert manifest.classes == ("not_Smiling", "Smiling")
    assert np.load(root / "prepared/labels.npy").tolist() == [0, 1, 1, 0]  # in the order of the names
    assert np.load(root / "prepared/validation.npy").tolist() == [2, 3]
    check_a_conditional_model(root)
    with pytest.raises(UserError, match=r"class 'not_Young' has 1 readable image"):
        prepared(source="celeba", image_size=64, attribute="Young")


@pytest.mark.parametrize(
    ("attribute", "change", "words"),
    [
        ("Smile", (), "data.attribute: CelebA has no 'Smile'; there are: Smiling, Young"),
        (
            "Young",
            ("000003.jpg  1  1\n", ""),
            "list_attr_celeba.txt: not CelebA's as published .its lines are not as many",
        ),
        ("Young", ("000003.jpg  1  1", "000003.jpg  1"), "list_attr_celeba.txt: not CelebA's .*as long as"),
        ("Young", ("000003.jpg", "000005.jpg"), "list_attr_celeba.txt: has no line for 000003.jpg"),
        ("Young", ("000003.jpg  1  1", "000003.jpg  1  0"), "list_attr_celeba.txt: not CelebA's .*Young is 0"),
        ("Young", ("4\nSmiling Young\n", ""), "list_attr_celeba.txt: not CelebA's as published"),
        ("Young", None, "list_attr_celeba.txt: not CelebA's as published .*No such file"),
    ],
)
def test_attributes_that_do_not_fit(celeba: dict[str, Any], params: Callable, attribute: str, change: Any, words: str):
    file = celeba["drive"] / "list_attr_celeba.txt"
    if change is None:
        file.unlink()
    elif change:
        assert change[0] in file.read_text()
        file.write_text(file.read_text().replace(*change))
    with pytest.raises(UserError, match=words) as caught:
        source_of(params(source="celeba", attribute=attribute).data, celeba["drive"]).read(celeba["drive"])
    assert "\n" not in str(caught.value)


def test_an_attribute_is_celebas_alone(params: Callable) -> None:
    with pytest.raises(ValueError, match="`attribute` is for `source: celeba`, found `source: mnist`"):
        params(source="mnist", attribute="Smiling")


def publish_labels(mnist: dict[str, Any], labels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the upstream publish other labels of the training images, with their checksum."""
    mnist["served"]["train-labels-idx1-ubyte.gz"] = idx(labels)
    resources = [(name, md5(mnist["served"][name])) for name in mnist["files"]]
    monkeypatch.setattr(mnist["dataset"], "resources", resources)


@pytest.mark.parametrize("count", [39, 41])
def test_a_file_of_labels_of_another_length(
    mnist: dict[str, Any], root: Path, count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    Path("params.yaml").write_text(f"data: {{source: {mnist['source']}}}\nmodels: {{ddpm: {{}}}}\n")
    publish_labels(mnist, np.arange(count) % 10, monkeypatch)
    assert main(["fetch"]) == 0
    capsys.readouterr()
    assert main(["prepare"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"as published (40 images, but {count} labels); run `ddpm fetch`" in line
    assert not Path("prepared").exists()


def test_a_class_without_images(mnist: dict[str, Any], prepared: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_labels(mnist, np.where(mnist["labels"] == 9, 8, mnist["labels"]), monkeypatch)
    with pytest.raises(UserError, match=r"class '(9 - nine|Ankle boot)' has 0 readable images"):
        prepared(source=mnist["source"], validation_fraction=0.2)


def test_a_published_split_that_is_none(celeba: dict[str, Any], params: Callable) -> None:
    (celeba["drive"] / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg\n")
    source = source_of(params(source="celeba").data, celeba["drive"])
    with pytest.raises(UserError, match=r"list_eval_partition.txt: not CelebA's as published"):
        source.read_split(celeba["drive"])
    with pytest.raises(UserError, match=r"3 are published for training and 0 for validation; set `data.validation_fr"):
        published_split([False] * 3, Path("data"))


def test_celeba_is_not_square(celeba: dict[str, Any], prepared: Callable) -> None:
    with pytest.raises(UserError, match=r"is 178×218, not square; set `data.image_size`"):
        prepared(source="celeba")


def test_celeba_needs_gdown(celeba: dict[str, Any], root: Path, params: Callable, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)  # as if it were not installed
    with pytest.raises(UserError, match="pip install gdown"):
        fetch(params(source="celeba"), root=root)


@pytest.mark.parametrize("fault", ["gone", "altered"])
def test_a_failed_download_can_be_retried_and_changes_nothing(
    fault: str, cifar10: dict[str, Any], root: Path, params: Callable
) -> None:
    fetch(params(), root=root)
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    archive = cifar10["served"].pop("cifar-10-python.tar.gz")
    if fault == "altered":
        cifar10["served"]["cifar-10-python.tar.gz"] = archive[:-1] + b"x"
    with pytest.raises(UpstreamError, match="CIFAR10: the download failed"):
        fetch(params(source="cifar10"), root=root)
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before


def test_nobody_answers(root: Path, params: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(UpstreamError, match="MNIST: the download failed"):
        fetch(params(source="mnist"), root=root)
    assert list(root.iterdir()) == []


def test_pickles_that_torchvision_does_not_know_are_not_opened(cifar10: dict[str, Any], params: Callable) -> None:
    evil = b"cos\nsystem\n(S'exit 1'\ntR."
    archive = tar_of({f"cifar-10-batches-py/data_batch_{number}": evil for number in range(1, 6)})
    (cifar10["folder"] / "cifar-10-python.tar.gz").write_bytes(archive)
    with pytest.raises(UserError, match="not CIFAR10 as published"):
        source_of(params(source="cifar10").data, cifar10["folder"]).read(cifar10["folder"])
