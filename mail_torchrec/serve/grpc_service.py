"""The protocol over gRPC: `inference.GRPCInferenceService`, its messages as tritonclient ships them."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version as version_of
from typing import Any, TypeVar

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs

from mail_torchrec.inference.errors import RefusedError
from mail_torchrec.serve.ranker import Call, Ranker
from mail_torchrec.serve.tensors import Array, from_bytes, from_json

LOG = logging.getLogger("mail_torchrec.serve")
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_CONTENTS = {"INT64": "int64_contents", "FP32": "fp32_contents", "BOOL": "bool_contents"}
Message = TypeVar("Message")


def start_grpc(
    ranker: Ranker, address: str, max_bytes: int, threads: int
) -> tuple[grpc.Server, int]:
    """A server that is listening, and its port.

    Args:
        ranker: answers.
        address: host and port; port 0 takes a free one.
        max_bytes: of a request.
        threads: requests at once; more wait.

    Raises:
        ValueError: the address is taken or none of this machine.
    """
    options = [("grpc.max_receive_message_length", max_bytes), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(threads, thread_name_prefix="grpc"), options=options)
    stubs.add_GRPCInferenceServiceServicer_to_server(_Service(ranker), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ValueError(f"cannot listen on {address} for gRPC: {error}") from error
    server.start()
    return server, port


class _Service(stubs.GRPCInferenceServiceServicer):
    """What is not here (Triton's repository, shared memory, ...) is answered with UNIMPLEMENTED."""

    def __init__(self, ranker: Ranker) -> None:
        self.ranker = ranker

    def ServerLive(self, request: Any, context: grpc.ServicerContext) -> Any:
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: grpc.ServicerContext) -> Any:
        return pb.ServerReadyResponse(ready=True)

    def ServerMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        return pb.ServerMetadataResponse(name="mail-torchrec", version=version_of("mail-torchrec"))

    def ModelReady(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._answered(context, lambda: self._metadata(request))
        return pb.ModelReadyResponse(ready=True)

    def ModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._answered(context, lambda: pb.ModelMetadataResponse(**self._metadata(request)))

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._answered(context, lambda: self._infer(request))

    def _metadata(self, request: Any) -> dict[str, Any]:
        self.ranker.check_name(request.name)
        return self.ranker.metadata(request.version)

    def _infer(self, request: Any) -> Any:
        self.ranker.check_name(request.model_name)
        parameters = {
            name: getattr(value, value.WhichOneof("parameter_choice") or "", None)
            for name, value in request.parameters.items()
        }
        call = Call(
            _inputs(request),
            tuple(wish.name for wish in request.outputs),
            parameters,
            request.model_version,
        )
        answer = self.ranker.answer(call)
        response = pb.ModelInferResponse(
            model_name=self.ranker.name, model_version=answer.version, id=request.id
        )
        for name, array in answer.outputs.items():
            response.outputs.add(name=name, datatype="FP32", shape=array.shape)
            response.raw_output_contents.append(np.ascontiguousarray(array, dtype="<f4").tobytes())
        return response

    def _answered(self, context: grpc.ServicerContext, work: Callable[[], Message]) -> Message:
        try:
            return work()
        except RefusedError as error:
            self.ranker.metrics.refused.labels(str(error.status)).inc()
            context.abort(_CODES[error.status], str(error))
        except Exception:
            self.ranker.metrics.refused.labels("500").inc()
            LOG.exception("a fault")
            context.abort(grpc.StatusCode.INTERNAL, "a fault of the server; its log says more")
        raise AssertionError("abort raises")


def _inputs(request: Any) -> dict[str, Array]:
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise RefusedError(
            f"raw_input_contents should have one part for each of the {len(request.inputs)} "
            f"inputs, received {len(raw)}"
        )
    inputs: dict[str, Array] = {}
    for i, tensor in enumerate(request.inputs):
        if tensor.name in inputs:
            raise RefusedError(f"input '{tensor.name}' should come once")
        if raw:
            inputs[tensor.name] = from_bytes(tensor.name, tensor.datatype, tensor.shape, raw[i])
        elif tensor.datatype == "BYTES":
            data = b"".join(
                len(value).to_bytes(4, "little") + value for value in tensor.contents.bytes_contents
            )
            inputs[tensor.name] = from_bytes(tensor.name, tensor.datatype, tensor.shape, data)
        else:
            values = list(getattr(tensor.contents, _CONTENTS.get(tensor.datatype, ""), []))
            inputs[tensor.name] = from_json(tensor.name, tensor.datatype, tensor.shape, values)
    return inputs
