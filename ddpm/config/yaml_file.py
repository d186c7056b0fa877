"""Reading YAML that a user wrote: bounded in size and depth, with every error in one line that names the place."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

try:
    from yaml import CSafeLoader as SafeLoader  # 20 times as fast
except ImportError:
    from yaml import SafeLoader  # type: ignore[assignment]

from ddpm.errors import UserError, brief

MAX_BYTES = 1 << 20
MAX_DEPTH = 30  # libyaml's own composer overflows the stack at some ten thousand


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file is not YAML, has a key twice in one mapping, nests deeper than MAX_DEPTH, or is larger than
            MAX_BYTES.
    """
    with path.open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES // 2**20} MiB; expected settings of a few kB")
    try:
        text = content.decode("utf-8")
        _check_depth(text)
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {_one_line(error)}") from None


def aliases(path: Path) -> list[str]:
    """The aliases (`*name`) in a file that `read_yaml` accepts, in their order."""
    events = yaml.parse(path.read_text(encoding="utf-8"), SafeLoader)
    return [event.anchor or "" for event in events if isinstance(event, yaml.AliasEvent)]


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _fault(f"nested more than {MAX_DEPTH} levels deep", event.start_mark)


def _fault(problem: str, mark: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=mark)


def _one_line(error: Exception) -> str:
    """What is wrong and where, without the excerpt of the file that PyYAML may add."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    if problem.startswith("but "):
        problem = f"{getattr(error, 'context', None) or 'something else was expected'}, {problem}"
    return f"{' '.join(problem.split())} at line {mark.line + 1}, column {mark.column + 1}"


class _Loader(SafeLoader):
    """Refuses what PyYAML takes silently or fails on with an error of Python's."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            kind = node.tag.rpartition(":")[2]
            shown = brief(node.value) if isinstance(node.value, str) else "this"
            raise _fault(f"{shown} cannot be read as {kind}", node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key.value, str) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise _fault(f"the key {brief(key.value)} is there twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


# 1e-3 is a number in YAML 1.2, in which DVC writes params.yaml; YAML 1.1, PyYAML's, wants 1.0e-3.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)
