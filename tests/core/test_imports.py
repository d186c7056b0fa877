"""The rooms of the package and the direction of imports between them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ddpm"

# From the bottom up. A room is a folder or a file at the top level; it imports only rooms of lower floors.
FLOORS = (
    ("errors", "version", "closure", "files", "pixels", "directions", "diffusion", "nets"),
    ("config", "layout", "codecs", "conditioning"),
    ("data", "compute", "figures", "drawer", "first_stage", "joint_space"),
    ("model", "deploy", "interop"),
    ("training", "evaluation", "export", "tracking"),
    ("fitting", "opening", "serve"),
    ("stages", "__init__"),
    ("cli",),
    ("__main__",),
)


# Every module by its dotted name below the package.
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, also inside functions and for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        name = node.module or ""
        if node.level:
            name = ".".join(("ddpm", *path.relative_to(PACKAGE).parts[: -node.level], *name.split(".")))
        if name.split(".")[0] != "ddpm":
            continue
        inner = name.split(".")[1:]
        for alias in node.names:
            names = ([*inner, alias.name], [*inner, alias.name, "__init__"], inner, [*inner, "__init__"])
            candidates = [".".join(words) for words in names]
            found |= {next(candidate for candidate in candidates if candidate in MODULES)}
    return found


GRAPH = {module: imports(path) for module, path in MODULES.items()}


def room_of(module: str) -> str:
    return module.split(".")[0]


FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def test_every_room_has_a_floor_and_there_are_at_most_nine():
    assert {room_of(module) for module in MODULES} == set(FLOOR_OF)
    assert len(FLOORS) <= 9


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module):
    here = FLOOR_OF[room_of(module)]
    for other in GRAPH[module]:
        assert room_of(other) == room_of(module) or FLOOR_OF[room_of(other)] < here, f"{module} imports {other}"


def test_no_modules_import_each_other_in_a_circle():
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a circle: {' → '.join((*way[way.index(module) :], module))}"
        if module not in done:
            for other in sorted(GRAPH[module]):
                walk(other, (*way, module))
            done.add(module)

    for module in sorted(MODULES):
        walk(module, ())
