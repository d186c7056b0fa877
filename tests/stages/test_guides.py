"""Models with a guide, exported: a classifier or a CLIP whose gradient is in the graph, and a weaker model."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from test_classifier import CLASSIFIER, with_models
from untrained import ONE_LEVEL, export, untrained

import ddpm
from ddpm.cli.main import main
from ddpm.conditioning.guidance import ClassifierGradient, CLIPGradient
from ddpm.conditioning.tokenizers import fit_tokenizer
from ddpm.config.condition import PromptConfig
from ddpm.config.model import ModelConfig
from ddpm.config.params import Params
from ddpm.config.sampling import SamplingConfig
from ddpm.data.store import PreparedData
from ddpm.deploy.runtime import CPU, Sampler, import_onnxruntime
from ddpm.drawer.cascade import Cascade
from ddpm.errors import UserError
from ddpm.export.cascade_parity import measure_cascade_parity
from ddpm.export.files import (
    describe_sampler,
    export_guide,
    export_half,
    export_sampler,
    write,
)
from ddpm.export.parity import CHAIN_LEVELS, measure_parity
from ddpm.export.text_to_image import export_text_to_image, links_of
from ddpm.layout import PREPARED
from ddpm.model import Model
from ddpm.model import save as save_model
from ddpm.model.card import DataFacts, TextFacts
from ddpm.serve.models import load_model
from ddpm.stages.evaluate import evaluate_variant
from ddpm.stages.export import export_variant
from ddpm.stages.measure import evaluate_deployed
from ddpm.stages.train import data_facts

onnxruntime = import_onnxruntime()


def tokenizer(captions: tuple[str, ...], **options: Any) -> dict[str, Any]:
    return fit_tokenizer(captions, PromptConfig(**{**PROMPT, **options}).model_dump()).as_json()


PROMPT: dict[str, Any] = {"length": 4, "width": 16, "layers": 1, "heads": 2, "drop": 0}
FACTS = DataFacts(name="dots", shape=(8, 8, 1), classes=("a", "b", "c"), class_counts=(3, 2, 1))
CAPTIONS = ("a light square", "a dark square", "night")
TOLD = FACTS.model_copy(update={"text": TextFacts(tokenizer=tokenizer(CAPTIONS), captions=CAPTIONS)})
BARE = {**ONE_LEVEL, "middle_attention": False}
ATTENTIVE = {**ONE_LEVEL, "attention_resolutions": [8], "head_channels": 4}
STEEP = 300.0  # the scale of a CLIP
SMALL_CLASSIFIER = {"kind": "classifier", **ONE_LEVEL, "head_channels": 8}
CLIP = {
    "network": {"kind": "clip", **ONE_LEVEL, "head_channels": 8, "embedding": 6},
    "condition": {"prompt": PROMPT},
    "process": CLASSIFIER["process"],
    "objective": {"loss": "contrastive", "noised": True},
}
# A classifier with all that its paper's has.
ADM = {"scale_shift": True, "resample": "residual", "checkpointing": True}
PLAIN = {"scale_shift": False, "resample": "plain", "timestep_scale": 0.5}
SEED = 7  # of weights with which guidance and the label move an image
GUIDED = {"steps": 5, "guide": "", "guidance_scale": 2.0}


class Case(NamedTuple):
    """A model with its guide, where it was exported, and the exported one opened by both loops; and three values of the
    column by which it is guided."""

    model: Model
    deploy: Path
    guide: Path
    outside: Sampler
    inside: Sampler
    column: str
    values: tuple[str, ...]

    def asked(self, *places: int) -> dict[str, list[str]]:
        """Of the column the values at these places."""
        return {self.column: [self.values[place] for place in places]}

    @property
    def unguided(self) -> float:
        """The scale of no guidance."""
        return 0.0 if self.model.by_classifier else 1.0


def steep_classifier(name: str, directory: Path, facts: DataFacts, *, seed: int = 0, **sections: Any) -> Path:
    """Untrained, but with gradients that move an image."""
    path = untrained(name, directory, facts, seed=seed, **{**CLASSIFIER, **sections})
    model = ddpm.load(path)
    with torch.no_grad():
        model.network.pool.out.weight *= 1000
    save_model(model, path)
    return path


def steep_clip(name: str, directory: Path, facts: DataFacts = TOLD, *, seed: int = SEED, **sections: Any) -> Path:
    """The same of a CLIP, whose texts differ."""
    path = untrained(name, directory, facts, seed=seed, **{**CLIP, **sections})
    model = ddpm.load(path)
    with torch.no_grad():
        model.network.log_scale.fill_(math.log(STEEP))
        model.network.image.pool.out.weight *= 1000
        for block in model.network.text.encoder.blocks:
            block.norm1.weight.fill_(10)
            block.norm1.bias.zero_()
            block.out.weight *= 100
    save_model(model, path)
    return path


def exported(directory: Path, guide: Path, facts: DataFacts = FACTS, **sections: Any) -> Case:
    model = ddpm.load(untrained("model", directory, facts, seed=SEED, **{"network": BARE, **sections}))
    model = model.sampled_by(SamplingConfig(**{**GUIDED, "guide": str(guide)}))
    deploy = directory / "deploy"
    export(model, deploy)
    column, values = ("label", FACTS.classes) if facts.text is None else ("prompt", CAPTIONS)
    return Case(model, deploy, guide, Sampler(deploy), Sampler(deploy, in_graph=True), column, values)


@pytest.fixture(scope="module")
def by_classifier(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """An unconditional model, whose label is the classifier's alone."""
    directory = tmp_path_factory.mktemp("by-classifier")
    return exported(directory, steep_classifier("classifier", directory, FACTS, seed=SEED, network=SMALL_CLASSIFIER))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A conditional model that learns its variance and predicts v; it could guide itself, too."""
    directory = tmp_path_factory.mktemp("learned")
    process = {"timesteps": 50, "variance": "learned_range", "prediction": "v"}
    guide = steep_classifier("classifier", directory, FACTS, seed=SEED, network=SMALL_CLASSIFIER)
    condition = {"label": {"drop": 0.1}}
    return exported(directory, guide, condition=condition, process=process, objective={"loss": "hybrid"})


@pytest.fixture(scope="module")
def by_weaker(tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = tmp_path_factory.mktemp("by-weaker")
    condition = {"condition": {"label": {"drop": 0}}}
    weak = untrained("weak", directory, FACTS, seed=SEED, **condition, network={**BARE, "width": 4})
    return exported(directory, weak, **condition)


@pytest.fixture(scope="module")
def by_clip(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """An unconditional model, whose prompt is the CLIP's alone."""
    directory = tmp_path_factory.mktemp("by-clip")
    return exported(directory, steep_clip("clip", directory), TOLD)


