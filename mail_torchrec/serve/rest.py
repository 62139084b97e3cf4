"""The protocol over HTTP: JSON, with the binary extension; and /metrics, /openapi.json."""

import json
import math
from collections.abc import Mapping
from importlib.metadata import version as version_of
from typing import Annotated, Any

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import Field
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mail_torchrec.inference.errors import RefusedError
from mail_torchrec.serve.openapi import describe
from mail_torchrec.serve.ranker import Answer, Call, Ranker
from mail_torchrec.serve.raw_requests import parse
from mail_torchrec.serve.tensors import DATATYPES, Array, from_bytes, from_json
from mail_torchrec.settings import Settings

JSON_LENGTH = "inference-header-content-length"
"""The header of the binary extension: how many bytes of the body are JSON; tensors follow."""


class InputTensor(Settings):
    """One input."""

    name: str
    shape: list[Annotated[int, Field(json_schema_extra={"minimum": 0, "maximum": 2**31 - 1})]] = (
        Field(json_schema_extra={"maxItems": 8})
    )
    datatype: str = Field(json_schema_extra={"enum": list(DATATYPES.values())})
    parameters: dict[str, Any] = {}
    """``binary_data_size``: how many of the bytes behind the JSON are this tensor's."""
    data: list[Any] | None = None


class OutputWish(Settings):
    """One output that is asked for."""

    name: str
    parameters: dict[str, Any] = {}
    """``binary_data``: as bytes behind the JSON."""


class InferenceRequest(Settings):
    """The body of a call."""

    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: list[InputTensor] = Field(min_length=1)
    outputs: list[OutputWish] = []


def build_app(ranker: Ranker, max_bytes: int) -> Starlette:
    """The application.

    Args:
        ranker: answers.
        max_bytes: of a request's body.
    """
    routes = _Routes(ranker, max_bytes)
    model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    return Starlette(
        routes=[
            Route("/v2", routes.server),
            *(Route(f"/v2/health/{what}", routes.healthy) for what in ("live", "ready")),
            *(Route(path, routes.model) for path in (model, version)),
            *(Route(f"{path}/ready", routes.model_ready) for path in (model, version)),
            *(Route(f"{path}/infer", routes.infer, methods=["POST"]) for path in (model, version)),
            Route("/metrics", routes.metrics),
            Route("/openapi.json", routes.openapi),
        ],
        exception_handlers={
            RefusedError: routes.refused,
            HTTPException: routes.not_here,
            Exception: routes.fault,
        },
    )


