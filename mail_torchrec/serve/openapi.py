"""The HTTP side's description of itself."""

from typing import Any

from pydantic import BaseModel

_ERRORS = {"400": "malformed", "404": "no such model or version", "413": "too many bytes or candidates"}


def describe(model: str, body: type[BaseModel]) -> dict[str, Any]:
    """An OpenAPI 3.1 document.

    Args:
        model: its name.
        body: of a call.
    """
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    parts = schema.pop("$defs", {}) | {body.__name__: schema}
    root, version = f"/v2/models/{model}", f"/v2/models/{model}/versions/{{version}}"
    paths: dict[str, Any] = {"/v2": _get("server metadata"), "/metrics": _get("Prometheus metrics", "text/plain")}
    paths |= {f"/v2/health/{what}": _get(f"whether the server is {what}") for what in ("live", "ready")}
    for path in (root, version):
        paths |= {path: _get("model metadata"), f"{path}/ready": _get("whether the model is ready"), f"{path}/infer": _post(body.__name__)}
    for path, item in paths.items():
        if "{version}" in path:
            item["parameters"] = [{"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}]
    return {
        "openapi": "3.1.0",
        "info": {"title": f"{model}: Open Inference Protocol v2", "version": "2"},
        "paths": paths,
        "components": {"schemas": parts},
    }


def _get(what: str, media: str = "application/json") -> dict[str, Any]:
    return {"get": {"summary": what, "responses": _responses(media)}}


def _post(body: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body}"}}}
    return {
        "post": {"summary": "scores", "requestBody": {"required": True, "content": content}, "responses": _responses("application/json")}
    }


def _responses(media: str) -> dict[str, Any]:
    error = {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}}}
    return {"200": {"description": "done", "content": {media: {}}}} | {
        status: {"description": text, "content": error} for status, text in _ERRORS.items()
    }
