"""A training that starts from another model's weights."""

from __future__ import annotations

import contextlib
import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import UNET

import ddpm
from ddpm.cli.main import main
from ddpm.conditioning.columns import PromptColumn, columns_of
from ddpm.conditioning.network import ConditionalNetwork, ports_for, tensors
from ddpm.conditioning.tokenizers import tokenizer_of
from ddpm.errors import UserError
from ddpm.files import read_json, sha256_of, write_json
from ddpm.nets import build
from ddpm.training.start import copy

DATA = {"shape": (8, 8, 1), "classes": ("a", "b")}


def network(condition: dict, seed: int = 0, **options) -> torch.nn.Module:
    """Random weights throughout, none of them zero."""
    columns = columns_of(condition, DATA)
    unet = build({**UNET, **options}, image_size=8, channels=1, ports=ports_for(columns, condition))
    whole = ConditionalNetwork(unet, columns, condition) if columns else unet
    torch.manual_seed(seed)
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return whole.eval()


def given() -> dict[str, torch.Tensor]:
    random = np.random.default_rng(0)
    return tensors(
        {
            "label": np.array([0, 1]),
            "image": random.integers(0, 256, (2, 8, 8, 1), np.uint8),
            "mask": random.random((2, 8, 8)) < 0.5,
            "low": random.integers(0, 256, (2, 4, 4, 1), np.uint8),
        },
        torch.device("cpu"),
    )


X, T = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([7, 600])


def test_a_network_that_is_told_more_begins_as_the_model_it_starts_from():
    """To the last bit, whatever its condition; and the new weights learn from the first step on."""
    base, wider = network({}), network({"mask": {}}, seed=1)
    copy(wider, base, "base")
    out = wider(X, T, given())
    assert torch.equal(out, base(X, T))
    out.square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in wider.parameters())


def test_a_label_stays_beside_a_low_image():
    condition = {"label": {"drop": 0.1}}
    base, wider = network(condition), network({**condition, "low": {"side": 4}}, seed=1)
    copy(wider, base, "base")
    assert torch.equal(wider(X, T, given()), base(X, T, given()))


def test_maps_that_both_are_told_keep_their_weights_where_they_stand():
    """A mask's maps come before those of the low image, which the base has alone."""
    base, wider = network({"low": {"side": 4}}), network({"mask": {}, "low": {"side": 4}}, seed=1)
    copy(wider, base, "base")
    weight = wider.network.stem_maps.weight
    assert torch.equal(weight[:, 2:], base.network.stem_maps.weight)
    assert (weight[:, :2] == 0).all()
    with torch.no_grad():
        torch.testing.assert_close(wider(X, T, given()), base(X, T, given()))


def test_the_same_network_is_the_model_itself():
    condition = {"label": {}, "low": {"side": 4}}
    base, same = network(condition), network(condition, seed=1)
    copy(same, base, "base")
    for name, tensor in base.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name]), name


def test_a_caption_is_learned_anew():
    """What the base has is copied, and the encoder and its keys and values stay as they were drawn."""
    text = {"tokenizer": tokenizer_of({"kind": "words", "length": 4, "words": "red"}), "captions": ("red",)}
    columns = (PromptColumn(**text),)
    condition = {"prompt": {"width": 8, "layers": 1, "heads": 2}}
    unet = build(UNET, image_size=8, channels=1, ports=ports_for(columns, condition))
    wider, base = ConditionalNetwork(unet, columns, condition), network({})
    before = {name: tensor.clone() for name, tensor in wider.state_dict().items()}
    copy(wider, base, "base")
    for name, tensor in wider.state_dict().items():
        is_new = name.startswith("text.") or "token_kv" in name
        expected = before[name] if is_new else base.state_dict()[name.removeprefix("network.")]
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ({}, {"label": {}}, r"unexpected \['conditioner.embedding.weight'"),
        ({}, {"mask": {}}, r"unexpected \['network.stem_maps.weight'\]"),
        ({"low": {"side": 4}}, {"mask": {}}, r"unexpected \['network.stem_maps.weight'\]"),
        ({"low": {"side": 4, "noise": 0.1}}, {"low": {"side": 4}}, r"missing \['low.level.0.bias'"),
        ({"label": {}}, {"label": {"drop": 0.1}}, r"conditioner.embedding.weight is \[3, 32\], expected \[2, 32\]"),
    ],
)
def test_a_model_that_is_told_what_the_network_is_not(ours: dict, theirs: dict, words: str):
    with pytest.raises(UserError, match=rf"base is of another network: .*{words}"):
        copy(network(ours), network(theirs), "base")


