"""The page /docs: every endpoint and document, drawn from the OpenAPI document. No script, nothing from elsewhere."""

from __future__ import annotations

from typing import Any

import jinja2
from starlette.responses import HTMLResponse

POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'"
TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ info.title }} API</title><link rel="stylesheet" href="page/reference.css"></head><body><main>
<h1>{{ info.title }} {{ info.version }}</h1><p>{{ info.description }} <a href="openapi.json">openapi.json</a></p>
{% for path, methods in paths.items() %}{% for method, operation in methods.items() %}
<section><h2><code>{{ method | upper }} {{ path }}</code></h2><p>{{ operation.description or operation.summary }}</p>
{% set body = operation.requestBody %}{% if body %}
<p>Body: {{ link(body.content["application/json"].schema) }}</p>{% endif %}
<ul>{% for code, answer in operation.responses.items() %}<li><code>{{ code }}</code> {{ answer.description }}</li>
{% endfor %}</ul></section>{% endfor %}{% endfor %}
<h1>Documents</h1>
{% for name, schema in schemas.items() %}<section id="{{ name }}"><h2>{{ name }}</h2>
<p>{{ schema.description }}</p>{% if schema.properties %}<table><tbody>
{% for field, value in schema.properties.items() %}<tr><th><code>{{ field }}</code>
{{ "required" if field in schema.get("required", []) }}</th><td>{{ link(value) }}{% if value.default is not none and
value.default is defined %}, default {{ value.default | tojson }}{% endif %}</td></tr>
{% endfor %}</tbody></table>{% endif %}</section>{% endfor %}
</main></body></html>
"""


def reference_page(document: dict[str, Any]) -> HTMLResponse:
    """The page of an OpenAPI document."""
    environment = jinja2.Environment(autoescape=True)
    environment.globals["link"] = _type
    schemas = {name: {"description": "", **schema} for name, schema in document["components"]["schemas"].items()}
    page = environment.from_string(TEMPLATE).render(info=document["info"], paths=document["paths"], schemas=schemas)
    return HTMLResponse(page, headers={"content-security-policy": POLICY})


def _type(schema: dict[str, Any]) -> str:
    """A schema in words."""
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", maxsplit=1)[-1])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_type(one) for one in schema[several]))
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return " or ".join(map(repr, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    words = {"minimum": "at least", "maximum": "at most"}
    bounds = [f"{word} {schema[key]}" for key, word in words.items() if key in schema]
    return ", ".join([str(schema.get("type", "anything")), *bounds])
