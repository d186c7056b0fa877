"""Which files of this package decide what a module does: those that it imports, and those that they import."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection
from pathlib import Path

PACKAGE = Path(__file__).parent


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
