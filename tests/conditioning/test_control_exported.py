"""A model with a control as ONNX: a hint as an input, its weights as rows, and a branch that rows of weight 0 skip."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from untrained import ONE_LEVEL, export, untrained

from ddpm.conditioning.tokenizers import Words
from ddpm.deploy.runtime import CPU, Sampler
from ddpm.export.files import activation_bytes, export_half
from ddpm.export.parity import measure_parity, open_text_to_image
from ddpm.export.text_to_image import export_text_to_image, link_of
from ddpm.model import Model, load
from ddpm.model.card import DataFacts

pytest.importorskip("skimage")

WORDS = Words(("blue", "heart", "red"), 4)
TEXT = {"tokenizer": WORDS.as_json(), "captions": ("red heart", "blue heart")}
FACTS = DataFacts(name="squares", shape=(8, 8, 1), classes=("a", "b"), text=TEXT, hint_shape=(8, 8, 1))
AUTOENCODER = {"kind": "autoencoder", "width": 4, "multipliers": [1, 2], "blocks": 1, "latent_channels": 2, "groups": 2}
LATENT = {"variant": "a", "fingerprint": "a", "sha256": "a", "network": AUTOENCODER, "shape": (2, 4, 4), "scale": 0.5}
PROMPT = {"length": 4, "width": 16, "layers": 1, "heads": 2}
PROCESS = {"timesteps": 50, "prediction": "x0", "variance": "fixed_small"}
# Each with its hint and another condition; the last draws latents.
MODELS = {
    "edges": ({"hint": "edges"}, {"label": {"drop": 0.2}}),
    "colour": ({"hint": "colour", "side": 4}, {"prompt": PROMPT}),
    "latents": ({"hint": "given"}, {"prompt": PROMPT}),
}
WITH_PROMPTS = ("colour", "latents")
EDGES = np.zeros((8, 8), bool)
EDGES[3] = True


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Model, Path]]:
    """A model of classes that follows edges, and two of captions that follow pictures; the latter also in one file."""
    folder = tmp_path_factory.mktemp("exported")
    found = {}
    for name, (hint, more) in MODELS.items():
        sections = {"condition": {"control": {"of": "models/base", "widths": [4, 8], **hint}, **more}}
        facts = FACTS
        if name == "latents":
            facts = DataFacts.model_validate({**FACTS.model_dump(), "latent": LATENT})
            sections["codec"] = {"latent": {"autoencoder": "models/a"}}
        model = load(untrained(name, folder, facts, network=ONE_LEVEL, process=PROCESS, **sections))
        deploy = export(model, folder / f"deploy-{name}")
        if name in WITH_PROMPTS:
            export_text_to_image({name: link_of(model, deploy / "sampler.onnx")}, deploy / "text_to_image.onnx")
        found[name] = model, deploy
    return found


@pytest.mark.parametrize("name", MODELS)
def test_all_files_are_the_trained_model(exported, name):
    """With a hint, at rows with weights and without, and in guess mode."""
    parity = measure_parity(*exported[name], samples=2, steps=6, tolerances={"fp32": 1e-4})
    assert parity["passed"], parity
    more = {"text_to_image.onnx"} if name in WITH_PROMPTS else set()
    more |= {"decoder.onnx"} if name == "latents" else set()
    assert set(parity["files"]) == {"denoiser.onnx", "sampler.onnx", *more}


@pytest.mark.parametrize("in_graph", [False, True])
def test_the_weights_of_a_plan_are_those_of_torch(exported, in_graph):
    model, deploy = exported["edges"]
    sampler = Sampler(deploy, providers=[CPU], in_graph=in_graph)
    drawn = {}
    for scale, interval in itertools.product((0.0, 0.5, 1.0), (None, (0.5, 1.0))):
        asked = {"control": EDGES, "label": 1, "control_scale": scale, "control_interval": interval}
        asked |= {"guidance_scale": 2.0, "guidance_interval": (0.0, 0.5)}
        ours, theirs = (each.sample(2, steps=6, sampler="ddim", **asked).astype(int) for each in (model, sampler))
        assert np.abs(ours - theirs).max() <= 1, asked
        drawn[scale, interval] = theirs
    assert not np.array_equal(drawn[1.0, None], drawn[0.5, None])
    assert not np.array_equal(drawn[1.0, None], drawn[1.0, (0.5, 1.0)])
    assert np.array_equal(drawn[0.0, None], drawn[0.0, (0.5, 1.0)])


def test_the_control_and_its_weights_lie_in_a_branch(exported):
    model, deploy = exported["edges"]
    graph = onnx.load(deploy / "denoiser.onnx").graph
    (switch,) = (node for node in graph.node if node.op_type == "If")
    branches = {attribute.name: attribute.g for attribute in switch.attribute}
    with_control, without = branches["then_branch"], branches["else_branch"]

    def weights(tensors) -> int:
        return sum(int(np.prod(tensor.dims)) for tensor in tensors)

    controlled = model.network.network
    trained = sum(p.numel() for p in controlled.controls.parameters())
    frozen = sum(p.numel() for p in model.network.parameters()) - trained
    assert weights(with_control.initializer) == pytest.approx(trained, rel=0.05)
    assert weights(graph.initializer) == pytest.approx(frozen, rel=0.05)
    assert [value.name for value in graph.output] == ["out"]
    made = {name for node in with_control.node for name in node.output}
    assert not {name for node in with_control.node for name in node.input} & {t.name for t in graph.initializer}
    assert len(without.output) == len(with_control.output) == len(controlled.controls[0].zero)
    assert {value.name for value in with_control.output} <= made


def test_a_weight_of_0_costs_less(exported, monkeypatch):
    """By what is evaluated, not by the clock: a control whose weights are NaN does no harm where its weight is 0."""
    _, deploy = exported["edges"]
    proto = onnx.load(deploy / "denoiser.onnx")
    (switch,) = (node for node in proto.graph.node if node.op_type == "If")
    for tensor in next(each.g for each in switch.attribute if each.name == "then_branch").initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = np.full(tuple(tensor.dims), np.nan, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    whole = Sampler(deploy, providers=[CPU], in_graph=False)
    import onnxruntime

    spoilt = onnxruntime.InferenceSession(proto.SerializeToString(), providers=[CPU])
    x, t = np.zeros((2, 1, 8, 8), np.float32), np.array([3, 7])
    given = {"label": np.array([0, 1]), "control": np.stack([EDGES] * 2)}
    for weights, finite in (([0, 0, 1], True), ([1, 1, 1], False)):
        told = {**given, "control_weights": np.array([weights] * 2, np.float32)}
        out = spoilt.run(None, {"x": x, "t": t, **told})[0]
        assert np.isfinite(out).all() == finite
        assert not finite or np.allclose(out, whole.denoise(x, t, told), atol=1e-6)


@pytest.mark.parametrize("name", WITH_PROMPTS)
def test_a_text_and_a_hint_become_a_picture_in_one_file(exported, name):
    """With no more than that; the plan's own weights are the default."""
    model, deploy = exported[name]
    session = open_text_to_image(deploy / "text_to_image.onnx")
    (shape,) = (column.shape for column in model.columns if column.name == "control")
    x, hint = model.noise(2, 0)().numpy(), np.random.default_rng(0).integers(0, 256, (1, *shape), np.uint8)
    prompt = np.array(["red heart", "blue heart"], object)
    found = {}
    for scale in (None, 0.0):
        weights = {} if scale is None else {"control_plan": np.array([[scale, scale, 1]], np.float32)}
        inputs = {"prompt": prompt, "x": x, "control": hint, **weights}
        images, found[scale] = session.run(["images", "x0"], inputs)
        asked = {} if scale is None else {"control_scale": scale}
        expected = model.sample(2, prompt=list(prompt), control=hint, **asked)
        assert np.abs(images.astype(int) - expected).max() <= 1
    assert not np.allclose(found[None], found[0.0], atol=1e-4)


