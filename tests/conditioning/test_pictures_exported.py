"""Models that are conditioned on images, exported: the columns have their own types and shapes in every executor."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from untrained import ONE_LEVEL, export, untrained

import ddpm
from ddpm.cli.main import main
from ddpm.conditioning.pictures import MaskColumn
from ddpm.conditioning.tokenizers import Words
from ddpm.deploy.facts import read_facts
from ddpm.deploy.runtime import Sampler
from ddpm.diffusion.plans import SAMPLERS
from ddpm.drawer import Drawer
from ddpm.errors import UserError
from ddpm.export.parity import measure_parity
from ddpm.model import Model
from ddpm.model.card import DataFacts

WORDS = Words(("blue", "heart", "red"), 4)
FACTS = DataFacts(
    name="dots",
    shape=(8, 8, 3),
    classes=("a", "b"),
    text={"tokenizer": WORDS.as_json(), "captions": ("red heart", "blue heart")},
)
PROMPT = {"length": 4, "width": 16, "layers": 1, "heads": 2}
CONDITIONS = {
    "low": {"low": {"side": 4}},
    "noisy low": {"low": {"side": 2, "noise": 0.5}, "label": {"drop": 0.2}},
    "mask": {"mask": {}},
    "prompt and mask": {"prompt": PROMPT, "mask": {}},
}
LEARNED = {"process": {"timesteps": 50, "variance": "learned_range"}, "objective": {"loss": "hybrid"}}


class Case(NamedTuple):
    model: Model
    deploy: Path
    executors: dict[str, Drawer]


@pytest.fixture(scope="module", params=CONDITIONS)
def case(request, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A model of random weights, exported, and opened by the three executors."""
    directory = tmp_path_factory.mktemp("pictures")
    sections = dict(LEARNED) if request.param == "mask" else {}
    sections |= {"network": ONE_LEVEL, "condition": CONDITIONS[request.param]}
    model = ddpm.load(untrained("model", directory, FACTS, **sections))
    deploy = export(model, directory / "deploy")
    executors = {"torch": model, "numpy": Sampler(deploy, in_graph=False), "graph": Sampler(deploy, in_graph=True)}
    return Case(model, deploy, executors)


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def asked_of(model: Drawer, seed: int = 0) -> dict:
    """Values for all columns, of three images."""
    masks = pictures(3, 8, 8, seed=seed) < 120
    values = {"mask": masks, "label": ["a", "b"], "prompt": "red heart", "low_noise": [0.2, 0.1, 0.0]}
    shapes = {column.name: column.shape for column in model.columns}
    values |= {name: pictures(3, *shapes[name], seed=seed) for name in ("low", "image") if name in shapes}
    return {column.name: values[column.name] for column in model.columns if column.name in values}


def test_the_files_have_the_columns_own_types_and_shapes(case: Case):
    types = {"uint8": onnx.TensorProto.UINT8, "bool": onnx.TensorProto.BOOL, "float32": onnx.TensorProto.FLOAT}
    types |= {"int64": onnx.TensorProto.INT64}
    for file in ("denoiser.onnx", "sampler.onnx"):
        inputs = {value.name: value.type.tensor_type for value in onnx.load(case.deploy / file).graph.input}
        for column in case.model.columns:
            told = inputs[column.name]
            assert told.elem_type == types[column.dtype.name]
            assert [axis.dim_value for axis in told.shape.dim] == [0, *column.shape]
    assert case.executors["numpy"].columns == case.model.columns


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_the_executors_draw_the_same_images(case: Case, sampler: str):
    """In levels of 255, guided where the model can be; other pictures make other images."""
    options = {"sampler": sampler, "steps": 6, "seed": 1}
    if case.model.guidable:
        options |= {"guidance_scale": 2.0, "guidance_interval": (0.3, 1.0)}
    drawn = {
        name: executor.sample(4, **options, **asked_of(case.model)).astype(int)
        for name, executor in case.executors.items()
    }
    for name in ("numpy", "graph"):
        assert np.abs(drawn[name] - drawn["torch"]).max() <= 1, name
    other = case.model.sample(4, **options, **asked_of(case.model, seed=1))
    assert np.abs(other.astype(int) - drawn["torch"]).max() > 1


def test_a_batch_is_as_good_as_another(case: Case):
    for executor in case.executors.values():
        whole, parts = (executor.sample(5, batch_size=size, **asked_of(case.model)).astype(int) for size in (5, 2))
        assert np.abs(whole - parts).max() <= 1


def test_parity_is_measured_with_real_values(case: Case, monkeypatch: pytest.MonkeyPatch):
    told: list[dict] = []
    run = Sampler.run

    def watched(self, plan, x, draw, given=None):
        told.append(given)
        return run(self, plan, x, draw, given)

    monkeypatch.setattr(Sampler, "run", watched)
    parity = measure_parity(case.model, case.deploy, samples=4, steps=6, tolerances={"fp32": 1e-3})
    assert parity["passed"], parity
    for given in told:
        for column in case.model.columns:
            values = given[column.name]
            assert (values.dtype, values.shape) == (column.dtype, (4, *column.shape))
            if column.key in ("low", "mask"):
                assert len(np.unique(values)) > 1, column.name
        if "low" in given:
            assert given["low"].std((1, 2, 3)).min() > 5, "pictures, not one grey"
        if "mask" in given:
            assert not given["mask"].all((1, 2)).any()
            assert given["mask"].any((1, 2)).sum() >= 2


