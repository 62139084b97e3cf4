"""The HTTP side's description of itself, of the model that it serves: every path, answer, error and limit."""

from typing import Any

from pydantic import BaseModel

from mail_torchrec.data.schema.schema import Group, Kind, Schema, Transform
from mail_torchrec.inference.manifest import Manifest
from mail_torchrec.inference.requests import candidate_columns, user_columns

REQUEST_FORMAT = "scoring-request"
"""Of a string that is the JSON of one user and the candidates."""
_BAD, _NO_VERSION, _TOO_MUCH = (
    {"400": "malformed"},
    {"404": "no such version"},
    {"413": "too many bytes or candidates"},
)
_VALUES: dict[str, dict[str, Any]] = {
    "integer": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "string": {"type": "string"},
    "boolean": {"type": "boolean"},
    "number": {"type": "number"},
    "flag": {"enum": [0, 1, False, True]},
}


def describe(
    model: str, body: type[BaseModel], manifest: Manifest, *, max_bytes: int, max_candidates: int
) -> dict[str, Any]:
    """An OpenAPI 3.1 document.

    Args:
        model: its name.
        body: of a call.
        manifest: of the newest version, whose columns a request has.
        max_bytes: of a request.
        max_candidates: of a request.
    """
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    parts = (
        schema.pop("$defs", {})
        | {body.__name__: schema}
        | _answers()
        | _request(manifest, max_candidates)
    )
    parts["ScoringCall"] = _call(schema, manifest)
    root, version = f"/v2/models/{model}", f"/v2/models/{model}/versions/{{version}}"
    paths: dict[str, Any] = {
        "/v2": _get("server metadata", "ServerMetadata"),
        "/v2/health/live": _get("whether the server lives", "Live"),
        "/v2/health/ready": _get("whether the server is ready", "Ready"),
        "/metrics": {
            "get": {
                "summary": "Prometheus metrics",
                "responses": {"200": _told("metrics", {"text/plain": {}})},
            }
        },
        "/openapi.json": {
            "get": {
                "summary": "this document",
                "responses": {"200": _told("OpenAPI 3.1", {"application/json": {}})},
            }
        },
    }
    for path, errors in ((root, {}), (version, _NO_VERSION)):
        paths |= {
            path: _get("model metadata", "ModelMetadata", errors),
            f"{path}/ready": _get("whether the model is ready", "ModelReady", errors),
            f"{path}/infer": _post(
                ["ScoringCall", body.__name__], errors, max_bytes, max_candidates
            ),
        }
    for path, item in paths.items():
        if "{version}" in path:
            item["parameters"] = [
                {
                    "name": "version",
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string", "minLength": 1},
                    "example": manifest.version,
                }
            ]
    return {
        "openapi": "3.1.0",
        "info": {"title": f"{model}: Open Inference Protocol v2", "version": "2"},
        "paths": paths,
        "components": {"schemas": parts},
    }


def _get(what: str, answer: str, errors: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "get": {
            "summary": what,
            "responses": {"200": _told(what, _json(answer))} | _errors(errors or {}),
        }
    }


def _post(
    bodies: list[str], errors: dict[str, str], max_bytes: int, max_candidates: int
) -> dict[str, Any]:
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    header = {"type": "integer", "minimum": 0, "maximum": max_bytes}
    limits = f"At most {max_bytes} bytes and {max_candidates} candidates."
    return {
        "post": {
            "summary": "scores",
            "description": (
                f"{limits} Inputs are 'request' alone, or all others that the model's metadata "
                "lists."
            ),
            "parameters": [
                {
                    "name": "inference-header-content-length",
                    "in": "header",
                    "description": (
                        "of the binary extension: how many bytes of the body are JSON; tensors "
                        "follow"
                    ),
                    "schema": header,
                }
            ],
            "requestBody": {
                "required": True,
                "description": limits,
                "content": _json(*bodies) | binary,
            },
            "responses": {"200": _told("scores", _json("InferenceResponse") | binary)}
            | _errors(_BAD | errors | _TOO_MUCH),
        }
    }


