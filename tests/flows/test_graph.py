"""dvc.yaml against the code: a stage's deps are the code that decides what it writes, no less and no more."""

import re
from pathlib import Path

import pytest
import yaml

from ddpm.closure import _NEUTRAL, _UNUSED, deciding_code
from ddpm.config.params import TRACKED
from ddpm.stages.fingerprint import decisive_code
from ddpm.stages.guide import JUDGED

ROOT = Path(__file__).parents[2]
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


# The same command and code, of other models.
SAME = {"train-guide": "train", "train-base": "train", "train-upsampler": "train"}
KINDS = ("cascade", "unclip", "latent", "control")
SAME |= {f"{stage}-{kind}": stage for stage in ("evaluate", "export") for kind in KINDS}
SAME |= dict.fromkeys(("train-prior", "train-decoder", "train-unclip-upsampler"), "train") | {
    "compose-unclip": "compose"
}
SAME |= {"train-latent": "train", "evaluate-autoencoder": "evaluate", "train-control": "train"}
SAME |= {"train-encoder": "train", "evaluate-encoder": "evaluate"} | dict.fromkeys(JUDGED, "guide")


def body(stage: str) -> dict:
    return GRAPH[stage].get("do", GRAPH[stage])


def code_deps(stage: str) -> list[str]:
    return [dep for dep in body(stage).get("deps", []) if dep.endswith(".py")]


@pytest.mark.parametrize("stage", GRAPH)
def test_a_stages_deps_are_the_code_that_decides_what_it_writes(stage):
    assert code_deps(stage) == [f"ddpm/{file}" for file in deciding_code(SAME.get(stage, stage))]


def test_what_dvc_tracks_beside_models_has_to_be_written():
    """`check_sections` names what is missing; DVC would do so at the stage that it comes to, after hours."""
    named = {key.partition(".")[0] for stage in GRAPH for key in body(stage).get("params", []) if isinstance(key, str)}
    assert named - {"models", "cascades", "unclips"} == {*TRACKED}


@pytest.mark.parametrize("other", ["train-guide", "train-base", "train-upsampler", "train-encoder"])
def test_a_stage_of_other_models_differs_in_the_models_alone(other):
    def of(stage: str) -> str:
        own = {key: value for key, value in body(stage).items() if key not in ("matrix", "desc")}
        return re.sub(r"\$\{item\.\w+\}", "V", yaml.safe_dump(own))

    assert of(other) == of("train")
    assert "${item." in str(body(other))


@pytest.mark.parametrize("stage", ["train", "evaluate", "export"])
def test_a_stage_of_controls_differs_in_the_models_and_what_it_needs_besides(stage):
    def of(name: str) -> dict:
        own = {key: value for key, value in body(name).items() if key not in ("matrix", "desc", "plots")}
        return yaml.safe_load(re.sub(r"\$\{item\.variant\}|\$\{key\}", "V", yaml.safe_dump(own)))

    own, plain = of(f"{stage}-control"), of(stage)
    more = [each for each in own["params"] if each not in plain["params"]]
    assert more == ([{"models/${item.of}/model.json": ["training.fingerprint"]}] if stage == "train" else [])
    own["params"] = [each for each in own["params"] if each in plain["params"]]
    assert own == plain


def test_code_that_is_left_out_by_name_is_there():
    """A file that moved would be left out no longer, in silence."""
    left_out = {*_NEUTRAL, *(file for files in _UNUSED.values() for file in files)}
    assert not [name for name in left_out if not (ROOT / "ddpm" / name).exists()]


@pytest.mark.parametrize("stage", ["train", "train-autoencoder"])
def test_the_fingerprint_of_a_training_is_of_the_same_code(stage):
    assert [f"ddpm/{file}" for file in decisive_code(stage)] == [
        dep for dep in code_deps(stage) if not dep.startswith("ddpm/config/")
    ]


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        (
            "ddpm/export/files.py",
            {"fetch", "prepare", "fit-extractor", "train", "train-guide", "guide", "compose", "evaluate"},
        ),
        ("ddpm/evaluation/metrics.py", {"fetch", "prepare", "fit-extractor", "train", "export"}),
        ("ddpm/diffusion/plans.py", {"fetch", "prepare", "fit-extractor", "train"}),
        ("ddpm/config/promotion.py", set(GRAPH)),
        ("ddpm/evaluation/extractor.py", {"train", "train-latent", "encode", "embed", "export"}),
        ("ddpm/stages/encode.py", {"train", "train-latent", "evaluate", "export"}),
        ("ddpm/config/evaluation.py", {"fetch", "prepare", "fit-extractor", "train", "export"}),
        ("flows/retrain.py", set(GRAPH)),
    ],
)
def test_a_change_reruns_only_what_it_concerns(changed, kept):
    assert not {stage for stage in kept if changed in code_deps(stage)}