def test_a_mistake_with_a_column_breaks_parity(case: Case):
    """Of the loop alone: its pictures are turned upside down."""
    name = case.model.columns[-1].name
    loop = onnx.load(case.deploy / "sampler.onnx")
    for column in case.model.columns:
        if column.key in ("low", "mask") and column.shape:
            name = column.name
            break
    turned = case.deploy.parent / "turned"
    if not turned.exists():
        turned.mkdir()
        for file in case.deploy.iterdir():
            (turned / file.name).write_bytes(file.read_bytes())
    (value,) = (each for each in loop.graph.input if each.name == name)
    flipped = onnx.helper.make_node("Slice", [name, "starts", "ends", "axes", "steps"], [f"{name}.turned"])
    numbers = {"starts": [-1], "ends": [-(2**31)], "axes": [1], "steps": [-1]}
    loop.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(v), k) for k, v in numbers.items())
    rename(loop.graph, name, f"{name}.turned")
    loop.graph.node.insert(0, flipped)
    assert value.name == name
    onnx.save(loop, turned / "sampler.onnx")
    parity = measure_parity(case.model, turned, samples=4, steps=6, tolerances={"fp32": 1e-3})
    assert not parity["files"]["sampler.onnx"]["passed"]
    assert parity["files"]["denoiser.onnx"]["passed"]


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """In every node, those of inner graphs too."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                rename(attribute.g, old, new)


@pytest.mark.parametrize("case", ["mask", "prompt and mask"], indirect=True)
@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "unipc"])
def test_known_pixels_are_the_given_ones_to_the_last_bit(case: Case, sampler: str):
    asked = asked_of(case.model)
    for executor in case.executors.values():
        drawn = executor.sample(3, sampler=sampler, steps=5, **asked)
        np.testing.assert_array_equal(drawn[asked["mask"]], asked["image"][asked["mask"]])
        assert (drawn[~asked["mask"]] != asked["image"][~asked["mask"]]).any()


@pytest.mark.parametrize("case", ["mask"], indirect=True)
def test_known_pixels_are_put_back_at_each_step_not_only_at_the_end(case: Case):
    """x̂_0 of the last step is the given image there, in the executors too, before anything is rounded."""
    asked = asked_of(case.model)
    for executor in case.executors.values():
        given = executor.given(3, **asked)
        noise = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
        x = torch.from_numpy(noise) if executor is case.model else noise
        x0 = np.asarray(executor.run(executor.plan(sampler="ddim", steps=5), x, lambda: None, given))
        known = np.moveaxis(asked["image"], 3, 1) / 127.5 - 1
        mask = np.broadcast_to(asked["mask"][:, None], known.shape)
        np.testing.assert_allclose(x0[mask], known[mask], atol=1e-6)


@pytest.mark.parametrize("case", ["low", "noisy low"], indirect=True)
def test_without_a_low_image_an_exported_upsampler_refuses(case: Case):
    with pytest.raises(ValueError, match="low: the model needs a picture of"):
        case.executors["numpy"].sample(1)


@pytest.mark.parametrize("case", ["mask"], indirect=True)
def test_a_damaged_description_is_refused(case: Case, tmp_path: Path):
    facts = json.loads((case.deploy / "sampler.json").read_text())
    assert isinstance(read_facts(case.deploy / "sampler.json")[2][1], MaskColumn)
    for change, words in [
        ({"mask": {"unknown": "much"}}, "condition.mask.unknown"),
        ({"low": {"side": 3}}, "condition.low.side is 3"),
        ({"low": {"side": "4"}}, "condition.low.side is 4"),
        ({"low": {"side": 4, "noise": "loud"}}, "condition.low.noise"),
        ({"low": {"side": 4, "noise": -1}}, "condition.low.noise"),
    ]:
        (tmp_path / "sampler.json").write_text(json.dumps({**facts, "condition": change}))
        with pytest.raises(UserError, match=re.escape(words)):
            read_facts(tmp_path / "sampler.json")


@pytest.mark.parametrize("condition", [{"low": {"side": 4, "noise": 0.2}}, {"mask": {}}])
def test_ddpm_export_and_sample_the_exported(project: Path, capsys, condition: dict):
    facts = DataFacts(name="digits", shape=(8, 8, 1), classes=None)
    untrained("tiny", Path("models"), facts, network=ONE_LEVEL, condition=condition)
    assert main(["export", "tiny"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "denoiser.onnx is the trained model to" in said
    assert "sampler.onnx is the trained model to" in said
    sampler = ddpm.load("deploy/tiny")
    asked = asked_of(sampler)
    difference = sampler.sample(2, **asked).astype(int) - ddpm.load("models/tiny").sample(2, steps=5, **asked)
    assert np.abs(difference).max() <= 1
