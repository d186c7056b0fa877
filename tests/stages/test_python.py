"""What `import ddpm` offers: fit, load, save."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from finished import VARIANT
from PIL import Image

import ddpm
from ddpm import tracking
from ddpm.config.params import load_params
from ddpm.errors import UserError
from ddpm.model import DEFAULT_PLAN

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)
SMALL = {"steps": 3, "width": 8, "batch_size": 4}


def test_the_package_shows_what_it_has():
    assert {"Model", "Sampler", "fit", "load", "save", "__version__"} <= set(dir(ddpm))
    assert all(getattr(ddpm, name) for name in ddpm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ddpm.nothing  # noqa: B018


def test_a_folder_becomes_a_model_that_is_saved_and_loaded(tmp_path: Path):
    for number, image in enumerate(IMAGES):
        Image.fromarray(image[..., 0]).resize((11, 9)).save(tmp_path / f"{number}.png")
    done: list[int] = []
    model = ddpm.fit(tmp_path, size=8, on_step=done.append, **SMALL)
    ddpm.save(model, tmp_path / "saved/model")
    again = ddpm.load(tmp_path / "saved/model")
    drawn = model.sample(3, seed=1)
    assert (drawn.shape, drawn.dtype, done) == ((3, 8, 8, 1), np.uint8, [1, 2, 3])
    np.testing.assert_array_equal(again.sample(3, seed=1), drawn)
    assert (model.plan_source, again.plan_source) == ("ddpm.fit", "model.json")


def test_the_same_seed_is_the_same_model():
    one, same, other = (ddpm.fit(IMAGES, seed=seed, **SMALL).sample(1) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_class_folders_become_a_conditional_model_that_can_be_guided(tmp_path: Path):
    """Of any depth below the folder that is the class."""
    for number, image in enumerate(IMAGES):
        path = tmp_path / "images" / ("cat", "dog/big")[number % 4 == 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    model = ddpm.fit(tmp_path / "images", labels="folders", **SMALL)
    assert (model.card.data.classes, model.card.data.class_counts) == (("cat", "dog"), (9, 3))
    ddpm.save(model, tmp_path / "saved")
    drawn = model.sample(4, label="cat", guidance_scale=2)
    np.testing.assert_array_equal(ddpm.load(tmp_path / "saved").sample(4, label="cat", guidance_scale=2), drawn)
    with pytest.raises(ValueError, match="no class 'emu'; there are: cat, dog"):
        model.sample(1, label="emu")
    assert ddpm.fit(tmp_path / "images", **SMALL).columns == (), "without `labels` folders say nothing"


@pytest.mark.parametrize("labels", [["b", "a"] * 6, [1, 0] * 6, np.array([1, 0] * 6, np.uint8), ("b", "a") * 6])
def test_labels_of_an_array_are_what_the_network_is_told(labels):
    model, other = (ddpm.fit(IMAGES, labels=each, **SMALL) for each in (labels, labels[::-1]))
    assert model.card.data.classes == (("a", "b") if "a" in list(labels) else ("0", "1"))
    assert model.card.training.fingerprint != other.card.training.fingerprint
    weights, others = (each.network.state_dict() for each in (model, other))
    assert any(not torch.equal(weights[name], others[name]) for name in weights)
    assert model.sample(2, label=[1, 0], guidance_scale=2).shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    ("images", "options", "words"),
    [
        (IMAGES, {"labels": [0] * 11}, "labels has 11 values for 12 images"),
        (IMAGES, {"labels": [0] * 12}, "all labels are '0'; expected at least two classes"),
        (IMAGES, {"labels": [0, 2] * 6}, "labels are 0, 2; expected 0 to K-1 with an image of each class, or names"),
        (IMAGES, {"labels": [-1, 0] * 6}, "labels are -1, 0; expected 0 to K-1"),
        (IMAGES, {"labels": [0.5, 0] * 6}, "expected a name or a number for each image"),
        (IMAGES, {"labels": [[0], [1]] * 6}, "expected a name or a number for each image"),
        (IMAGES, {"labels": [[0], [1, 2]] * 6}, "expected a name or a number for each image"),
        (IMAGES, {"labels": 3}, "expected a name or a number for each image, .* found 3"),
        (IMAGES, {"labels": "folders"}, "expected a name or a number for each image, .* found 'folders'"),
        ("flat", {"labels": [0, 1]}, 'labels of a folder must be "folders"'),
        ("flat", {"labels": "classes"}, 'labels of a folder must be "folders"'),
        ("flat", {"labels": "folders"}, 'labels is "folders", which needs two class folders or more'),
        (IMAGES[0], {}, r"expected uint8 \[N, H, W, 1 or 3\], found uint8 \[8, 8, 1\]"),
        (IMAGES[:, :4], {}, "8×4, not square"),
        (IMAGES, {"size": 4}, "size and channels are for a folder"),
        (IMAGES, {"steps": 0}, "steps must be at least 1"),
        (IMAGES, {"width": 12}, "groups is 8, which does not divide"),
        ("nowhere", {}, "nowhere: no such folder"),
    ],
)
def test_what_cannot_be_fitted_is_said(images, options, words, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("flat").mkdir()
    Image.fromarray(IMAGES[0, ..., 0]).save("flat/a.png")
    with pytest.raises(UserError, match=words) as caught:
        ddpm.fit(images, **options)
    assert "\n" not in str(caught.value)


def test_a_model_of_a_project_is_sampled_as_it_is_exported(trained: Path, tmp_path: Path, monkeypatch):
    """From any folder: the project is the one that the model lies in. Elsewhere it says that its plan is a default."""
    monkeypatch.chdir(tmp_path)
    model, exported = ddpm.load(trained / "models/tiny"), ddpm.load(trained / "deploy/tiny")
    assert model.plan_source == str(trained / "params.yaml")
    assert exported.plan_source == "sampler.json"
    np.testing.assert_array_equal(model.plan().table, exported.plan().table)
    assert len(model.plan()) == load_params(trained / "params.yaml").variant("tiny").sampling.steps
    assert np.abs(model.sample(4).astype(int) - exported.sample(4)).max() <= 1
    shutil.copytree(trained / "models/tiny", tmp_path / "elsewhere")
    assert ddpm.load(tmp_path / "elsewhere").plan_source == DEFAULT_PLAN


def test_a_models_name_alone_is_loaded_as_the_command_line_samples_it(trained: Path, tmp_path: Path, monkeypatch):
    by_name = ddpm.load("tiny")
    assert by_name.plan_source == str(trained.resolve() / "params.yaml")
    np.testing.assert_array_equal(by_name.sample(2), ddpm.load("models/tiny").sample(2))
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(ddpm.load("tiny", root=trained).sample(2), by_name.sample(2))
    shutil.rmtree(trained / "models")
    assert isinstance(ddpm.load("tiny", root=trained), ddpm.Sampler)
    with pytest.raises(UserError, match=r"another: expected a model directory .*; no such directory; `ddpm train"):
        ddpm.load("another", root=trained)


def test_the_champion_of_a_real_store_is_loaded_by_its_alias(finished: Path, tmp_path_factory, monkeypatch):
    """With the plan it was registered with, whatever lies in deploy/ by now; from another folder with `root`."""
    exported = ddpm.load(f"deploy/{VARIANT}").sample(3, seed=1)
    tracking.register(VARIANT)
    tracking.promote(VARIANT)
    shutil.rmtree("deploy")
    champion = ddpm.load("models:/ddpm-dots@champion")
    assert isinstance(champion, ddpm.Sampler)
    np.testing.assert_array_equal(champion.sample(3, seed=1), exported)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    np.testing.assert_array_equal(ddpm.load("models:/ddpm-dots/1", root=finished).sample(3, seed=1), exported)
    with pytest.raises(UserError, match="ddpm-dots"):
        ddpm.load("models:/ddpm-dots@nobody", root=finished)


# Refuses all that neither the extra `fit` nor what its packages need brings, in whatever environment this runs.
REFUSE = """
import importlib.metadata as metadata, re, sys
from packaging.requirements import Requirement