def test_memory_is_counted_in_the_branch_too(exported):
    _, deploy = exported["colour"]
    graph = onnx.load(deploy / "denoiser.onnx").graph
    (place,) = (number for number, node in enumerate(graph.node) if node.op_type == "If")
    del graph.node[place + 1 :]
    with_control = next(each.g for each in graph.node[place].attribute if each.name == "then_branch")
    inside = activation_bytes(with_control)
    assert inside > 8 * 8 * 8 * 4
    assert activation_bytes(graph) > inside
    del graph.node[place].attribute[:]
    assert activation_bytes(graph) < inside


def test_half_precision(exported, tmp_path):
    model, deploy = exported["edges"]
    export_half(deploy / "denoiser.onnx", tmp_path / "half.onnx")
    # Little more than half of so small a file is weights.
    assert (tmp_path / "half.onnx").stat().st_size < 0.75 * (deploy / "denoiser.onnx").stat().st_size
    import onnxruntime

    half = onnxruntime.InferenceSession(tmp_path / "half.onnx", providers=[CPU])
    x, t = np.random.default_rng(0).standard_normal((2, 1, 8, 8), np.float32), np.array([3, 40])
    given = model.given(2, control=EDGES, label=[0, 1])
    expected = Sampler(deploy, providers=[CPU], in_graph=False).denoise(x, t, given)
    assert np.allclose(half.run(None, {"x": x, "t": t, **given})[0], expected, atol=0.05 * np.abs(expected).max())
