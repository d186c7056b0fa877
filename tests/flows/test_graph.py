"""dvc.yaml against the code: a stage's deps are the code that decides what it writes, no less and no more."""

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
MODULES = {"fit-extractor": "extractor"}

# Code that every stage may import and that decides no byte of what it writes.
NEUTRAL = {
    "ddpm/__init__.py",
    "ddpm/data/__init__.py",
    "ddpm/diffusion/__init__.py",
    "ddpm/errors.py",
    "ddpm/figures.py",
    "ddpm/files.py",
    "ddpm/promotion.py",
    "ddpm/layout.py",
    "ddpm/stages/progress.py",
    "ddpm/stages/watch.py",
    *(str(path.relative_to(ROOT)) for path in ROOT.glob("ddpm/tracking/*.py")),
}


def imported(path: Path) -> set[Path]:
    """The files of this package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ddpm":
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found |= {file for name in names for file in files_of(name)}
    return found


def files_of(module: str) -> list[Path]:
    base = ROOT.joinpath(*module.split("."))
    return [file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()]


def closure(stage: str) -> set[str]:
    """All files of this package that running a stage can import."""
    todo, seen = {ROOT / "ddpm" / "stages" / f"{MODULES.get(stage, stage)}.py"}, set()
    while todo:
        path = todo.pop()
        seen.add(path)
        todo |= imported(path) - seen
    return {str(path.relative_to(ROOT)) for path in seen if path.stat().st_size}


def code_deps(stage: str) -> set[str]:
    return {dep for dep in GRAPH[stage].get("deps", []) if dep.endswith(".py")}


@pytest.mark.parametrize("stage", GRAPH)
def test_every_file_named_exists(stage):
    assert not [dep for dep in code_deps(stage) if not (ROOT / dep).is_file()]


@pytest.mark.parametrize("stage", GRAPH)
def test_only_code_that_the_stage_can_reach_is_named(stage):
    assert code_deps(stage) <= closure(stage)


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
    assert closure(stage) - code_deps(stage) - NEUTRAL == UNUSED.get(stage, set())


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
