"""What cannot be conditioned or guided is refused in one line with exit code 2, before anything is drawn or trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from untrained import ONE_LEVEL, export, untrained

import ddpm
from ddpm.cli.main import main
from ddpm.conditioning.columns import LabelColumn
from ddpm.config.base import validate
from ddpm.config.model import ModelConfig
from ddpm.errors import UserError
from ddpm.model.card import DataFacts
from ddpm.model.network import columns_for

CLASSES = ", ".join("0123456789")
NOTHING_DROPPED = "guidance_scale must be 1: the model was trained without dropping its condition"


def with_condition(project: Path, condition: dict, **sections: dict) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"]["tiny"] |= {"condition": condition}
    params["models"]["tiny"]["training"] |= {"steps": 2}
    params |= sections
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def complaint(capsys, *command: str) -> str:
    """The one line that a command ends with; anything else fails."""
    capsys.readouterr()
    try:
        code = main(command)
    except SystemExit as ended:  # argparse, whose usage comes before its line
        code = ended.code
    printed = capsys.readouterr().err.strip().splitlines()
    assert code == 2, printed
    lines = [line for line in printed if line.startswith(f"ddpm {command[0]}: ")]
    assert len(lines) == 1, printed
    return lines[0]


@pytest.fixture(scope="module")
def conditional_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two untrained models of digits: one that drops labels in training, and is exported too, and one that does not."""
    directory = tmp_path_factory.mktemp("conditional")
    facts = DataFacts(name="digits", shape=(8, 8, 1), classes=tuple("0123456789"))
    for name, drop in (("tiny", 0.1), ("fixed", 0.0)):
        condition = {"label": {"drop": drop}}
        untrained(name, directory / "models", facts, network=ONE_LEVEL, condition=condition)
    export(ddpm.load(directory / "models/tiny"), directory / "deploy/tiny")
    return directory


@pytest.fixture
def conditional(conditional_template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(conditional_template)
    return conditional_template


@pytest.mark.parametrize("model", ["models/tiny", "deploy/tiny", "models/fixed"])
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--label", "sneaker"], f"label: no class 'sneaker'; there are: {CLASSES}"),
        (["--label", "10"], f"label: no class '10'; there are: {CLASSES}"),
        (["--label", "-1"], f"label: no class '-1'; there are: {CLASSES}"),
        (["--label", "1,,2"], f"label: no class ''; there are: {CLASSES}"),
        (["--guidance-scale", "nan"], "guidance_scale must be in 0..1000, found nan"),
        (["--guidance-scale", "inf"], "guidance_scale must be in 0..1000, found inf"),
        (["--guidance-scale", "-1"], "guidance_scale must be in 0..1000, found -1.0"),
        (["--guidance-scale", "2", "--guidance-interval", "0.8,0.2"], "guidance_interval must be two shares"),
        (["--guidance-scale", "2", "--guidance-interval", "nan,1"], "guidance_interval must be two shares"),
        (["--guidance-interval", "0.2,0.8"], "guidance_interval is not used at guidance_scale 1, which is no guidance"),
        (["--guidance-interval", "0.5"], "expected two numbers such as 0.2,0.8"),
    ],
)
def test_what_no_conditional_model_can_be_asked_for(conditional: Path, capsys, model: str, asked: list, words: str):
    if asked[1].startswith("-"):
        asked = ["=".join(asked)]
    assert words in complaint(capsys, "sample", model, *asked, "--out", "a.npz")
    assert not Path("a.npz").exists()


@pytest.mark.parametrize("scale", ["0", "3"])
def test_guidance_of_a_model_trained_without_dropping(conditional: Path, capsys, scale: str):
    said = complaint(capsys, "sample", "models/fixed", "--guidance-scale", scale, "--out", "a.npz")
    assert NOTHING_DROPPED in said
    assert main(["sample", "models/fixed", "--n", "2", "--guidance-scale", "1", "--label", "3", "--out", "b.npz"]) == 0


@pytest.mark.parametrize("model", ["models/tiny", "deploy/tiny"])
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--label", "7"], "label: the model takes no such input; it takes: image, mask"),
        (["--guidance-scale", "3"], "guidance_scale must be 1: the model has no condition and no guide"),
    ],
)
def test_an_unconditional_model(trained: Path, capsys, model: str, asked: list, words: str):
    assert words in complaint(capsys, "sample", model, *asked, "--out", "a.npz")