class _Routes:
    def __init__(self, ranker: Ranker, max_bytes: int) -> None:
        self.ranker, self.max_bytes = ranker, max_bytes

    async def server(self, request: Request) -> Response:
        return JSONResponse(
            {
                "name": "mail-torchrec",
                "version": version_of("mail-torchrec"),
                "extensions": ["binary_tensor_data"],
            }
        )

    async def healthy(self, request: Request) -> Response:
        key = request.url.path.rpartition("/")[2]
        return JSONResponse(
            {key: True}
        )  # a server without a good version does not start, and never gives up its last

    async def model(self, request: Request) -> Response:
        return JSONResponse(self._metadata(request))

    async def model_ready(self, request: Request) -> Response:
        self._metadata(request)
        return JSONResponse({"name": self.ranker.name, "ready": True})

    async def metrics(self, request: Request) -> Response:
        return Response(
            generate_latest(self.ranker.metrics.registry),
            headers={"content-type": CONTENT_TYPE_LATEST},
        )

    async def openapi(self, request: Request) -> Response:
        manifest, most = self.ranker.versions.all[-1].manifest, self.ranker.max_candidates
        return JSONResponse(
            describe(
                self.ranker.name,
                InferenceRequest,
                manifest,
                max_bytes=self.max_bytes,
                max_candidates=most,
            )
        )

    async def infer(self, request: Request) -> Response:
        self.ranker.check_name(request.path_params["model"])
        body = await self._body(request)
        return await run_in_threadpool(
            self._infer,
            body,
            request.headers.get(JSON_LENGTH),
            request.path_params.get("version", ""),
        )

    def _infer(self, body: bytes, json_length: str | None, version: str) -> Response:
        asked, inputs = read(body, json_length)
        answer = self.ranker.answer(
            Call(inputs, tuple(wish.name for wish in asked.outputs), asked.parameters, version)
        )
        return write(self.ranker.name, asked, answer)

    async def _body(self, request: Request) -> bytes:
        """The body, read no further than the limit."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self.max_bytes:
                raise RefusedError(f"a request should be at most {self.max_bytes} bytes", 413)
        return bytes(body)

    def _metadata(self, request: Request) -> dict[str, Any]:
        self.ranker.check_name(request.path_params["model"])
        return self.ranker.metadata(request.path_params.get("version", ""))

    async def refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        return self._error(str(error), error.status)

    async def not_here(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return self._error(
            f"{request.method} {request.url.path}: {error.detail}", error.status_code, error.headers
        )

    async def fault(self, request: Request, error: Exception) -> Response:
        return self._error(
            "a fault of the server; its log says more", 500
        )  # Starlette raises it again, for the log

    def _error(
        self, message: str, status: int, headers: Mapping[str, str] | None = None
    ) -> Response:
        self.ranker.metrics.refused.labels(str(status)).inc()
        return JSONResponse({"error": message}, status, headers)


def read(body: bytes, json_length: str | None) -> tuple[InferenceRequest, dict[str, Array]]:
    """A body as what is asked and its tensors.

    Raises:
        RefusedError: it is none of the protocol's.
    """
    if json_length is not None and not (
        json_length.isascii() and json_length.isdigit() and int(json_length) <= len(body)
    ):
        raise RefusedError(
            f"header {JSON_LENGTH} should be a number of bytes of the body, received "
            f"'{json_length}'"
        )
    end = len(body) if json_length is None else int(json_length)
    asked: InferenceRequest = parse(InferenceRequest, body[:end])
    inputs: dict[str, Array] = {}
    for tensor in asked.inputs:
        if tensor.name in inputs:
            raise RefusedError(f"input '{tensor.name}' should come once")
        size = tensor.parameters.get("binary_data_size")
        if (size is None) == (tensor.data is None):
            raise RefusedError(
                f"input '{tensor.name}' should have 'data', or a parameter 'binary_data_size'"
            )
        if tensor.data is not None:
            inputs[tensor.name] = from_json(tensor.name, tensor.datatype, tensor.shape, tensor.data)
            continue
        if not isinstance(size, int) or not 0 <= size <= len(body) - end:
            raise RefusedError(
                f"input '{tensor.name}': 'binary_data_size' should be at most the "
                f"{len(body) - end} bytes left, received {size!r:.50}"
            )
        inputs[tensor.name] = from_bytes(
            tensor.name, tensor.datatype, tensor.shape, body[end : end + size]
        )
        end += size
    if end != len(body):
        raise RefusedError(f"{len(body) - end} bytes behind the last tensor are none's")
    return asked, inputs


def write(name: str, asked: InferenceRequest, answer: Answer) -> Response:
    """An answer, its tensors as JSON or behind it, as was asked."""
    binary = {wish.name: wish.parameters.get("binary_data") for wish in asked.outputs}
    by_default = asked.parameters.get("binary_data_output") is True
    outputs, tail = [], b""
    for output, array in answer.outputs.items():
        tensor: dict[str, Any] = {"name": output, "datatype": "FP32", "shape": list(array.shape)}
        if binary.get(output, by_default) is True:
            data = np.ascontiguousarray(array, dtype="<f4").tobytes()
            tensor["parameters"], tail = {"binary_data_size": len(data)}, tail + data
        else:
            assert math.isfinite(array.sum())
            tensor["data"] = array.ravel().tolist()
        outputs.append(tensor)
    told = (
        {"model_name": name, "model_version": answer.version}
        | ({} if asked.id is None else {"id": asked.id})
        | {"outputs": outputs}
    )
    if not tail:
        return JSONResponse(told)
    head = json.dumps(told).encode()
    return Response(
        head + tail, media_type="application/octet-stream", headers={JSON_LENGTH: str(len(head))}
    )
