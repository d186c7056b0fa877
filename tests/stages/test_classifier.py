"""A classifier trained, measured and used as a guide; a weaker model as a guide; and what cannot be."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY_PARAMS, run_cli, write_params
from untrained import untrained

import ddpm
from ddpm.conditioning.guidance import ClassifierGradient
from ddpm.config.model import ModelConfig
from ddpm.config.params import Params, load_params
from ddpm.config.sampling import SamplingConfig
from ddpm.data.store import PreparedData
from ddpm.errors import UserError
from ddpm.evaluation.classifier import accuracy_by_noise
from ddpm.evaluation.likelihood import gigaflops_per_image
from ddpm.files import sha256_of
from ddpm.layout import PREPARED
from ddpm.model.card import DataFacts
from ddpm.stages.compare import compare
from ddpm.stages.dry_run import dry_run
from ddpm.stages.evaluate import evaluate_variant
from ddpm.stages.export import export_variant
from ddpm.stages.train import data_facts, train_variant

NETWORK = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention_resolutions": [4], "groups": 4}
CLASSIFIER = {
    "network": {"kind": "classifier", **NETWORK, "head_channels": 8},
    "condition": {"label": {"drop": 0}},
    "process": {"timesteps": 50, "variance": "fixed_small"},
    "objective": {"loss": "cross_entropy"},
    "training": {**TINY_PARAMS["models"]["tiny"]["training"], "steps": 150, "batch_size": 32, "weight_decay": 0.05},
}


def with_models(**models) -> Params:
    return Params.model_validate(
        {**copy.deepcopy(TINY_PARAMS), "models": {**copy.deepcopy(TINY_PARAMS["models"]), **models}}
    )


@pytest.fixture(scope="module")
def facts() -> DataFacts:
    return DataFacts(name="dots", shape=(8, 8, 1), classes=("a", "b", "c"), class_counts=(3, 2, 1))


def test_trained_measured_and_loaded(project: Path):
    params = with_models(classifier=CLASSIFIER)
    train_variant(params, "classifier")
    model = ddpm.load("models/classifier")
    logits = model.network(torch.zeros(2, 1, 8, 8), torch.tensor([0, 49]))
    assert logits.shape == (2, 10)

    evaluate_variant(params, "classifier")
    rows = list(csv.DictReader(Path("reports/classifier/accuracy.csv").read_text().splitlines()))
    assert [int(row["t"]) for row in rows] == [0, 5, 11, 16, 22, 27, 33, 38, 44, 49]
    accuracy = [float(row["accuracy"]) for row in rows]
    # It has learned: nearly noiseless digits above chance, and noise tells nothing.
    assert accuracy[0] > 0.3
    assert accuracy[0] > accuracy[-1]
    metrics = json.loads(Path("reports/classifier/metrics.json").read_text())
    assert metrics["accuracy"] == pytest.approx(np.mean(accuracy))
    assert metrics["model"] == model.card.training.fingerprint[:12]
    assert Image.open("reports/classifier/accuracy.png").size[0] > 100
    # The measured accuracy at the first level is what the network says of hardly noisy images.
    split = PreparedData.open(PREPARED).split("validation")
    images = torch.from_numpy(split.rows(np.arange(len(split))))
    told = model.network(model.codec.encode(images), torch.zeros(len(split), dtype=torch.int64)).argmax(1)
    assert (told.numpy() == split.labels).mean() == pytest.approx(accuracy[0], abs=0.05)


@pytest.mark.parametrize(("timesteps", "levels"), [(50, 10), (6, 6)])
def test_a_dry_run_tells_the_evaluations_that_its_measuring_takes(project: Path, monkeypatch, timesteps, levels):
    """And not those of samples, which it draws none."""
    monkeypatch.setattr("ddpm.stages.dry_run.TRIAL_SECONDS", 0.1)
    process = {"timesteps": timesteps, "schedule": "cosine"}
    sections = {**CLASSIFIER, "process": process, "sampling": {"steps": 5}}
    data = PreparedData.open(PREPARED)
    done = []
    model = ddpm.load(untrained("classifier", Path("models"), data_facts(data, ModelConfig()), **sections))
    accuracy_by_noise(model, data, seed=0, batch_size=100, on_data=done.append)
    count = len(data.split("validation"))
    told = dry_run(with_models(classifier=sections), "classifier")[-1]
    assert f"{count} images at {levels} levels of noise: {sum(done):,} evaluations of the network, about" in told
    assert sum(done) == count * levels


def test_a_classifier_is_not_sampled_exported_or_built_by_the_pipeline(project: Path):
    params = with_models(classifier=CLASSIFIER)
    facts = data_facts(PreparedData.open(PREPARED), ModelConfig())
    untrained("classifier", Path("models"), facts, **CLASSIFIER)
    with pytest.raises(ValueError, match=r"is a classifier, which draws nothing; it guides other models: .*--guide"):
        ddpm.load("models/classifier").sample(2)
    with pytest.raises(UserError, match=r"is a classifier, which draws nothing; .* There is nothing to export"):
        export_variant(params, "classifier")
    write_params(project, {**TINY_PARAMS, "models": {"classifier": CLASSIFIER}, "variants": ["classifier"]})
    with pytest.raises(
        UserError, match=r"names 'classifier', of network.kind classifier, .*: write it in `guides`, or"
    ):
        load_params()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"condition": {}}, r"needs condition: \{label: \{drop: 0\}\}, found no label"),
        ({"condition": {"label": {}}}, "found drop 0.1"),
        ({"objective": {"loss": "simple"}}, "cross_entropy go together; found classifier and simple"),
        ({"network": NETWORK}, "cross_entropy go together; found unet and cross_entropy"),
        ({"training": {"sample_every": 5}}, "sample_every must be 0"),
        ({"network": {**CLASSIFIER["network"], "multipliers": [1, 1.01]}}, "not a whole number of channels"),
    ],
)
def test_sections_that_do_not_fit(change, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, {**TINY_PARAMS, "models": {**TINY_PARAMS["models"], "classifier": {**CLASSIFIER, **change}}})
    with pytest.raises(UserError, match=words):
        load_params()


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
@pytest.mark.parametrize("condition", [{}, {"label": {"drop": 0}}, {"label": {}}])
@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
def test_a_classifier_guides_models_with_and_without_condition(sampler, condition, variance, tmp_path, facts):
    loss = {"loss": "hybrid" if variance == "learned_range" else "simple"}
    process = {"timesteps": 50, "variance": variance, "prediction": "x0"}
    directory = untrained("model", tmp_path, facts, condition=condition, process=process, objective=loss)
    model, guide = ddpm.load(directory), untrained("classifier", tmp_path, facts, **CLASSIFIER)
    guided = model.guided_by(guide)
    assert isinstance(guided.denoiser(guided.given(1)), ClassifierGradient)
    few = {"steps": 5, "sampler": sampler, "seed": 3, "label": ["a", "c"]}
    plain = {name: value for name, value in few.items() if name != "label" or condition}
    np.testing.assert_array_equal(guided.sample(4, guidance_scale=0, **few), model.sample(4, **plain))
    strong = guided.sample(4, guidance_scale=20, **few)
    assert (strong != model.sample(4, **plain)).any()
    # Whatever the batch, and each by its own seed.
    np.testing.assert_array_equal(guided.sample(4, batch_size=2, guidance_scale=20, **few), strong)


def test_labels_of_a_guided_model_without_condition_are_drawn_as_often_as_in_the_data(tmp_path, facts):
    model = ddpm.load(untrained("model", tmp_path, facts)).guided_by(
        untrained("classifier", tmp_path, facts, **CLASSIFIER)
    )
    drawn = np.bincount(model.given(600, seed=1)["label"], minlength=3)
    np.testing.assert_allclose(drawn / 600, [1 / 2, 1 / 3, 1 / 6], atol=0.06)


def test_a_weaker_model_guides(tmp_path, facts):
    conditional = {"condition": {"label": {"drop": 0}}}
    model = ddpm.load(untrained("model", tmp_path, facts, **conditional))
    weak = untrained("weak", tmp_path, facts, **conditional, network={**NETWORK, "width": 4})
    guided, few = model.guided_by(weak), {"steps": 5, "label": "b"}
    np.testing.assert_array_equal(guided.sample(3, guidance_scale=1, **few), model.sample(3, **few))
    np.testing.assert_array_equal(guided.sample(3, guidance_scale=0, **few), ddpm.load(weak).sample(3, **few))
    assert (guided.sample(3, guidance_scale=3, **few) != model.sample(3, **few)).any()


def test_the_operations_of_a_guide_are_counted(tmp_path, facts):
    model, classifier = untrained("model", tmp_path, facts), untrained("classifier", tmp_path, facts, **CLASSIFIER)
    model = ddpm.load(model).sampled_by(SamplingConfig(steps=5))
    guided = model.guided_by(classifier)
    own = gigaflops_per_image(model)
    by_itself = gigaflops_per_image(
        model.sampled_by(SamplingConfig(steps=5, guide=str(tmp_path / "model"), guidance_scale=2))
    )
    assert by_itself == pytest.approx(2 * own)
    assert gigaflops_per_image(guided) > own


@pytest.mark.parametrize(
    ("data", "sections", "words"),
    [
        ({"shape": (4, 4, 1)}, CLASSIFIER, "it was trained on images of 4×4×1, and the model on images of 8×8×1"),
        ({"classes": ("a", "c", "b")}, CLASSIFIER, "it has the classes a, c, b, and the model the classes a, b, c"),
        (
            {},
            {**CLASSIFIER, "process": {"timesteps": 60}},
            "it was trained with schedule linear with 60 timesteps, and the model with schedule linear with 50",
        ),
        ({}, {"process": {"timesteps": 50, "prediction": "v"}}, "it predicts v, and the model epsilon"),
        ({}, {"condition": {"label": {}}}, "it has the classes a, b, c, and the model no classes"),
    ],
)
def test_guides_that_do_not_fit(data, sections, words, tmp_path, facts):
    model = ddpm.load(untrained("model", tmp_path, facts))
    network = sections.get("network", NETWORK)
    if data.get("shape"):
        network = {**network, "attention_resolutions": []}
    other = facts.model_copy(update=data)
    guide = untrained("guide", tmp_path, other, **{**sections, "network": network})
    with pytest.raises(UserError, match=f"guide cannot guide model: {words}"):
        model.guided_by(guide)


def test_a_guide_of_params_yaml_is_the_models_own(project: Path):
    facts = data_facts(PreparedData.open(PREPARED), ModelConfig())
    untrained("classifier", Path("models"), facts, **CLASSIFIER)
    tiny = {**TINY_PARAMS["models"]["tiny"], "condition": {}}
    tiny["sampling"] = {"steps": 5, "guide": "models/classifier", "guidance_scale": 2.0}
    untrained("tiny", Path("models"), facts)
    other = {"plain": TINY_PARAMS["models"]["tiny"]}
    params = {**TINY_PARAMS, "models": {"tiny": tiny, "classifier": CLASSIFIER, **other}, "variants": ["plain"]}
    write_params(project, params)
    model = ddpm.load("models/tiny")
    assert model.guide is not None
    assert (model.plan().column("guidance") == 2).all()
    evaluate_variant(load_params(), "tiny")
    protocol = json.loads(Path("reports/tiny/protocol.json").read_text())
    assert protocol["guide"] == f"classifier {sha256_of(Path('models/classifier/model.safetensors'))[:12]}"
    assert (protocol["guidance_scale"], protocol["labels"]) == (2.0, "frequencies")


def test_a_comparison_draws_each_model_with_its_own_guide(project: Path):
    """Two models of the same weights, of which a classifier guides one."""
    facts = data_facts(PreparedData.open(PREPARED), ModelConfig())
    untrained("classifier", Path("models"), facts, **CLASSIFIER)
    for name in ("guided", "plain"):
        untrained(name, Path("models"), facts)
    plain = {**copy.deepcopy(TINY_PARAMS["models"]["tiny"]), "condition": {}, "sampling": {"steps": 5}}
    own = {"guide": "models/classifier", "guidance_scale": 30.0, "guidance_interval": [0, 0.9]}
    guided = {**copy.deepcopy(plain), "sampling": {"steps": 5, **own}}
    evaluation = {**TINY_PARAMS["evaluation"], "nll_samples": 0}
    models = {"guided": guided, "plain": plain, "classifier": copy.deepcopy(CLASSIFIER)}
    write_params(project, {**TINY_PARAMS, "evaluation": evaluation, "variants": ["plain"], "models": models})
    found = compare(load_params(), ["guided", "plain"], Path("out"), steps=[2, 5], guidance_scales=[0, 30])
    (curve, other), (scales, none) = found.over_steps, found.over_guidance["fid"]
    assert none == []
    assert [scale for scale, _ in scales] == [0, 30]
    # Its own plan is that of the curve at five steps, and without guidance it is the other model.
    assert scales[1][1] == curve[1][1] != other[1][1]
    assert scales[0][1] == other[1][1]
    mark = sha256_of(Path("models/classifier/model.safetensors"))[:12]
    expected = {"guide": f"classifier {mark}", "guidance_scale": 30.0, "guidance_interval": [0, 0.9]}
    assert json.loads(Path("out/comparison.json").read_text())["guidance"] == {"guided": expected}
    assert f"guided scale 30 in [0, 0.9] by classifier {mark}" in Path("out/report.html").read_text()


def test_the_command_line(project: Path):
    facts = data_facts(PreparedData.open(PREPARED), ModelConfig())
    untrained("classifier", Path("models"), facts, **CLASSIFIER)
    untrained("tiny", Path("models"), facts)
    options = ("--n", "2", "--out", "a.npz", "--steps", "2")
    done = run_cli(
        project, "sample", "tiny", "--guide", "classifier", "--label", "7", "--guidance-scale", "2", *options
    )
    assert done.returncode == 0, done.stderr
    for wrong, words in (
        (("classifier",), "classifier is a classifier, which draws nothing"),
        (("tiny", "--guide", "nothing"), "nothing: expected a model directory"),
        (("tiny", "--guide", "classifier", "--label", "ten"), "label: no class 'ten'; there are: 0, 1"),
        (("tiny", "--guide", "classifier", "--guidance-scale", "-1"), "guidance_scale must be in 0..1000"),
    ):
        done = run_cli(project, "sample", *wrong, *options)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert words in done.stderr
