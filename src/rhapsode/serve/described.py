"""/docs: the description of the API as a page to read, without scripts and without anything from a network."""

from html import escape
from typing import Any

STYLE = "body{font:1rem/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}td{padding:0 1rem 0 0}"


def description_page(description: dict[str, Any]) -> str:
    """An OpenAPI description as HTML: for each path what it does, and the fields of its body."""
    about = description["info"]
    parts = [f"<h1>{escape(about['title'])} {escape(about['version'])}</h1><p>{escape(about['description'])}</p>"]
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation.get('description', operation['summary']))}</p>")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "$ref" in body.get("schema", {}):
                parts.append(_fields(description["components"]["schemas"][body["schema"]["$ref"].rpartition("/")[2]]))
    head = f'<meta charset="utf-8"><title>{escape(about["title"])}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'


def _fields(schema: dict[str, Any]) -> str:
    rows = []
    for name, field in schema["properties"].items():
        kinds = [field, *field.get("anyOf", [])]
        kind = " or ".join(dict.fromkeys(each["type"] for each in kinds if each.get("type", "null") != "null"))
        needed = "needed" if name in schema.get("required", ()) else ""
        cells = (f"<code>{escape(name)}</code>", escape(kind), needed, escape(field.get("description", "")))
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"