def test_in_python_it_is_a_value_error_with_the_same_words(conditional: Path):
    model = ddpm.load("models/tiny")
    with pytest.raises(ValueError, match="no class 'sneaker'; there are: 0, 1, 2"):
        model.sample(2, label="sneaker")
    with pytest.raises(ValueError, match="found nan"):
        model.sample(2, guidance_scale=float("nan"))


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"label": {"drop": 1.0}}, "drop"),
        ({"label": {"drop": float("nan")}}, "drop"),
        ({"label": {"dropp": 0.1}}, "dropp"),
        ({"caption": {}}, "caption"),
        ({"label": 3}, "label"),
    ],
)
def test_a_condition_that_is_none(project: Path, capsys, condition: dict, words: str):
    with_condition(project, condition)
    said = complaint(capsys, "train", "tiny")
    assert "models.tiny.condition" in said
    assert words in said


def test_labels_of_points(project: Path, capsys):
    with_condition(project, {"label": {}}, data={"source": "swiss-roll"})
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"]["tiny"]["network"] = {"kind": "mlp", "width": 8, "layers": 1}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    (project / "data.dvc").unlink(missing_ok=True)
    assert main(["fetch"]) == main(["prepare"]) == 0
    assert "models.tiny.condition.label needs data with classes" in complaint(capsys, "train", "tiny")
    assert "models.tiny.condition.label needs data with classes" in complaint(capsys, "train", "tiny", "--dry-run")


def pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number, image in enumerate(np.random.default_rng(0).integers(0, 256, (count, 8, 8), np.uint8)):
        Image.fromarray(image).save(folder / f"{number}.png")


def test_labels_of_a_folder_without_classes(project: Path, capsys):
    pictures(project / "flat", 40)
    with_condition(project, {"label": {}}, data={"source": "folder", "path": "flat"})
    (project / "data.dvc").unlink(missing_ok=True)
    assert main(["fetch"]) == main(["prepare"]) == 0
    assert "models.tiny.condition.label needs data with classes" in complaint(capsys, "train", "tiny")


def test_a_class_with_too_few_images(project: Path, capsys):
    pictures(project / "classes/cat", 8)
    pictures(project / "classes/dog", 1)
    with_condition(project, {"label": {}}, data={"source": "folder", "path": "classes"})
    (project / "data.dvc").unlink(missing_ok=True)
    assert main(["fetch"]) == 0
    assert "class 'dog' has 1 readable image; a training and a validation split need two" in complaint(
        capsys, "prepare"
    )


def test_a_class_of_which_the_training_split_has_no_image(project: Path, capsys):
    """As a published split may have."""
    labels = np.load(project / "prepared/labels.npy")
    labels[labels == 3] = 4
    np.save(project / "prepared/labels.npy", labels)
    with_condition(project, {"label": {}})
    said = complaint(capsys, "train", "tiny")
    assert "models.tiny.condition.label: the class '3' has no training data" in said
    with_condition(project, {})
    assert main(["train", "tiny"]) == 0, "an unconditional model does not need one"


@pytest.mark.parametrize("counts", [(1, 2), (1, 2, 3, 4), (0, 0, 0), (1, -1, 2)])
def test_counts_that_are_not_of_the_classes(counts: tuple):
    """As in a damaged model.json."""
    config = validate(ModelConfig, {"condition": {"label": {}}}, "params.yaml")
    data = DataFacts(name="x", shape=(8, 8, 1), classes=("a", "b", "c"), class_counts=counts)
    with pytest.raises(UserError, match="class"):
        columns_for(config, data, "models.x")


def test_counts_that_are():
    config = validate(ModelConfig, {"condition": {"label": {}}}, "params.yaml")
    data = DataFacts(name="x", shape=(8, 8, 1), classes=("a", "b", "c"), class_counts=(1, 2, 3))
    assert columns_for(config, data, "models.x") == (LabelColumn(("a", "b", "c"), (1, 2, 3), droppable=True),)
