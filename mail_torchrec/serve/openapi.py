"""OpenAPI 3.1 description of the HTTP paths: responses, errors and limits of the served model."""

from typing import Any

from pydantic import BaseModel

from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.serve.content_encoding import CODINGS
from mail_torchrec.serve.openapi_schemas import (
    raw_call_schema,
    raw_request_schemas,
    response_schemas,
)

_MALFORMED = {"400": "malformed"}
_NO_VERSION = {"404": "no such version"}
_TOO_LARGE = {"413": "too many bytes (decompressed ones, too) or candidates"}
_NOT_KNOWN = {"415": "an unknown Content-Encoding; Accept-Encoding lists the known ones"}


def describe_api(
    model: str,
    body: type[BaseModel],
    manifest: ArtifactManifest,
    *,
    max_bytes: int,
    max_candidates: int,
) -> dict[str, Any]:
    """Builds the OpenAPI document.

    Args:
        model: name of the model.
        body: class of a call's JSON body.
        manifest: manifest of the newest version, whose columns a request has.
        max_bytes: most bytes of a request.
        max_candidates: most candidates of a request.
    """
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = (
        schema.pop("$defs", {})
        | {body.__name__: schema}
        | response_schemas()
        | raw_request_schemas(manifest, max_candidates)
    )
    schemas["ScoringCall"] = raw_call_schema(schema, manifest)
    limits = (
        f"At most {max_bytes} bytes and {max_candidates} candidates. The body may be compressed "
        f"(Content-Encoding: {' or '.join(CODINGS)}); the limit counts the decompressed bytes, too."
    )
    bodies = ["ScoringCall", body.__name__]
    root, version = f"/v2/models/{model}", f"/v2/models/{model}/versions/{{version}}"
    paths = (
        _server_paths()
        | _model_paths(root, bodies, {}, limits, max_bytes)
        | _model_paths(version, bodies, _NO_VERSION, limits, max_bytes)
    )
    for path, item in paths.items():
        if "{version}" in path:
            item["parameters"] = [_version_parameter(manifest.version)]
    return {
        "openapi": "3.1.0",
        "info": {"title": f"{model}: Open Inference Protocol v2", "version": "2"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _server_paths() -> dict[str, Any]:
    return {
        "/v2": _get("server metadata", _json("ServerMetadata")),
        "/v2/health/live": _get("whether the server lives", _json("Live")),
        "/v2/health/ready": _get("whether the server is ready", _json("Ready")),
        "/metrics": _get("Prometheus metrics", {"text/plain": {}}),
        "/openapi.json": _get("this document, OpenAPI 3.1", {"application/json": {}}),
    }


def _model_paths(
    root: str, bodies: list[str], errors: dict[str, str], limits: str, max_bytes: int
) -> dict[str, Any]:
    return {
        root: _get("model metadata", _json("ModelMetadata"), errors),
        f"{root}/ready": _get("whether the model is ready", _json("ModelReady"), errors),
        f"{root}/infer": _post(bodies, errors, limits, max_bytes),
    }


def _get(
    summary: str, content: dict[str, Any], errors: dict[str, str] | None = None
) -> dict[str, Any]:
    responses = {"200": _response(summary, content)} | _errors(errors or {})
    return {"get": {"summary": summary, "responses": responses}}


def _post(bodies: list[str], errors: dict[str, str], limits: str, max_bytes: int) -> dict[str, Any]:
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    inputs = "Inputs are 'request' alone, or all others that the model's metadata lists."
    scores = _response("scores", _json("InferenceResponse") | binary)
    return {
        "post": {
            "summary": "scores",
            "description": f"{limits} {inputs}",
            "parameters": [_json_length_parameter(max_bytes)],
            "requestBody": {
                "required": True,
                "description": limits,
                "content": _json(*bodies) | binary,
            },
            "responses": {"200": scores} | _errors(_MALFORMED | errors | _TOO_LARGE | _NOT_KNOWN),
        }
    }


def _json_length_parameter(max_bytes: int) -> dict[str, Any]:
    return {
        "name": "inference-header-content-length",
        "in": "header",
        "description": (
            "of the binary extension: how many bytes of the decompressed body are JSON; tensors "
            "follow"
        ),
        "schema": {"type": "integer", "minimum": 0, "maximum": max_bytes},
    }


def _version_parameter(example: str) -> dict[str, Any]:
    return {
        "name": "version",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
        "example": example,
    }


def _json(*names: str) -> dict[str, Any]:
    references = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    return {"application/json": {"schema": schema}}


def _response(description: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": content}


def _errors(errors: dict[str, str]) -> dict[str, Any]:
    return {status: _response(text, _json("Error")) for status, text in errors.items()}