@pytest.mark.parametrize("options", [{"width": 16}, {"blocks": 2}, {"middle_attention": False}, {"scale_shift": True}])
def test_another_architecture(options: dict):
    with pytest.raises(UserError, match="base is of another network: "):
        copy(network({"mask": {}}), network({}, **options), "base")


# --- by the command


@pytest.fixture(scope="module")
def bases(prepared_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with a trained model `tiny`, and `filler`, which is conditioned on a mask and starts from it."""
    directory = tmp_path_factory.mktemp("start") / "project"
    shutil.copytree(prepared_template, directory)
    params = yaml.safe_load((directory / "params.yaml").read_text())
    tiny = params["models"]["tiny"]
    tiny["network"]["dropout"] = 0.0
    params["models"]["filler"] = {**tiny, "condition": {"mask": {}}}
    params["models"]["filler"]["training"] = {**tiny["training"], "steps": 1, "start_from": "models/tiny"}
    (directory / "params.yaml").write_text(yaml.safe_dump(params))
    with contextlib.chdir(directory):
        assert main(["train", "tiny"]) == 0
        assert main(["train", "filler"]) == 0
    return directory


@pytest.fixture
def started(bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "project"
    shutil.copytree(bases, directory)
    monkeypatch.chdir(directory)
    return directory


def change(project: Path, model: str, **sections: dict) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    for section, keys in sections.items():
        params["models"][model][section] = {**params["models"][model][section], **keys}
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def first_loss(model: str) -> float:
    with Path(f"models/{model}/loss.csv").open() as stream:
        return float(next(csv.DictReader(stream))["loss"])


def test_the_first_loss_is_the_models_and_the_model_says_where_it_started(started: Path):
    card = read_json(Path("models/filler/model.json"))["training"]
    base = read_json(Path("models/tiny/model.json"))["training"]
    assert card["start_from"] == {
        "variant": "tiny",
        "fingerprint": base["fingerprint"],
        "sha256": sha256_of(Path("models/tiny/model.safetensors")),
    }
    assert base["start_from"] is None
    with_start = first_loss("filler")
    change(started, "filler", training={"start_from": None})
    assert main(["train", "filler"]) == 0
    # A fresh network says 0, whose squared error is 1.
    assert first_loss("filler") == pytest.approx(1, abs=0.2)
    assert with_start < 0.8 * first_loss("filler")
    assert ddpm.load("models/filler").sample(2, seed=0).shape == (2, 8, 8, 1)


def test_another_base_is_another_training(started: Path, capsys):
    before = read_json(Path("models/filler/model.json"))["training"]["fingerprint"]
    assert main(["train", "filler"]) == 0
    assert read_json(Path("models/filler/model.json"))["training"]["fingerprint"] == before
    change(started, "tiny", training={"steps": 41})
    assert main(["train", "tiny"]) == 0
    capsys.readouterr()
    assert main(["train", "filler"]) == 0
    assert "is of another training: the model that it starts from has changed" in capsys.readouterr().out
    assert read_json(Path("models/filler/model.json"))["training"]["fingerprint"] != before


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("models/none", "training.start_from: models/none: expected a model directory"),
        ("filler", "models.filler.training.start_from names the model itself"),
        ("models/filler", "models.filler.training.start_from names the model itself"),
        ("other", "params.yaml: models.filler: training.start_from: other is of another network: "),
        ("prepared", "training.start_from: prepared: expected a model directory"),
    ],
)
def test_a_model_that_no_training_can_start_from(started: Path, capsys, base: str, words: str):
    change(started, "filler", training={"start_from": base})
    if base == "other":
        shutil.copytree("models/tiny", "other")
        change(started, "filler", network={"width": 16})
    capsys.readouterr()
    assert main(["train", "filler"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in said
    if "itself" not in words:
        assert main(["train", "filler", "--dry-run"]) == 2


def test_classes_and_tokens_are_those_of_the_base(started: Path, capsys):
    """A class has the same number in both, or its weights are another's."""
    change(started, "tiny", condition={"label": {}}, training={"steps": 1})
    assert main(["train", "tiny"]) == 0
    card = read_json(Path("models/tiny/model.json"))
    card["data"]["classes"] = [*map(str, range(9, -1, -1))]
    write_json(Path("models/tiny/model.json"), card)
    change(started, "filler", condition={"label": {}})
    capsys.readouterr()
    assert main(["train", "filler"]) == 2
    assert "training.start_from: models/tiny was trained with other classes" in capsys.readouterr().err