@pytest.fixture(scope="module")
def told_by_clip(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A model of prompts that learns its variance; it could guide itself, too."""
    directory = tmp_path_factory.mktemp("told-by-clip")
    process = {"timesteps": 50, "variance": "learned_range", "prediction": "v"}
    sections = {"condition": {"prompt": {**PROMPT, "drop": 0.1}}, "process": process, "objective": {"loss": "hybrid"}}
    return exported(directory, steep_clip("clip", directory), TOLD, **sections, network=ATTENTIVE)


@pytest.fixture(
    params=[
        "by_classifier",
        pytest.param("learned", marks=pytest.mark.slow),
        "by_weaker",
        "by_clip",
        pytest.param("told_by_clip", marks=pytest.mark.slow),
    ]
)
def case(request: pytest.FixtureRequest) -> Case:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampler": "ancestral", "steps": 20},
        {"sampler": "unipc", "steps": 10, "guidance_interval": (0.2, 0.6)},
        {"guidance_scale": 0.0},
    ],
    ids=["own", "ancestral", "interval", "zero"],
)
def test_it_draws_what_the_trained_model_draws(case: Case, options: dict):
    asked = {"seed": 1, **case.asked(0, 2), **options}
    drawn = case.outside.sample(4, **asked)
    np.testing.assert_allclose(drawn.astype(int), case.model.sample(4, **asked).astype(int), atol=1)
    np.testing.assert_array_equal(drawn, case.inside.sample(4, **asked))
    np.testing.assert_array_equal(drawn, case.inside.sample(4, batch_size=3, **asked))


def test_guidance_and_what_is_asked_for_move_it(case: Case):
    def drawn(scale: float, place: int = 1, **options: Any) -> np.ndarray:
        return case.outside.sample(4, seed=1, **case.asked(place), guidance_scale=scale, **options).astype(int)

    for options in ({"sampler": "ddim"}, {"sampler": "ancestral"}):
        assert np.abs(drawn(2.0, **options) - drawn(case.unguided, **options)).max() > 5
    assert np.abs(drawn(3.0) - drawn(3.0, 2)).max() > 5


def test_parity_runs_every_way_of_guidance(case: Case):
    parity = measure_parity(case.model, case.deploy, samples=4, steps=20, tolerances={"fp32": 1e-5})
    assert parity["passed"], parity
    assert parity["sampler"] == ("ddim and ancestral" if case.model.by_classifier else "ddim")
    # A guide that is a hundredth off is found.
    spoilt = shutil.copytree(case.deploy, case.deploy.with_name("spoilt"))
    guide = onnx.load(spoilt / "guide.onnx")
    name = guide.graph.output[0].name
    for node in guide.graph.node:
        node.output[:] = ["exact" if value == name else value for value in node.output]
        node.input[:] = ["exact" if value == name else value for value in node.input]
    guide.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1.01), "off"))
    guide.graph.node.append(onnx.helper.make_node("Mul", ["exact", "off"], [name]))
    onnx.save(guide, spoilt / "guide.onnx")
    parity = measure_parity(case.model, spoilt, samples=4, steps=20, tolerances={"fp32": 1e-5})
    assert not parity["files"]["denoiser.onnx"]["passed"]


def test_the_files_say_what_guides(case: Case):
    facts = json.loads((case.deploy / "sampler.json").read_text())
    guide = case.model.guide
    assert (facts["format"], facts["sampling"]["guide"]) == (2, str(case.guide))
    assert facts["guide"]["kind"] == (guide.card.config.network.kind if case.model.by_classifier else "model")
    assert facts["guide"]["training"]["fingerprint"] == guide.card.training.fingerprint
    sampler = case.outside
    assert (sampler.guidable, sampler.by_classifier) == (True, case.model.by_classifier)
    assert sampler.columns == case.model.columns
    assert sampler.plan().evaluations == case.model.plan().evaluations == 10
    drawn = [each.given(50, seed=2)[case.column] for each in (sampler, case.model)]
    np.testing.assert_array_equal(*drawn)
    session = onnxruntime.InferenceSession(case.deploy / "guide.onnx", providers=[CPU])
    about = session.get_modelmeta().custom_metadata_map
    assert (about["variant"], about["guides"]) == (guide.card.variant, "model")
    for name in ("denoiser", "guide", "sampler"):
        proto = onnx.load(case.deploy / f"{name}.onnx")
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)


def test_a_weaker_model_of_captions_reads_those_of_the_model(tmp_path: Path):
    condition = {"condition": {"prompt": PROMPT}}
    weak = untrained("weak", tmp_path, TOLD, seed=SEED, **condition, network={**ATTENTIVE, "width": 4})
    case = exported(tmp_path, weak, TOLD, **condition, network=ATTENTIVE)
    assert case.outside.columns == case.model.columns
    parity = measure_parity(case.model, case.deploy, samples=2, steps=5, tolerances={"fp32": 1e-5})
    assert parity["passed"], parity


def test_activations_count_the_guide(by_classifier: Case):
    facts = json.loads((by_classifier.deploy / "sampler.json").read_text())
    alone = by_classifier.deploy.with_name("alone")
    alone.mkdir()
    plain = by_classifier.model.sampled_by(SamplingConfig(steps=5))
    (alone / "denoiser.onnx").write_bytes((by_classifier.deploy / "denoiser.onnx").read_bytes())
    describe_sampler(plain, alone)
    # The backward pass keeps what the forward pass computed.
    assert facts["activation_bytes"] > json.loads((alone / "sampler.json").read_text())["activation_bytes"]


@pytest.mark.parametrize("place", [False, True])
def test_a_plan_without_the_guide_is_the_model_alone(case: Case, place: bool):
    """As evaluations ask for it; a model with a null class then guides itself."""
    null = any(column.null is not None for column in case.model.columns)
    plain = SamplingConfig(steps=5, guidance_scale=3.0 if null else 1.0)
    without = (case.inside if place else case.outside).sampled_by(plain.model_dump())
    expected = case.model.sampled_by(plain).sample(3, seed=4).astype(int)
    np.testing.assert_allclose(without.sample(3, seed=4).astype(int), expected, atol=1)
    assert not without.by_classifier
    with pytest.raises(UserError, match=r"sampling\.guide is models/other, but .* was exported with "):
        without.sampled_by({**plain.model_dump(), "guide": "models/other"})


@pytest.mark.parametrize("kind", ["by_classifier", "by_clip"])
def test_half_precision(kind: str, request: pytest.FixtureRequest):
    case: Case = request.getfixturevalue(kind)
    for name in ("denoiser", "guide"):
        export_half(case.deploy / f"{name}.onnx", case.deploy / f"{name}.fp16.onnx")
    half = [case.deploy / f"{name}.fp16.onnx" for name in ("denoiser", "sampler", "guide")]
    export_sampler(case.model, half[0], half[1], half[2])
    asked = {"seed": 1, **case.asked(1)}
    expected = case.model.sample(4, **asked).astype(int)
    for place in (False, True):
        drawn = Sampler(case.deploy, precision="fp16", in_graph=place).sample(4, **asked)
        np.testing.assert_allclose(drawn.astype(int), expected, atol=8)


def test_weights_beside_the_files_serve_both_loops(case: Case):
    large = case.deploy.with_name("large")
    large.mkdir()
    shutil.copy(case.deploy / "sampler.json", large)
    names = ("denoiser", "guide")
    for name in names:
        write(onnx.load(case.deploy / f"{name}.onnx"), large / f"{name}.onnx", most_weights=1000)
        assert (large / f"{name}.onnx.data").stat().st_size > 1000
    export_sampler(case.model, large / "denoiser.onnx", large / "sampler.onnx", large / "guide.onnx")
    assert (large / "sampler.onnx").stat().st_size < (case.deploy / "sampler.onnx").stat().st_size
    for place in (False, True):
        drawn = Sampler(large, in_graph=place).sample(3, seed=1, **case.asked(1))
        np.testing.assert_array_equal(drawn, case.outside.sample(3, seed=1, **case.asked(1)))


def test_it_is_served_with_its_scale_counted_from_0(case: Case):
    served = load_model(str(case.deploy))
    assert served.classes == (FACTS.classes if case.column == "label" else None)
    assert [column.name for column in served.sampler.columns] == [case.column]
    assert served.sampler.unguided_scale == case.unguided
    for scale in (0.0, 1.0, 2.0):
        choice = served.choice(guidance_scale=scale, guidance_interval=None if scale == case.unguided else (0.2, 0.8))
        weights = served.plan(choice).column("guidance")
        assert weights.any() == (scale != served.sampler.unguided_scale)
        assert not weights.all()
    assert served.plan(served.choice()).evaluations == 10


SEQUENCES = DataFacts(name="waves", shape=(1, 8), classes=("a", "b"), kind="sequences", low=(-1.0,), high=(1.0,))


@pytest.mark.parametrize(
    ("network", "encoder"),
    [
        pytest.param(ADM, {"encoder": "clip", "tokenizer": "bpe"}, id="adm, clip's text"),
        pytest.param(PLAIN, {}, id="plain, glide's text", marks=pytest.mark.slow),
    ],
)
def test_the_gradient_of_a_clip_is_autograds(network: dict, encoder: dict, tmp_path: Path):
    options = {**PROMPT, **encoder}
    text = TextFacts(tokenizer=tokenizer(CAPTIONS, **options), captions=CAPTIONS)
    facts, own = TOLD.model_copy(update={"text": text}), {**CLIP["network"], "multipliers": [1, 2], **network}
    clip = steep_clip("clip", tmp_path, facts, network=own, condition={"prompt": options})
    model = ddpm.load(untrained("model", tmp_path, facts, network=BARE)).guided_by(clip)
    export_guide(model, clip / "model.json", tmp_path / "guide.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "guide.onnx", providers=[CPU])
    assert {each.name: each.shape[1:] for each in session.get_inputs()} == {"x": [1, 8, 8], "t": [], "prompt": [4]}
    x, t = torch.randn(4, *model.codec.network_shape), torch.tensor([0, 20, 49, 7])
    prompt = model.given(4, prompt=[*CAPTIONS, ""])["prompt"]
    guide = model.denoiser({"prompt": prompt})
    assert isinstance(guide, CLIPGradient)
    expected = guide.gradient(x, t).numpy()
    largest = np.abs(expected).max()
    assert largest > 0.03
    feed = {"x": x.numpy(), "t": t.numpy(), "prompt": prompt}
    gradient, scale = session.run(["gradient", "scale"], feed)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4 * largest)
    with torch.no_grad():
        moved, plain = guide.guided(x, t, 3.0).numpy(), guide(x, t).numpy()
    np.testing.assert_allclose(plain + 3 * scale * gradient, moved, rtol=1e-4, atol=1e-4)
    (alone,) = session.run(["gradient"], {name: values[2:3] for name, values in feed.items()})
    np.testing.assert_allclose(alone, expected[2:3], rtol=0, atol=1e-4 * largest)


@pytest.mark.parametrize(
    ("facts", "options"),
    [
        pytest.param(FACTS, ADM, id="adm"),
        pytest.param(SEQUENCES, PLAIN, id="plain, 1-D", marks=pytest.mark.slow),
    ],
)
def test_the_gradient_is_autograds(facts: DataFacts, options: dict, tmp_path: Path):
    network = {**CLASSIFIER["network"], **options}
    classifier = steep_classifier("classifier", tmp_path, facts, network=network)
    model = ddpm.load(untrained("model", tmp_path, facts, network=BARE)).guided_by(classifier)
    export_guide(model, classifier / "model.json", tmp_path / "guide.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "guide.onnx", providers=[CPU])
    t = torch.tensor([0, 20, 49, 7])
    x, label = torch.randn(4, *model.codec.network_shape), torch.arange(4) % len(facts.classes)
    guide = ClassifierGradient(model.network, model.guide.network, label, model.process())
    expected = guide.gradient(x, t).numpy()
    feed = {"x": x.numpy(), "t": t.numpy(), "label": label.numpy()}
    gradient, scale = session.run(None, feed)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        moved = guide.guided(x, t, 3.0).numpy()
        plain = guide(x, t).numpy()
    np.testing.assert_allclose(plain + 3 * scale * gradient, moved, rtol=1e-5, atol=1e-5)
    (alone,) = session.run(["gradient"], {name: values[2:3] for name, values in feed.items()})
    np.testing.assert_allclose(alone, expected[2:3], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_guided_base_is_a_link_of_a_cascade(by_clip: Case, tmp_path: Path):
    large = DataFacts(name="dots", shape=(16, 16, 1), classes=None)
    condition = {"low": {"side": 8, "noise": 0.2}}
    trained = ddpm.load(untrained("large", tmp_path, large, seed=SEED, network=BARE, condition=condition))
    trained = trained.sampled_by(SamplingConfig(steps=3))
    shutil.copytree(by_clip.deploy, tmp_path / "deploy/base")
    upsampler = Sampler(export(trained, tmp_path / "deploy/upsampler"))
    both = [Cascade.of(base, other) for base, other in ((by_clip.model, trained), (by_clip.outside, upsampler))]
    assert [[column.name for column in cascade.columns] for cascade in both] == [["prompt"]] * 2
    drawn = [cascade.sample(3, seed=1, **by_clip.asked(0, 2, 1)).astype(int) for cascade in both]
    assert np.abs(drawn[0] - drawn[1]).max() <= CHAIN_LEVELS
    assert np.abs(drawn[0] - both[0].sample(3, seed=1, guidance_scale=0.0)).max() > 5
    file = tmp_path / "text_to_image.onnx"
    export_text_to_image(links_of(both[0], tmp_path / "deploy"), file)
    found = measure_cascade_parity(both[0], file, samples=3, steps=5, tolerance=1e-4)
    assert found["passed"], found


class _Odd(torch.nn.Module):
    """A classifier by an operator whose gradient is not known."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.answers, self.weight = network.answers, torch.nn.Parameter(torch.ones(1))

    def forward(self, x, t):
        return torch.erf(self.weight * x).flatten(1)[:, :3]


def test_what_cannot_be_exported_says_so_in_a_line(by_classifier: Case, tmp_path: Path):
    guide = by_classifier.model.guide
    odd = replace(by_classifier.model, guide=replace(guide, network=_Odd(guide.network)))
    with pytest.raises(UserError, match=r"^classifier cannot be exported as a guide: the gradient of .* Erf is not"):
        export_guide(odd, by_classifier.deploy / "denoiser.onnx", tmp_path / "guide.onnx")
    assert not (tmp_path / "guide.onnx").exists()


def guided_project(**sampling: Any) -> Params:
    """Models of this folder's prepared data, untrained: `tiny`, guided by `classifier`."""
    facts = data_facts(PreparedData.open(PREPARED), ModelConfig())
    steep_classifier("classifier", Path("models"), facts, network=SMALL_CLASSIFIER)
    untrained("tiny", Path("models"), facts, network=BARE)
    params = with_models(classifier=CLASSIFIER)
    own = SamplingConfig(**{**GUIDED, "guide": "models/classifier", **sampling})
    tiny = params.models["tiny"].model_copy(update={"sampling": own})
    return params.model_copy(update={"models": {**params.models, "tiny": tiny}})


def test_the_stages_write_measure_and_sample_it(project: Path, capsys: pytest.CaptureFixture[str]):
    params = guided_project()
    export_variant(params, "tiny")
    assert "over 5 steps of ddim and ancestral" in capsys.readouterr().out
    files = {path.name for path in Path("deploy/tiny").iterdir()}
    assert files == {"denoiser.onnx", "guide.onnx", "sampler.onnx", "sampler.json", "parity.json"}
    evaluate_variant(params, "tiny")
    protocol = json.loads(Path("reports/tiny/protocol.json").read_text())
    measured = evaluate_deployed(params, Path("deploy/tiny"))
    assert measured.protocol.id == protocol["id"]
    assert protocol["guide"] == measured.protocol.guide
    assert protocol["guide"].startswith("classifier ")
    plain = params.model_copy(
        update={"evaluation": params.evaluation.model_copy(update={"sampling": SamplingConfig(steps=5)})}
    )
    assert evaluate_deployed(plain, Path("deploy/tiny")).protocol.guide is None
    asked = ["--label", "7", "--guidance-scale", "3", "--n", "2", "--steps", "5"]
    guide = ["--guide", "models/classifier"]
    assert main(["sample", "deploy/tiny", *asked, "--out", "a.npz"]) == 0
    assert main(["sample", "models/tiny", *guide, *asked, "--out", "b.npz"]) == 0
    by_both = [np.load(f"{name}.npz")["images"].astype(int) for name in "ab"]
    assert np.abs(by_both[0] - by_both[1]).max() <= 1
    assert main(["sample", "deploy/tiny", *guide, *asked, "--out", "c.npz"]) == 2
    assert "--guide is for a trained model" in capsys.readouterr().err


def test_a_guide_that_is_not_there_leaves_nothing_written(project: Path):
    params = guided_project(guide="models/nothing")
    with pytest.raises(UserError, match="models/nothing: expected a model directory"):
        export_variant(params, "tiny")
    assert not Path("deploy").exists()
