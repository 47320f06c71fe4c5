"""``GET /docs``: the routes of this process as a page to read, made from its own OpenAPI description.

What it guarantees: the page is whole without any other request (no script, no font, nothing from another
host), so it is there on a machine without internet and nothing on it can be made to run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter()

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; text-transform: capitalize; }
details { border: 1px solid #8884; border-radius: 6px; margin: .4rem 0; padding: .4rem .8rem; }
summary { cursor: pointer; }
summary b { display: inline-block; min-width: 4rem; }
code { font-family: ui-monospace, monospace; }
table { border-collapse: collapse; margin: .5rem 0; }
td, th { border: 1px solid #8884; padding: .2rem .6rem; text-align: left; vertical-align: top; }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-frame-options": "DENY",
}
_METHODS = ("get", "post", "put", "patch", "delete")


@router.get("/docs", include_in_schema=False)
async def reference(request: Request) -> HTMLResponse:
    """Show the routes."""
    state = request.app.state
    if not hasattr(state, "reference"):
        state.reference = page(request.app.openapi())
    return HTMLResponse(state.reference, headers=_HEADERS)


def page(description: dict[str, Any]) -> str:
    """Return an OpenAPI description as one page of HTML."""
    info = description["info"]
    title = escape(f"{info['title']} {info['version']}")
    groups: dict[str, list[str]] = {}
    for path, methods in description["paths"].items():
        for method in (name for name in _METHODS if name in methods):
            route = methods[method]
            groups.setdefault(route.get("tags", ["other"])[0], []).append(_route(method, path, route))
    parts = [f"<h2>{escape(name)}</h2>{''.join(routes)}" for name, routes in groups.items()]
    schemas = description.get("components", {}).get("schemas", {})
    parts += ["<h2>Bodies</h2>", *(_schema(name, schema) for name, schema in schemas.items())]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1><p>{escape(info.get('summary', ''))} "
        f'For programs: <a href="openapi.json">openapi.json</a>.</p>{"".join(parts)}</body></html>'
    )


def _route(method: str, path: str, route: dict[str, Any]) -> str:
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code></summary>"
        f"{''.join(_about(route))}</details>"
    )


def _about(route: dict[str, Any]) -> Iterator[str]:
    yield f"<p>{escape(route.get('description', ''))}</p>"
    if parameters := route.get("parameters"):
        rows = ((each["name"], f"{each['in']}, {_type(each['schema'])}") for each in parameters)
        yield _table("parameter", "where and what", rows)
    for kind, content in route.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Body: <code>{escape(kind)}</code>, {_type(content.get('schema', {}))}</p>"
        yield _properties(content.get("schema", {}))
    answers = ((status, answer["description"]) for status, answer in route["responses"].items())
    yield _table("answer", "meaning", ((status, escape(text)) for status, text in answers))


def _schema(name: str, schema: dict[str, Any]) -> str:
    about = f"<p>{escape(schema.get('description', ''))}</p>{_properties(schema)}"
    return f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>{about}</details>'


def _properties(schema: dict[str, Any]) -> str:
    needed = schema.get("required", ())
    rows = (
        (name, _type(value) + (", needed" if name in needed else ""))
        for name, value in schema.get("properties", {}).items()
    )
    return _table("field", "type", rows)


def _table(first: str, second: str, rows: Iterator[tuple[str, str]]) -> str:
    """Return rows of a name, which is escaped here, and what is said of it, which already is."""
    lines = "".join(f"<tr><td><code>{escape(name)}</code></td><td>{text}</td></tr>" for name, text in rows)
    return f"<table><tr><th>{first}</th><th>{second}</th></tr>{lines}</table>" if lines else ""


def _type(schema: dict[str, Any]) -> str:
    """Name a type, as HTML."""
    if reference := schema.get("$ref"):
        name = escape(reference.rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for word in ("anyOf", "oneOf"):
        if options := schema.get(word):
            return " or ".join(_type(option) for option in options)
    if "const" in schema or "enum" in schema:
        return ", ".join(escape(repr(value)) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return escape(str(schema.get("type", "anything")))
