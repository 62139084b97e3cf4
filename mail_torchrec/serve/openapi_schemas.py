"""JSON Schemas of requests and responses, made of the served model's manifest."""

from collections.abc import Mapping
from typing import Any

from mail_torchrec.data.content.vector_values import LARGEST
from mail_torchrec.data.parquet.times import integer_bounds
from mail_torchrec.data.schema.schema import Group, Kind, Transform
from mail_torchrec.inference.datatypes import DATATYPES
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.raw_requests import MAX_TEXT, RAW_INPUT
from mail_torchrec.inference.requests import RawColumn, request_columns

REQUEST_FORMAT = "scoring-request"
"""Format of a string that is the JSON of one user and its candidates."""
_TEXT = {"type": "string"}
_VALUES: dict[str, dict[str, Any]] = {
    "integer": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "string": {"type": "string", "maxLength": MAX_TEXT},
    "boolean": {"type": "boolean"},
    "number": {"type": "number"},
    "flag": {"enum": [0, 1, False, True]},
    "time": {"type": "string", "format": "date-time"},
}


def response_schemas() -> dict[str, Any]:
    """Builds the schemas of the server's responses."""
    true = {"const": True}
    server = {"name": _TEXT, "version": _TEXT, "extensions": _array(_TEXT)}
    return {
        "Error": _object({"error": {"type": "string", "minLength": 1}}),
        "ServerMetadata": _object(server),
        "Live": _object({"live": true}),
        "Ready": _object({"ready": true}),
        "ModelMetadata": _model_metadata(),
        "ModelReady": _object({"name": _TEXT, "ready": true}),
        "InferenceResponse": _inference_response(),
    }


def raw_call_schema(body: dict[str, Any], manifest: ArtifactManifest) -> dict[str, Any]:
    """Builds the schema of a call with raw values: one input, a string with a ScoringRequest.

    Args:
        body: schema of a call's JSON body.
        manifest: manifest of the served model.
    """
    text = {
        "type": "string",
        "format": REQUEST_FORMAT,
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": "#/components/schemas/ScoringRequest"},
    }
    tensor = {
        "name": {"const": RAW_INPUT},
        "datatype": {"const": DATATYPES["object"]},
        "shape": {"const": [1]},
        "data": _array(text) | {"minItems": 1, "maxItems": 1},
    }
    inputs = _array(_object(tensor)) | {"minItems": 1, "maxItems": 1}
    properties = body["properties"] | {"inputs": inputs, "outputs": _array(_output(manifest))}
    return _object(properties, {"inputs": {}})


def raw_request_schemas(manifest: ArtifactManifest, max_candidates: int) -> dict[str, Any]:
    """Builds the schemas of the input ``request`` and of each candidate in it.

    Args:
        manifest: manifest of the served model.
        max_candidates: most candidates of a request.
    """
    schema = manifest.schema_
    raw = request_columns(schema)
    user = _column_values(raw.user, manifest)
    key = schema.file_column(schema.group_key)
    of_user = _object({key: {}} | user, user) | {
        "description": "a list of actions is as long as the list of their items; oldest first"
    }
    candidates = _array({"$ref": "#/components/schemas/Candidate"}) | {
        "minItems": 1,
        "maxItems": max_candidates,
    }
    return {
        "Candidate": _object(_column_values(raw.candidate, manifest)),
        "ScoringRequest": _object({"user": of_user, "candidates": candidates}),
    }


def _output(manifest: ArtifactManifest) -> dict[str, Any]:
    """Builds the schema of an output that a call asks for."""
    meanings = "; ".join(f"{spec.name}: {spec.meaning}" for spec in manifest.outputs)
    names = {"enum": [spec.name for spec in manifest.outputs], "description": meanings}
    return _object({"name": names, "parameters": {"type": "object"}}, {"name": {}})


def _model_metadata() -> dict[str, Any]:
    tensors = _array(_object(_tensor()))
    properties = {
        "name": _TEXT,
        "versions": _array(_TEXT),
        "platform": _TEXT,
        "inputs": tensors,
        "outputs": tensors,
    }
    return _object(properties)


def _inference_response() -> dict[str, Any]:
    output = _tensor() | {"parameters": {"type": "object"}, "data": _array({"type": "number"})}
    required = {
        "model_name": _TEXT,
        "model_version": _TEXT,
        "outputs": _array(_object(output, _tensor())),
    }
    return _object(required | {"id": _TEXT}, required)


def _tensor() -> dict[str, Any]:
    return {"name": _TEXT, "datatype": _TEXT, "shape": _array({"type": "integer"})}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _object(properties: dict[str, Any], required: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties if required is None else required),
        "additionalProperties": False,
    }


def _column_values(columns: Mapping[str, RawColumn], manifest: ArtifactManifest) -> dict[str, Any]:
    """Builds the schema of each raw column's values."""
    return {name: _values(raw, manifest) for name, raw in columns.items()}


def _values(raw: RawColumn, manifest: ArtifactManifest) -> dict[str, Any]:
    schema = manifest.schema_
    value = _VALUES[manifest.value_types[raw.stored.column]]
    stored = [name for name in raw.readers if name not in schema.derived]
    for unit in {schema.columns[name].time_unit for name in raw.readers}:
        if unit is not None and value.get("type") == "integer":  # a time
            low, high = integer_bounds(unit)
            value = value | {
                "minimum": max(low, value["minimum"]),
                "maximum": min(high, value["maximum"]),
            }
    if not stored:
        return _or_null(_array(_or_null(value)) if raw.stored.is_list else value)
    name = stored[-1]
    column = schema.columns[name]
    if column.group in (Group.NEW_USER, Group.NEW_ITEM):
        return value
    if (vectors := manifest.vectors.get(name)) is not None:
        element = value | {"minimum": -LARGEST, "maximum": LARGEST}
        return _or_null(_array(element) | {"minItems": vectors.dim, "maxItems": vectors.dim})
    if column.kind is Kind.WEIGHTS:
        return _or_null(_array(value | {"minimum": 0}))
    if column.transform is Transform.LOG:
        value = value | {"minimum": 0}
    return _or_null(_array(_or_null(value)) if column.kind is Kind.LIST else value)


def _or_null(value: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [value, {"type": "null"}]}
