"""HTTP application: the protocol's paths, ``/metrics`` and ``/openapi.json``."""

from collections.abc import Mapping
from importlib.metadata import version as version_of
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
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
from mail_torchrec.serve.openapi import describe_api
from mail_torchrec.serve.ranker import InferenceCall, Ranker


def build_app(ranker: Ranker, max_bytes: int) -> Starlette:
    """Builds the HTTP application.

    Args:
        ranker: scores the calls.
        max_bytes: most bytes of a request's body.
    """
    routes = _Routes(ranker, max_bytes)
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
            HTTPException: routes.http_error,
            Exception: routes.fault,
        },
    )


class _Routes:
    """Handlers of the paths."""

    def __init__(self, ranker: Ranker, max_bytes: int) -> None:
        self.ranker, self.max_bytes = ranker, max_bytes

    async def server(self, request: Request) -> Response:
        content = {
            "name": "mail-torchrec",
            "version": version_of("mail-torchrec"),
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
        body = await self._body(request)
        return await run_in_threadpool(
            self._infer,
            body,
            codings,
            request.headers.get(JSON_LENGTH),
            request.path_params.get("version", ""),
        )

    def _infer(
        self, body: bytes, codings: list[str], json_length: str | None, version: str
    ) -> Response:
        body = decompress(body, codings, self.max_bytes)
        request, inputs = decode_body(body, json_length)
        outputs = tuple(output.name for output in request.outputs)
        result = self.ranker.infer(InferenceCall(inputs, outputs, request.parameters, version))
        return encode_response(self.ranker.name, request, result)

    async def _body(self, request: Request) -> bytes:
        """Reads the body, no further than the limit."""
        body = bytearray()
        async for part in request.stream():
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
        accepted = {"accept-encoding": ", ".join(CODINGS)} if error.status == 415 else None
        return self._error(str(error), error.status, accepted)

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
