"""What a figure depends on: one id for it, and no comparison across two."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from ddpm.conditioning.columns import LabelColumn, PromptColumn
from ddpm.conditioning.tokenizers import fit_tokenizer
from ddpm.config.base import validate
from ddpm.config.evaluation import PROTOCOLS, EvaluationConfig
from ddpm.config.params import Params
from ddpm.config.sampling import SamplingConfig
from ddpm.data.store import SPLITS, PreparedData
from ddpm.errors import UserError
from ddpm.evaluation.measure import ModelFacts, protocol_of
from ddpm.figures.protocol import EvaluationProtocol, refuse_to_mix
from ddpm.files import read_json, write_json

PROTOCOL = EvaluationProtocol(
    extractor="classifier",
    extractor_sha256="a" * 64,
    train_sha256="b" * 64,
    validation_sha256="c" * 64,
    reference="train",
    reference_count=1438,
    samples=2000,
    sampler="ddim",
    steps=50,
    variance="fixed_small",
    eta=1.0,
    spacing="trailing",
    clip=True,
    dynamic_threshold=None,
    weights="ema",
    splits=10,
    kid_subsets=100,
    kid_subset_size=1000,
    neighbourhood=3,
    nll_samples=40,
    resamples=200,
    seed=0,
    nll_timesteps=100,
)


def described(protocol: EvaluationProtocol) -> dict:
    return {"id": protocol.id, **protocol.as_dict()}


@pytest.mark.parametrize("field", sorted({field.name for field in fields(EvaluationProtocol)} - {"other_plans"}))
def test_every_field_decides_the_id_and_is_named_when_it_differs(field: str):
    value = getattr(PROTOCOL, field)
    other = replace(PROTOCOL, **{field: f"not {value}"})
    assert other.id != PROTOCOL.id
    with pytest.raises(UserError, match=f"one and two were measured under different protocols: {field}: "):
        refuse_to_mix({"one": described(PROTOCOL), "two": described(other)})


def test_the_plans_of_other_links_decide_the_id_and_are_named_by_the_link():
    other = replace(PROTOCOL, other_plans={"upsampler": {"steps": 4}})
    assert other.id != PROTOCOL.id
    with pytest.raises(UserError, match=r"different protocols: upsampler: None → \{'steps': 4\}"):
        refuse_to_mix({"one": described(PROTOCOL), "two": described(other)})


def test_a_protocol_recorded_before_a_field_existed_is_that_of_its_default():
    now = replace(PROTOCOL, nll_timesteps=None)
    assert "nll_timesteps" not in now.as_dict()
    assert now.id == "c9a911e2efa2"  # as it was recorded then
    with pytest.raises(UserError, match="nll_timesteps: None → 100"):
        refuse_to_mix({"then": described(now), "now": described(PROTOCOL)})


@pytest.mark.parametrize("labels", ["frequencies", "balanced"])
def test_what_is_asked_is_in_the_protocol_of_a_conditional_model_alone(project: Path, labels: str):
    data = PreparedData.open(project / "prepared")
    extractor = {"kind": "classifier", "sha256": "a" * 64}
    found = {
        bool(columns): protocol_of(
            params(labels=labels), ModelFacts(SamplingConfig(), "fixed_small", "ema", columns), data, extractor
        )
        for columns in ((), (LabelColumn(("a", "b"), (1, 2)),))
    }
    assert found[True].as_dict()["labels"] == labels
    assert "labels" not in found[False].as_dict()
    assert found[True].as_dict()["labels_sha256"] == data.manifest.labels_sha256
    assert found[False] == replace(found[True], labels=None, labels_sha256=None)


def test_a_model_without_frequencies_is_asked_for_all_classes_equally_often(project: Path):
    facts = ModelFacts(SamplingConfig(), "fixed_small", "ema", (LabelColumn(("a", "b")),))
    extractor = {"kind": "classifier", "sha256": "a" * 64}
    found = protocol_of(params(labels="frequencies"), facts, PreparedData.open(project / "prepared"), extractor)
    assert found.labels == "balanced"


def test_the_captions_are_in_the_protocol_of_a_model_that_is_told_them(project: Path):
    data = PreparedData.open(project / "prepared")
    data.manifest = data.manifest.model_copy(update={"captions_sha256": "c" * 64})
    prompt = PromptColumn(fit_tokenizer(["a cat"], {"tokenizer": "words", "length": 4, "minimum_count": 1}), ("a cat",))
    found = [
        protocol_of(
            params(),
            ModelFacts(SamplingConfig(), "fixed_small", "ema", columns),
            data,
            {"kind": "classifier", "sha256": "a" * 64},
        )
        for columns in ((), (prompt,))
    ]
    assert [each.as_dict().get("captions_sha256") for each in found] == [None, "c" * 64]
    assert found[1].labels is None
    assert found[0].id != found[1].id


def test_equal_protocols_mix():
    assert PROTOCOL.id == replace(PROTOCOL).id
    refuse_to_mix({"one": described(PROTOCOL), "two": described(PROTOCOL), "three": described(replace(PROTOCOL))})


def params(**evaluation) -> Params:
    extractor = {"kind": "inception"} if evaluation.get("protocol") == "inception-50k" else {}
    return validate(Params, {"evaluation": evaluation, "extractor": extractor, "models": {"ddpm": {}}}, "params.yaml")


def test_a_protocol_stands_for_its_values_and_other_keys_override_them():
    papers = params(protocol="inception-50k").evaluation
    assert (papers.samples, papers.features, papers.reference, papers.splits) == (50_000, "inception", "published", 10)
    assert params(protocol="inception-50k", samples=10_000).evaluation.samples == 10_000
    assert params(protocol="digits-2k").evaluation == params().evaluation == EvaluationConfig()
    assert params(protocol="quick").evaluation.samples < 500


def test_every_choice_of_a_sampling_plan_is_in_the_protocol():
    assert set(SamplingConfig.model_fields) <= {field.name for field in fields(EvaluationProtocol)}


@pytest.mark.parametrize("reference", ["train", "all"])
@pytest.mark.parametrize("name", SPLITS)
def test_other_images_in_either_split_are_another_protocol(project: Path, name: str, reference: str):
    """Validation images too: floors, the likelihood and near copies come of them."""

    def protocol() -> EvaluationProtocol:
        data = PreparedData.open(project / "prepared")
        extractor = {"kind": "classifier", "sha256": "a" * 64}
        facts = ModelFacts(SamplingConfig(), "fixed_small", "ema")
        return protocol_of(params(reference=reference), facts, data, extractor)

    path = project / "prepared/manifest.json"
    before, manifest = protocol(), read_json(path)
    manifest["splits"][name]["sha256"] = "b" * 64
    write_json(path, manifest)
    assert protocol() == replace(before, **{f"{name}_sha256": "b" * 64})


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_written_protocol_is_the_named_one(name: str):
    """A configuration read back from its own values."""
    evaluation = params(protocol=name).evaluation
    assert EvaluationConfig.model_validate(evaluation.model_dump()) == evaluation


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"protocol": "fid-10k"}, "`evaluation.protocol`: input should be 'digits-2k', 'inception-50k' or 'quick'"),
        ({"protocol": ["quick"]}, "`evaluation.protocol`"),
        ({"sampling": {"step": 3}}, "unknown key `evaluation.sampling.step`"),
        ({"protocol": "quick", "resamples": 1}, "`evaluation.resamples`"),
        ("quick", "`evaluation`"),
    ],
)
def test_a_wrong_key_is_named(evaluation, words: str):
    with pytest.raises(UserError, match=words):
        validate(Params, {"evaluation": evaluation, "models": {"ddpm": {}}}, "params.yaml")


def test_the_papers_protocol_is_of_inception_features_alone():
    with pytest.raises(UserError, match=r"inception-50k measures in .*extractor.kind is auto: set it to inception"):
        validate(Params, {"evaluation": {"protocol": "inception-50k"}, "models": {"ddpm": {}}}, "params.yaml")
