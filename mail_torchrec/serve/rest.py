"""HTTP application: the protocol's paths, ``/metrics`` and ``/openapi.json``."""

import asyncio
from collections.abc import Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mail_torchrec.inference.errors import InvalidRequestError
from mail_torchrec.serve.content_encoding import CODINGS, content_codings, decompress
from mail_torchrec.serve.http_body import (
    JSON_LENGTH,
    InferenceRequest,
    decode_body,
    encode_response,
)
from mail_torchrec.serve.limits.admission import RETRY_AFTER, Admission, AdmittedRequest
from mail_torchrec.serve.openapi import describe_api
from mail_torchrec.serve.ranker import InferenceCall, Ranker
from mail_torchrec.utils.formats import package_version

_HUNG_UP = 499
"""Status of metrics for a client that closed the connection before it had its answer."""


def build_app(ranker: Ranker, max_bytes: int, admission: Admission) -> Starlette:
    """Builds the HTTP application.

    Args:
        ranker: scores the calls.
        max_bytes: most bytes of a request's body.
        admission: limits of all requests in the server.
    """
    routes = _Routes(ranker, max_bytes, admission)
    model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    return Starlette(
        routes=[
            Route("/v2", routes.server),
            *(Route(f"/v2/health/{state}", routes.healthy) for state in ("live", "ready")),
            *(Route(path, routes.model) for path in (model, version)),
            *(Route(f"{path}/ready", routes.model_ready) for path in (model, version)),
            *(Route(f"{path}/infer", routes.infer, methods=["POST"]) for path in (model, version)),
            Route("/metrics", routes.metrics),
            Route("/openapi.json", routes.openapi),
        ],
        exception_handlers={
            InvalidRequestError: routes.invalid_request,
            ClientDisconnect: routes.hung_up,
            HTTPException: routes.http_error,
            Exception: routes.fault,
        },
    )


class _Routes:
    """Handlers of the paths."""

    def __init__(self, ranker: Ranker, max_bytes: int, admission: Admission) -> None:
        self.ranker, self.max_bytes, self.admission = ranker, max_bytes, admission

    async def server(self, request: Request) -> Response:
        content = {
            "name": "mail-torchrec",
            "version": package_version("mail-torchrec"),
            "extensions": ["binary_tensor_data"],
        }
        return JSONResponse(content)

    async def healthy(self, request: Request) -> Response:
        # A server without a good version does not start, and its last version is never unloaded.
        key = request.url.path.rpartition("/")[2]
        return JSONResponse({key: True})

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
        content = describe_api(
            self.ranker.name,
            InferenceRequest,
            self.ranker.versions.serving.manifest,
            max_bytes=self.max_bytes,
            max_candidates=self.ranker.max_candidates,
        )
        return JSONResponse(content)

    async def infer(self, request: Request) -> Response:
        self.ranker.check_name(request.path_params["model"])
        codings = content_codings(request.headers.getlist("content-encoding"))
        json_length = request.headers.get(JSON_LENGTH)
        version = request.path_params.get("version", "")
        with self.admission.admit() as admitted:
            body = await self._body(request, admitted)
            work = self.admission.submit(lambda: self._infer(body, codings, json_length, version))
            return await asyncio.wrap_future(work)

    def _infer(
        self, body: bytes, codings: list[str], json_length: str | None, version: str
    ) -> Response:
        body = decompress(body, codings, self.max_bytes)
        request, inputs = decode_body(body, json_length)
        outputs = tuple(output.name for output in request.outputs)
        result = self.ranker.infer(InferenceCall(inputs, outputs, request.parameters, version))
        return encode_response(self.ranker.name, request, result)

    async def _body(self, request: Request, admitted: AdmittedRequest) -> bytes:
        """Reads the body, no further than the limit."""
        body = bytearray()
        async for part in request.stream():
            admitted.add(len(part))
            body += part
            if len(body) > self.max_bytes:
                raise InvalidRequestError(
                    f"a request should be at most {self.max_bytes} bytes", 413
                )
        return bytes(body)

    def _metadata(self, request: Request) -> dict[str, Any]:
        self.ranker.check_name(request.path_params["model"])
        return self.ranker.metadata(request.path_params.get("version", ""))

    async def invalid_request(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, InvalidRequestError)
        headers = {
            415: {"accept-encoding": ", ".join(CODINGS)},
            429: {"retry-after": f"{RETRY_AFTER}"},
        }
        return self._error(str(error), error.status, headers.get(error.status))

    async def hung_up(self, request: Request, error: Exception) -> Response:
        return self._error("the client hung up", _HUNG_UP)  # which nobody reads

    async def http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        return self._error(message, error.status_code, error.headers)

    async def fault(self, request: Request, error: Exception) -> Response:
        # Starlette raises the error again, for the log.
        return self._error("a fault of the server; its log says more", 500)

    def _error(
        self, message: str, status: int, headers: Mapping[str, str] | None = None
    ) -> Response:
        self.ranker.metrics.refused.labels(str(status)).inc()
        return JSONResponse({"error": message}, status, headers)
