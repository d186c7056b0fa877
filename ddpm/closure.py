"""Which files of this package decide what a stage writes: those that it imports, and those that they import.

dvc.yaml's deps and the fingerprint of a training both come from here.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection
from pathlib import Path

PACKAGE = Path(__file__).parent

# Where the search stops: code that decides no byte of what any stage writes.
_NEUTRAL = (
    "__init__.py",
    "closure.py",
    "data/__init__.py",
    "deploy/__init__.py",
    "diffusion/__init__.py",
    "errors.py",
    "evaluation/__init__.py",
    "evaluation/progress.py",
    "export/__init__.py",
    "compute/__init__.py",
    "figures/__init__.py",
    "files.py",
    "layout.py",
    "stages/__init__.py",
    "stages/fingerprint.py",
    "stages/live_metrics.py",
    "stages/memory.py",
    "stages/progress.py",
    "tracking/",
    "training/__init__.py",
    "version.py",
)
# The module of each stage, and the sections of params.yaml whose values, with their defaults, it reads. The rest of
# config/ reads and checks the file.
_STAGES = {
    "fetch": ("stages/fetch.py", {"data"}),
    "prepare": ("stages/prepare.py", {"data"}),
    "fit-extractor": ("stages/extractor.py", {"extractor"}),
    "train": ("stages/train.py", {"network", "condition", "codec", "process", "objective", "training"}),
    "train-autoencoder": ("stages/train_autoencoder.py", {"network", "objective", "training", "extractor"}),
    "encode": ("stages/encode.py", set[str]()),
    "embed": ("stages/embed.py", set[str]()),
    "judge": ("stages/guide.py", {"evaluation", "sampling"}),
    "guide": ("stages/guide.py", {"evaluation", "sampling"}),
    "compose": ("stages/compose.py", {"cascade", "sampling"}),
    "evaluate": ("stages/evaluate.py", {"evaluation", "extractor", "sampling"}),
    "export": ("stages/export.py", {"export", "sampling"}),
}
_SAMPLING = (
    *("diffusion/executor.py", "diffusion/noise.py", "diffusion/plans.py", "diffusion/sampling.py"),
    *("drawer/__init__.py", "drawer/parts.py"),
)
# What a stage can reach but does not use.
_UNUSED = {
    "fetch": ("data/captions.py", "data/images.py", "codecs/scale.py"),  # reading, for `prepare`
    # How a model is sampled, which is not trained.
    **dict.fromkeys(("train", "train-autoencoder", "encode", "embed"), _SAMPLING),
}


def deciding_code(stage: str) -> list[str]:
    """The files that decide what a stage of dvc.yaml writes, sorted, as paths below the package."""
    module, sections = _STAGES[stage]
    code = closure(module, without=(*_NEUTRAL, *_UNUSED.get(stage, ()), "config/"))
    return sorted([*code, *(f"config/{section}.py" for section in sections)])


def closure(module: str, *, without: Collection[str] = ()) -> list[str]:
    """The files that running a module can import, sorted, as paths below the package such as `nets/unet.py`.

    Args:
        module: such a path.
        without: paths, or folders such as `tracking/`, at which the search stops.
    """
    todo, seen = [module], set()
    while todo:
        file = todo.pop()
        if file in seen or file.startswith(tuple(without)):
            continue
        seen.add(file)
        todo += _imported(PACKAGE / file)
    return sorted(seen)


def digest(file: str) -> str:
    """A hash of what a file does: of its code, without comments, docstrings and layout."""
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(line: ast.AST) -> bool:
    """Whether a statement is a string alone, as a docstring is."""
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def _imported(file: Path) -> list[str]:
    """The files of this package that a file imports, anywhere in it. Empty ones are left out."""
    modules = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE.name:
            modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    found = [path for module in modules for path in _files_of(module)]
    return [str(path.relative_to(PACKAGE)) for path in found if path.stat().st_size]


def _files_of(module: str) -> list[Path]:
    base = PACKAGE.joinpath(*module.split(".")[1:])
    return [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]
