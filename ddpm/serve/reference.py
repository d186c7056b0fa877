"""The page at `/docs`: the OpenAPI document as plain HTML, without scripts and without anything from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """\
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-top: 1px solid #8886; padding-top: 1rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; }
td, th { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #8883; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre { background: #8882; padding: .75rem; overflow-x: auto; }
"""


def reference_page(document: Mapping[str, Any]) -> str:
    """An OpenAPI document as HTML: every operation with its examples and answers, then every schema.

    Args:
        document: as FastAPI makes it.
    """
    title = escape(document["info"]["title"])
    body = [
        f"<h1>{title} {escape(document['info']['version'])}</h1>",
        f"<p>{escape(document['info'].get('description', ''))}</p>",
        '<p>The same as <a href="openapi.json">openapi.json</a>; pictures are on <a href=".">the first page</a>.</p>',
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body += _operation(method.upper(), path, operation)
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        body += _schema(name, schema)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html><html lang="en"><head>{head}<title>{title}: API</title><style>{_STYLE}</style></head>'
        f"<body>{''.join(body)}</body></html>"
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{method} {escape(path)}</code></h2><p>{escape(operation.get('summary', ''))}</p>"
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Body, <code>{escape(media)}</code>: {_type(content.get('schema', {}))}</p>"
        for example in content.get("examples", {}).values():
            sent = json.dumps(example["value"])
            call = f"curl -s http://HOST{path} -H 'Content-Type: {media}' \\\n    -d '{sent}' -o FILE"
            yield f"<p>{escape(example['summary'])}</p><pre>{escape(call)}</pre>"
    rows = [
        (f"<code>{status}</code>", escape(answer.get("description", "")), _contents(answer.get("content", {})))
        for status, answer in sorted(operation.get("responses", {}).items())
    ]
    yield _table(("Status", "Meaning", "Answer"), rows)


def _contents(content: Mapping[str, Any]) -> str:
    return "<br>".join(
        f"<code>{escape(media)}</code> {_type(described.get('schema', {}))}" for media, described in content.items()
    )


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f'<h2 id="{escape(name)}">{escape(name)}</h2><p>{escape(schema.get("description", ""))}</p>'
    required = set(schema.get("required", ()))
    rows = []
    for key, described in schema.get("properties", {}).items():
        default = "" if key in required else f"default {escape(json.dumps(described.get('default')))}"
        note = ". ".join(part for part in (escape(described.get("description", "")), default) if part)
        rows.append((f"<code>{escape(key)}</code>", _type(described), note))
    if rows:
        yield _table(("Key", "Type", "Meaning"), rows)


def _type(schema: Mapping[str, Any]) -> str:
    """What a value may be, in a few words, a schema as a link to it."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    text = escape(str(schema.get("type", "")))
    if "items" in schema:
        text += f" of {_type(schema['items']) or 'anything'}"
    bounds = {"minimum": "≥", "exclusiveMinimum": "&gt;", "maximum": "≤", "exclusiveMaximum": "&lt;"}
    return " ".join([text, *(f"{sign} {schema[key]}" for key, sign in bounds.items() if key in schema)])


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"