def plain(name): return re.sub("[-_.]+", "-", name).lower()

def needed(name, extras, found):
    if (name, extras) not in found:
        found.add((name, extras))
        for text in metadata.requires(name) or []:
            wanted = Requirement(text)
            if any(wanted.marker is None or wanted.marker.evaluate({"extra": extra}) for extra in extras or {""}):
                needed(plain(wanted.name), frozenset(wanted.extras), found)
    return {name for name, _ in found}

own = needed("ddpm", frozenset({"fit"}), set())
homes = metadata.packages_distributions()

class Bare:
    def find_spec(self, name, path=None, target=None):
        home = homes.get(name, [])
        if home and own.isdisjoint(map(plain, home)):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in [name for name in sys.modules if homes.get(name.partition(".")[0])]:
    if own.isdisjoint(map(plain, homes[name.partition(".")[0]])):
        del sys.modules[name]
sys.meta_path.insert(0, Bare())
"""


def test_fit_needs_its_extra_alone(tmp_path: Path):
    for number, image in enumerate(IMAGES):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{number}.png")
    code = f"""{REFUSE}
assert {{"torch", "pillow", "pydantic", "pyyaml", "safetensors", "numpy"}} <= own
for tool in ("dvc", "mlflow", "prefect", "onnxruntime", "torchvision", "matplotlib", "tqdm"):
    try:
        __import__(tool)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{{tool}} is not refused")
import ddpm
ddpm.save(ddpm.fit(".", **{SMALL!r}), "model")
assert ddpm.load("model").sample(1).shape == (1, 8, 8, 1)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
