"""dvc.yaml against the code: a stage's deps are the code that decides what it writes, no less and no more."""

from pathlib import Path

import pytest
import yaml

from ddpm.closure import closure

ROOT = Path(__file__).parents[2]
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
MODULES = {"fit-extractor": "extractor"}

# Code that every stage may import and that decides no byte of what it writes.
NEUTRAL = {
    "ddpm/__init__.py",
    "ddpm/closure.py",
    "ddpm/stages/fingerprint.py",
    "ddpm/data/__init__.py",
    "ddpm/diffusion/__init__.py",
    "ddpm/errors.py",
    "ddpm/evaluation/progress.py",
    "ddpm/yaml_file.py",
    "ddpm/figures.py",
    "ddpm/files.py",
    "ddpm/promotion.py",
    "ddpm/layout.py",
    "ddpm/stages/__init__.py",
    "ddpm/stages/progress.py",
    "ddpm/stages/watch.py",
    *(str(path.relative_to(ROOT)) for path in ROOT.glob("ddpm/tracking/*.py")),
}


def reachable(stage: str) -> set[str]:
    """All files of this package that running a stage can import."""
    return {f"ddpm/{file}" for file in closure(f"stages/{MODULES.get(stage, stage)}.py")}


def code_deps(stage: str) -> set[str]:
    return {dep for dep in GRAPH[stage].get("deps", []) if dep.endswith(".py")}


@pytest.mark.parametrize("stage", GRAPH)
def test_every_file_named_exists(stage):
    assert not [dep for dep in code_deps(stage) if not (ROOT / dep).is_file()]


@pytest.mark.parametrize("stage", GRAPH)
def test_only_code_that_the_stage_can_reach_is_named(stage):
    assert code_deps(stage) <= reachable(stage)


# What a stage can reach but does not use, and where it comes in.
UNUSED = {
    "fetch": {"ddpm/data/images.py", "ddpm/data/kinds.py"},  # decoding and scales, for `prepare`
    "train": {
        *("ddpm/diffusion/noise.py", "ddpm/diffusion/plans.py", "ddpm/diffusion/sampling.py"),  # a model can sample
        "ddpm/evaluation/pictures.py",  # of samples, to watch
        # tracking, when it registers
        *("ddpm/deploy/facts.py", "ddpm/deploy/integrity.py", "ddpm/deploy/runtime.py", "ddpm/evaluation/protocol.py"),
    },
    "export": {"ddpm/diffusion/process.py"},  # a model knows the process it was trained on
}


@pytest.mark.parametrize("stage", GRAPH)
def test_all_code_that_decides_is_named(stage):
    assert reachable(stage) - code_deps(stage) - NEUTRAL == UNUSED.get(stage, set())


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ("ddpm/deploy/export.py", {"fetch", "prepare", "fit-extractor", "train", "evaluate"}),
        ("ddpm/evaluation/metrics.py", {"fetch", "prepare", "fit-extractor", "train", "export"}),
        ("ddpm/diffusion/plans.py", {"fetch", "prepare", "fit-extractor", "train"}),
        ("flows/retrain.py", set(GRAPH)),
    ],
)
def test_a_change_reruns_only_what_it_concerns(changed, kept):
    assert not {stage for stage in kept if changed in code_deps(stage)}
