"""Bounded gRPC calls: their bytes, their number, and the time that a message may take to arrive."""

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc

from mail_torchrec.inference.errors import InvalidRequestError
from mail_torchrec.serve.limits.admission import Admission
from mail_torchrec.serve.limits.quiet_log import FAULTS
from mail_torchrec.serve.prometheus import ServerMetrics

_MAX_DETAILS = 1300
"""Most bytes of a status' message: a byte takes three of the 8 KiB that trailers may have."""
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_MAX_IDLE_SECONDS = 300
_HUNG_UP = "499"
"""Status in the metrics of a call that was cancelled, or whose message came too late."""


def grpc_options(
    max_bytes: int, max_connections: int, receive_seconds: float, keep_alive: int
) -> list[tuple[str, int]]:
    """Options of a gRPC server for its connections.

    Args:
        max_bytes: most bytes of a message.
        max_connections: most open connections; more are closed.
        receive_seconds: most seconds until a new connection has said that it is one of HTTP/2.
        keep_alive: most seconds that a connection without a call is kept; no more than five
            minutes, since gRPC closes new connections, not idle ones, where there are too many.
    """
    return [
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.server_handshake_timeout_ms", int(receive_seconds * 1000)),
        ("grpc.max_connection_idle_ms", 1000 * min(keep_alive, _MAX_IDLE_SECONDS)),
        ("grpc.http2.bdp_probe", 0),  # else a stream's unread bytes may be megabytes
        ("grpc.so_reuseport", 0),
    ]


class BoundedCalls(grpc.ServerInterceptor):
    """Parses and answers calls within the limits of :class:`Admission`; errors become statuses.

    A message is received as bytes and parsed by a worker, so that one that is no message is the
    client's error, and none takes memory beyond the limits. Methods without an implementation are
    left out, since gRPC logs a traceback for each call of them.

    Args:
        admission: limits of all requests in the server.
        metrics: counts refused calls.
        receive_seconds: most seconds until a call's message has arrived; then it is cancelled.
        methods: names of the methods that there are, True for those with work for the workers.
    """

    def __init__(
        self,
        admission: Admission,
        metrics: ServerMetrics,
        receive_seconds: float,
        methods: Mapping[str, bool],
    ) -> None:
        self.admission, self.metrics = admission, metrics
        self.receive_seconds, self.methods = receive_seconds, methods

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: Any
    ) -> Any:
        """Returns the bounded handler of a method; None: there is no such method."""
        handler = continuation(handler_call_details)
        method = handler_call_details.method.rpartition("/")[2]
        if handler is None or method not in self.methods:
            return None
        answer = self._answer_by_worker if self.methods[method] else self._answer_here

        def respond(messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            return self._respond(context, lambda: answer(handler, messages, context))

        # As a stream of one message, a call begins before its message has arrived.
        return grpc.stream_unary_rpc_method_handler(respond, None, handler.response_serializer)

    def _respond(self, context: grpc.ServicerContext, answer: Callable[[], Any]) -> Any:
        """Returns an answer, or ends the call with the status of its error."""
        try:
            return answer()
        except InvalidRequestError as error:
            self.metrics.refused.labels(str(error.status)).inc()
            context.abort(_CODES[error.status], _shortened(str(error)))
        except grpc.RpcError:
            self.metrics.refused.labels(_HUNG_UP).inc()
            raise
        except Exception:
            self.metrics.refused.labels("500").inc()
            FAULTS.exception("a fault")
            context.abort(grpc.StatusCode.INTERNAL, "a fault of the server; its log says more")
        raise AssertionError("abort raises")

    def _answer_by_worker(
        self, handler: Any, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Any:
        with self.admission.admit() as admitted:
            data = self._receive(messages, context)
            admitted.add(len(data))
            return self.admission.submit(lambda: _answer(handler, data, context)).result()

    def _answer_here(
        self, handler: Any, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Any:
        return _answer(handler, self._receive(messages, context), context)

    def _receive(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        late = threading.Timer(self.receive_seconds, context.cancel)
        late.daemon = True
        late.start()
        try:
            return next(messages, b"")
        finally:
            late.cancel()


def _answer(handler: Any, data: bytes, context: grpc.ServicerContext) -> Any:
    try:
        message = handler.request_deserializer(data)
    except Exception as error:  # protobuf documents no class for it
        raise InvalidRequestError(f"the message cannot be decoded: {error}") from error
    return handler.unary_unary(message, context)


def _shortened(message: str) -> str:
    data = message.encode()
    if len(data) <= _MAX_DETAILS:
        return message
    return data[:_MAX_DETAILS].decode(errors="ignore") + "..."