def _json(*names: str) -> dict[str, Any]:
    kinds = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    return {"application/json": {"schema": kinds[0] if len(kinds) == 1 else {"anyOf": kinds}}}


def _told(what: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"description": what, "content": content}


def _errors(errors: dict[str, str]) -> dict[str, Any]:
    return {status: _told(text, _json("Error")) for status, text in errors.items()}


def _answers() -> dict[str, Any]:
    """What the server says."""
    text, true, sizes = (
        {"type": "string"},
        {"const": True},
        {"type": "array", "items": {"type": "integer"}},
    )
    tensor = {"name": text, "datatype": text, "shape": sizes}
    output = tensor | {
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {"type": "number"}},
    }
    tensors, outputs = (
        {"type": "array", "items": _object(properties, tensor)} for properties in (tensor, output)
    )
    of_model = {
        "name": text,
        "versions": {"type": "array", "items": text},
        "platform": text,
        "inputs": tensors,
        "outputs": tensors,
    }
    response = {"model_name": text, "model_version": text, "outputs": outputs}
    return {
        "Error": _object({"error": {"type": "string", "minLength": 1}}),
        "ServerMetadata": _object(
            {"name": text, "version": text, "extensions": {"type": "array", "items": text}}
        ),
        "Live": _object({"live": true}),
        "Ready": _object({"ready": true}),
        "ModelMetadata": _object(of_model),
        "ModelReady": _object({"name": text, "ready": true}),
        "InferenceResponse": _object(response | {"id": text}, response),
    }


def _object(properties: dict[str, Any], required: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties if required is None else required),
        "additionalProperties": False,
    }


def _call(body: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """A call with raw values: one input, a string that holds a ``ScoringRequest``."""
    content = {
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": "#/components/schemas/ScoringRequest"},
    }
    text = {"type": "string", "format": REQUEST_FORMAT} | content
    data = {"type": "array", "items": text, "minItems": 1, "maxItems": 1}
    tensor = _object(
        {
            "name": {"const": "request"},
            "datatype": {"const": "BYTES"},
            "shape": {"const": [1]},
            "data": data,
        }
    )
    wish = {
        "name": {"enum": [output.name for output in manifest.outputs]},
        "parameters": {"type": "object"},
    }
    inputs = {"type": "array", "items": tensor, "minItems": 1, "maxItems": 1}
    outputs = {"type": "array", "items": _object(wish, {"name": {}})}
    return _object(body["properties"] | {"inputs": inputs, "outputs": outputs}, {"inputs": {}})


def _request(manifest: Manifest, max_candidates: int) -> dict[str, Any]:
    """What the input ``request`` holds, and each candidate in it."""
    schema, types = manifest.schema_, manifest.types
    user = {schema.file_column(name): _values(name, schema, types) for name in user_columns(schema)}
    key = schema.file_column(schema.group_key)
    candidate = {
        schema.file_column(name): _values(name, schema, types) for name in candidate_columns(schema)
    }
    candidates = {
        "type": "array",
        "minItems": 1,
        "maxItems": max_candidates,
        "items": {"$ref": "#/components/schemas/Candidate"},
    }
    of_user = _object({key: {}} | user, user) | {
        "description": "a list of actions is as long as the list of their items; oldest first"
    }
    return {
        "Candidate": _object(candidate),
        "ScoringRequest": _object({"user": of_user, "candidates": candidates}),
    }


def _values(name: str, schema: Schema, types: Any) -> dict[str, Any]:
    column, value = schema.columns[name], _VALUES[types[schema.file_column(name)]]
    if column.group is Group.NEW_USER:
        return value
    if column.transform is Transform.LOG:
        value = value | {"minimum": 0}
    return _or_null(
        {"type": "array", "items": _or_null(value)} if column.kind is Kind.LIST else value
    )


def _or_null(value: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [value, {"type": "null"}]}
