"""A guide in the pipeline: what params.yaml may say of it, and the file by which DVC knows of its weights."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest

from ddpm.config.base import validate
from ddpm.config.params import Params, check_sections
from ddpm.errors import UserError
from ddpm.files import sha256_of
from ddpm.stages.guide import record_guide

CLASSIFIER = {
    "network": {"kind": "classifier"},
    "condition": {"label": {"drop": 0}},
    "objective": {"loss": "cross_entropy"},
}
MODELS: dict = {
    "plain": {},
    "guided": {"sampling": {"guide": "models/classifier", "guidance_scale": 2}},
    "moved": {"sampling": {"guide": "weak", "guidance_scale": 2}},
    "classifier": CLASSIFIER,
    "weak": {},
}


def params(**changes) -> Params:
    given = {"variants": ["plain", "guided", "moved"], "guides": ["classifier", "weak"], "models": deepcopy(MODELS)}
    return validate(Params, given | changes, "params.yaml")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Model directories, as far as this stage reads them."""
    for name in MODELS:
        directory = tmp_path / "models" / name
        directory.mkdir(parents=True)
        (directory / "model.json").write_text(json.dumps({"variant": name}))
        (directory / "model.safetensors").write_bytes(name.encode())
    return tmp_path


def recorded(root: Path, known: Params) -> dict[str, bytes]:
    """The files of all pairs, as the stages of dvc.yaml write them."""
    for variant in known.variants:
        for guide in known.guides:
            record_guide(known, variant, guide, root=root)
    return {str(path.relative_to(root / "models")): path.read_bytes() for path in root.glob("models/*/guides/*")}


def test_only_the_file_of_a_models_own_guide_changes_with_the_guide(trained: Path):
    before = recorded(trained, params())
    assert len(before) == 6
    assert json.loads(before["plain/guides/classifier.json"]) == {}
    own = json.loads(before["guided/guides/classifier.json"])
    assert own["model.safetensors"] == sha256_of(trained / "models/classifier/model.safetensors")
    for file in ("model.json", "model.safetensors"):
        with (trained / "models/classifier" / file).open("a") as stream:
            stream.write(" ")
        after = recorded(trained, params())
        assert [name for name in before if after[name] != before[name]] == ["guided/guides/classifier.json"]
        before = after


def test_the_plan_that_all_are_measured_by_has_a_guide_too(trained: Path):
    found = recorded(trained, params(evaluation={"sampling": {"guide": "models/weak", "guidance_scale": 2}}))
    assert {name for name in found if json.loads(found[name])} == {
        "plain/guides/weak.json",
        "guided/guides/weak.json",
        "guided/guides/classifier.json",
        "moved/guides/weak.json",
    }


def test_what_is_not_there_is_named(trained: Path):
    with pytest.raises(UserError, match="plain is not among the `guides`"):
        record_guide(params(), "plain", "plain", root=trained)
    (trained / "models/classifier/model.json").unlink()
    with pytest.raises(UserError, match="`ddpm train classifier` makes"):
        record_guide(params(), "plain", "classifier", root=trained)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guides": ["classifier", "classifier"]}, "`guides` names a model twice"),
        ({"guides": ["other"]}, "`guides` names 'other', but `models` has only: plain, guided"),
        ({"variants": ["plain"], "guides": ["plain"]}, "`guides` names 'plain', which is among `variants` too"),
        ({"variants": ["classifier"]}, "names 'classifier', of network.kind classifier, .*: write it in `guides`"),
        (
            {"guides": ["weak"]},
            "models.guided.sampling.guide of guided, .* is 'models/classifier': expected models/NAME of a NAME in "
            "`guides`, found there: weak",
        ),
        (
            {"evaluation": {"sampling": {"guide": "/elsewhere/models/weak", "guidance_scale": 2}}},
            "evaluation.sampling.guide of plain, .* is '/elsewhere/models/weak'",
        ),
        (
            {
                "variants": ["a", "a-b"],
                "guides": ["b-c", "c"],
                "models": {name: {} for name in ("a", "a-b", "b-c", "c")},
            },
            "two pairs of `variants` and `guides` come to one name, a-b-c",
        ),
        (
            {"models": MODELS | {"classifier": CLASSIFIER | {"process": {"timesteps": 500}}}},
            "models.classifier guides models.guided, but its process.timesteps is 500 and not 1000",
        ),
        (
            {"models": MODELS | {"weak": {"process": {"prediction": "v"}}}},
            "models.weak guides models.moved, but its process.prediction is 'v' and not 'epsilon'",
        ),
    ],
)
def test_what_cannot_be_built(changes: dict, words: str):
    with pytest.raises(UserError, match=words) as caught:
        params(**changes)
    assert "\n" not in str(caught.value)


def test_a_clip_guides_as_a_classifier_does():
    clip = {
        "network": {"kind": "clip"},
        "condition": {"prompt": {"drop": 0}},
        "objective": {"loss": "contrastive", "noised": True},
    }
    assert params(models=MODELS | {"classifier": clip}).guides_of("guided") == {"classifier"}


def test_a_model_that_is_not_built_may_have_any_guide():
    known = params(variants=["plain"], guides=[])
    assert known.guides_of("moved") == {"weak"}
    assert known.guides_of("plain") == set()


def test_dvc_needs_every_section_of_a_guide():
    sections = {name: {} for name in ("network", "condition", "codec", "process", "objective", "training", "sampling")}
    known = params(variants=["plain"], guides=["weak"], models={"plain": sections, "weak": {}})
    with pytest.raises(UserError, match=r"add `seed: 0`, .* beside `models`; `network: \{\}`, .* under models.weak$"):
        check_sections(known)
