"""gRPC service ``inference.GRPCInferenceService``, with the messages that tritonclient ships."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version as version_of
from typing import Any, TypeVar

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs

from mail_torchrec.inference.datatypes import Array
from mail_torchrec.inference.errors import InvalidRequestError
from mail_torchrec.serve.ranker import InferenceCall, Ranker
from mail_torchrec.serve.tensors import datatype_of, from_bytes, from_json, to_bytes
from mail_torchrec.serve.versions import LOG

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_CONTENTS = {"INT64": "int64_contents", "FP32": "fp32_contents", "BOOL": "bool_contents"}
"""Field of a message's typed contents for each datatype."""
Message = TypeVar("Message")


def start_grpc(
    ranker: Ranker, address: str, max_bytes: int, threads: int
) -> tuple[grpc.Server, int]:
    """Starts a gRPC server.

    Args:
        ranker: scores the calls.
        address: host and port; port 0 takes a free one.
        max_bytes: most bytes of a request.
        threads: requests that are served at once; more wait.

    Returns:
        The server, which is listening, and its port.

    Raises:
        ValueError: the address is in use or not an address of this machine.
    """
    options = [("grpc.max_receive_message_length", max_bytes), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(threads, thread_name_prefix="grpc"), options=options)
    stubs.add_GRPCInferenceServiceServicer_to_server(_GrpcServicer(ranker), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ValueError(f"cannot listen on {address} for gRPC: {error}") from error
    server.start()
    return server, port


class _GrpcServicer(stubs.GRPCInferenceServiceServicer):
    """Methods of the protocol; others (Triton's repository, ...) answer UNIMPLEMENTED."""

    def __init__(self, ranker: Ranker) -> None:
        self.ranker = ranker

    def ServerLive(self, request: Any, context: grpc.ServicerContext) -> Any:
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: grpc.ServicerContext) -> Any:
        return pb.ServerReadyResponse(ready=True)

    def ServerMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        return pb.ServerMetadataResponse(name="mail-torchrec", version=version_of("mail-torchrec"))

    def ModelReady(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._respond(context, lambda: self._metadata(request))
        return pb.ModelReadyResponse(ready=True)

    def ModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._respond(context, lambda: pb.ModelMetadataResponse(**self._metadata(request)))

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._respond(context, lambda: self._infer(request))

    def _metadata(self, request: Any) -> dict[str, Any]:
        self.ranker.check_name(request.name)
        return self.ranker.metadata(request.version)

    def _infer(self, request: Any) -> Any:
        self.ranker.check_name(request.model_name)
        result = self.ranker.infer(_decode_call(request))
        response = pb.ModelInferResponse(
            model_name=self.ranker.name, model_version=result.version, id=request.id
        )
        for name, array in result.outputs.items():
            response.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
            response.raw_output_contents.append(to_bytes(array))
        return response

    def _respond(self, context: grpc.ServicerContext, work: Callable[[], Message]) -> Message:
        """Returns the result of ``work``, or ends the call with the status of its error."""
        try:
            return work()
        except InvalidRequestError as error:
            self.ranker.metrics.refused.labels(str(error.status)).inc()
            context.abort(_CODES[error.status], str(error))
        except Exception:
            self.ranker.metrics.refused.labels("500").inc()
            LOG.exception("a fault")
            context.abort(grpc.StatusCode.INTERNAL, "a fault of the server; its log says more")
        raise AssertionError("abort raises")


def _decode_call(request: Any) -> InferenceCall:
    parameters = {
        name: getattr(value, value.WhichOneof("parameter_choice") or "", None)
        for name, value in request.parameters.items()
    }
    outputs = tuple(output.name for output in request.outputs)
    return InferenceCall(_decode_inputs(request), outputs, parameters, request.model_version)


def _decode_inputs(request: Any) -> dict[str, Array]:
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequestError(
            f"raw_input_contents should have one part for each of the {len(request.inputs)} "
            f"inputs, received {len(raw)}"
        )
    inputs: dict[str, Array] = {}
    for i, tensor in enumerate(request.inputs):
        if tensor.name in inputs:
            raise InvalidRequestError(f"input '{tensor.name}' should come once")
        if raw:
            inputs[tensor.name] = from_bytes(tensor.name, tensor.datatype, tensor.shape, raw[i])
        else:
            inputs[tensor.name] = _decode_contents(tensor)
    return inputs


def _decode_contents(tensor: Any) -> Array:
    """Decodes a tensor whose values stand in the message's typed contents."""
    if tensor.datatype == "BYTES":
        values = tensor.contents.bytes_contents
        data = b"".join(len(value).to_bytes(4, "little") + value for value in values)
        return from_bytes(tensor.name, tensor.datatype, tensor.shape, data)
    values = list(getattr(tensor.contents, _CONTENTS.get(tensor.datatype, ""), []))
    return from_json(tensor.name, tensor.datatype, tensor.shape, values)
