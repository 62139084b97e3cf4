"""Bodies of HTTP requests and responses: JSON, with tensors behind it in the binary extension."""

import json
import math
from typing import Annotated, Any

from pydantic import FailFast, Field
from starlette.responses import JSONResponse, Response

from mail_torchrec.inference.datatypes import DATATYPES, Array
from mail_torchrec.inference.errors import InvalidRequestError
from mail_torchrec.inference.raw_requests import parse_json
from mail_torchrec.serve.ranker import InferenceResult
from mail_torchrec.serve.tensors import datatype_of, from_bytes, from_json, to_bytes
from mail_torchrec.settings import Settings

JSON_LENGTH = "inference-header-content-length"
"""Header of the binary extension: the number of the body's bytes that are JSON; tensors follow."""
Size = Annotated[int, Field(json_schema_extra={"minimum": 0, "maximum": 2**31 - 1})]


class InputTensor(Settings):
    """One input tensor of a request."""

    name: str
    shape: Annotated[list[Size], FailFast()] = Field(json_schema_extra={"maxItems": 8})
    datatype: str = Field(json_schema_extra={"enum": list(DATATYPES.values())})
    parameters: dict[str, Any] = {}
    """``binary_data_size``: the number of bytes behind the JSON that are this tensor's."""
    data: list[Any] | None = None


class RequestedOutput(Settings):
    """One output that a request asks for."""

    name: str
    parameters: dict[str, Any] = {}
    """``binary_data``: true for bytes behind the JSON."""


class InferenceRequest(Settings):
    """JSON body of a request."""

    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: Annotated[list[InputTensor], FailFast()] = Field(min_length=1)
    outputs: Annotated[list[RequestedOutput], FailFast()] = []


def decode_body(body: bytes, json_length: str | None) -> tuple[InferenceRequest, dict[str, Array]]:
    """Decodes the body of a request.

    Args:
        body: decompressed: JSON, and the bytes of binary tensors behind it.
        json_length: value of the header :data:`JSON_LENGTH`; None where all of it is JSON.

    Returns:
        The request, and its tensors by name.

    Raises:
        InvalidRequestError: not a body of the protocol.
    """
    end = _json_end(body, json_length)
    request: InferenceRequest = parse_json(InferenceRequest, body[:end])
    inputs: dict[str, Array] = {}
    for tensor in request.inputs:
        if tensor.name in inputs:
            raise InvalidRequestError(f"input '{tensor.name}' should come once")
        size = _binary_size(tensor, len(body) - end)
        data = body[end : end + size]
        end += size
        inputs[tensor.name] = (
            from_json(tensor.name, tensor.datatype, tensor.shape, tensor.data)
            if tensor.data is not None
            else from_bytes(tensor.name, tensor.datatype, tensor.shape, data)
        )
    if end != len(body):
        raise InvalidRequestError(f"{len(body) - end} bytes behind the last tensor are none's")
    return request, inputs


def encode_response(name: str, request: InferenceRequest, result: InferenceResult) -> Response:
    """Encodes a response, its tensors as JSON or behind it, as the request asks.

    Args:
        name: name of the model.
        request: the decoded request.
        result: outputs and version.
    """
    binary = {output.name: output.parameters.get("binary_data") for output in request.outputs}
    by_default = request.parameters.get("binary_data_output") is True
    outputs, tail = [], b""
    for output, array in result.outputs.items():
        is_binary = binary.get(output, by_default) is True
        tensor, data = _encode_output(output, array, is_binary=is_binary)
        outputs.append(tensor)
        tail += data
    identity = {} if request.id is None else {"id": request.id}
    content = {
        "model_name": name,
        "model_version": result.version,
        **identity,
        "outputs": outputs,
    }
    if not tail:
        return JSONResponse(content)
    head = json.dumps(content).encode()
    return Response(
        head + tail, media_type="application/octet-stream", headers={JSON_LENGTH: str(len(head))}
    )


def _json_end(body: bytes, json_length: str | None) -> int:
    """Reads how many bytes of a body are JSON."""
    if json_length is None:
        return len(body)
    # More digits than these are refused by int().
    is_number = json_length.isascii() and json_length.isdigit() and len(json_length) < 20
    if not (is_number and int(json_length) <= len(body)):
        raise InvalidRequestError(
            f"header {JSON_LENGTH} should be a number of bytes of the body, received "
            f"'{json_length:.50}'"
        )
    return int(json_length)


def _binary_size(tensor: InputTensor, num_left: int) -> int:
    """Reads how many of the bytes that are left belong to a tensor; 0 for one in JSON."""
    size = tensor.parameters.get("binary_data_size")
    if (size is None) == (tensor.data is None):
        raise InvalidRequestError(
            f"input '{tensor.name}' should have 'data', or a parameter 'binary_data_size'"
        )
    if size is None:
        return 0
    if not isinstance(size, int) or not 0 <= size <= num_left:
        raise InvalidRequestError(
            f"input '{tensor.name}': 'binary_data_size' should be at most the {num_left} bytes "
            f"left, received {size!r:.50}"
        )
    return size


def _encode_output(name: str, array: Array, *, is_binary: bool) -> tuple[dict[str, Any], bytes]:
    """Encodes one output as its JSON part and the bytes behind the JSON."""
    tensor = {"name": name, "datatype": datatype_of(array), "shape": list(array.shape)}
    if is_binary:
        data = to_bytes(array)
        return tensor | {"parameters": {"binary_data_size": len(data)}}, data
    assert math.isfinite(array.sum())
    return tensor | {"data": array.ravel().tolist()}, b""
