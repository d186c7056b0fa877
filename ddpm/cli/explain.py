"""`ddpm config`: params.yaml with its defaults, what each key means and which values it may have."""

from __future__ import annotations

import types
from collections.abc import Collection, Iterator
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ddpm.config.base import LARGEST
from ddpm.config.network import NETWORKS
from ddpm.config.params import Params

# Keys that decide the defaults of the keys beside them, or that others of them need.
_DECIDING = ("kind", "protocol", "prediction")
_BOUNDS = {annotated_types.Gt: "> ", annotated_types.Ge: "≥ ", annotated_types.Lt: "< ", annotated_types.Le: "≤ "}


def explain(params: Params, variant: str | None = None, *, changed: bool = False) -> str:
    """params.yaml with every default filled in, as YAML; each key is followed by its meaning and the values it takes.

    Args:
        variant: show this model alone, and nothing else.
        changed: show only the keys whose value is not the default.

    Raises:
        UserError: there is no such model.
    """
    if variant is not None:
        params.variant(variant)
        return "\n".join(_models({variant: params.models[variant]}, 0, changed=changed))
    return "\n".join(_section(params, 0, changed=changed))


def _section(section: BaseModel, depth: int, *, changed: bool) -> Iterator[str]:
    usual, indent = _defaults(section), "  " * depth
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if key == "models":
            yield from _models(value, depth, changed=changed)
        elif isinstance(value, BaseModel):
            lines = list(_section(value, depth + 1, changed=changed))
            if lines:
                yield from (f"{indent}{key}:", *lines)
            elif usual.get(key, value) is None:  # that it is there is no default
                yield f"{indent}{key}: {{}}"
        elif not changed or key not in usual or value != usual[key]:
            allowed = NETWORKS if key == "kind" and value in NETWORKS else ()
            yield f"{indent}{key}: {_as_yaml(value)}{_note(field, allowed)}"


def _models(models: dict[str, Any], depth: int, *, changed: bool) -> Iterator[str]:
    indent = "  " * depth
    yield f"{indent}models:"
    for name, model in models.items():
        lines = list(_section(model, depth + 2, changed=changed))
        yield from (f"{indent}  {name}:{'' if lines else ' {}'}", *lines)


def _defaults(section: BaseModel) -> dict[str, Any]:
    """The values that keys of the section have if they are not written."""
    fields = type(section).model_fields
    given = {key: getattr(section, key) for key in _DECIDING if key in fields}
    beside = dict(type(section).model_validate(given)) if given else {}
    own = {key: field.default for key, field in fields.items() if not field.is_required()}
    return own | {key: value for key, value in beside.items() if key not in given}


def _as_yaml(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _note(field: FieldInfo, names: Collection[str]) -> str:
    """The comment behind a key; its values are `names`, or those of its type."""
    meaning, allowed = field.description, " | ".join(names) or _allowed(field.annotation, field.metadata)
    words = [*([meaning] if meaning else []), *([f"[{allowed}]"] if allowed else [])]
    return f"  # {' '.join(words)}" if words else ""


def _allowed(annotation: Any, metadata: Any = ()) -> str:
    """The values that a type takes, such as `linear | cosine` or `≥ 0, < 1`; nothing where that is any text."""
    origin = get_origin(annotation)
    if hasattr(annotation, "__metadata__"):
        return _allowed(annotation.__origin__, (*annotation.__metadata__, *metadata))
    if origin is Literal:
        return " | ".join(_as_yaml(value) for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        parts = [_allowed(kind, metadata) for kind in get_args(annotation)]
        return " | ".join(dict.fromkeys(part for part in parts if part))
    if origin is tuple:
        inner = _allowed(get_args(annotation)[0])
        return f"a list{f' of: {inner}' if inner else ''}"
    if annotation is type(None):
        return "null"
    if annotation is bool:
        return "true | false"
    if annotation in (int, float):
        bounds = ", ".join(_bounds(metadata))
        return {int: "an integer", float: "a number"}[annotation] + (f" {bounds}" if bounds else "")
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a section"
    return "text" if annotation is str else ""


def _bounds(metadata: Any) -> Iterator[str]:
    for found in metadata:
        # A Field inside Annotated carries its bounds in metadata of its own.
        yield from _bounds(found.metadata if isinstance(found, FieldInfo) else ())
        for kind, sign in _BOUNDS.items():
            if isinstance(found, kind) and (limit := getattr(found, kind.__name__.lower())) != LARGEST:
                yield f"{sign}{limit}"
