"""gRPC service ``inference.GRPCInferenceService``, with the messages that tritonclient ships."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs

from mail_torchrec.inference.datatypes import Array
from mail_torchrec.inference.errors import InvalidRequestError
from mail_torchrec.serve.limits.admission import Admission
from mail_torchrec.serve.limits.grpc_calls import BoundedCalls
from mail_torchrec.serve.ranker import InferenceCall, Ranker
from mail_torchrec.serve.tensors import datatype_of, from_bytes, from_json, to_bytes
from mail_torchrec.utils.formats import package_version

_THREADS = 32
"""Calls that are received at once; each may hold one message."""
_CONTENTS = {"INT64": "int64_contents", "FP32": "fp32_contents", "BOOL": "bool_contents"}
"""Field of a message's typed contents for each datatype."""


def start_grpc(
    ranker: Ranker,
    address: str,
    admission: Admission,
    options: list[tuple[str, int]],
    receive_seconds: float,
) -> tuple[grpc.Server, int]:
    """Starts a gRPC server.

    Args:
        ranker: scores the calls.
        address: host and port; port 0 takes a free one.
        admission: limits of all requests in the server.
        options: limits of the connections and messages, for gRPC.
        receive_seconds: most seconds that a message may take to arrive.

    Returns:
        The server, which is listening, and its port.

    Raises:
        ValueError: the address is in use or not an address of this machine.
    """
    methods = {name: name == "ModelInfer" for name in vars(_GrpcServicer) if name[0].isupper()}
    server = grpc.server(
        ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc"),
        options=options,
        interceptors=[BoundedCalls(admission, ranker.metrics, receive_seconds, methods)],
        maximum_concurrent_rpcs=2 * _THREADS,
    )
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
        return pb.ServerMetadataResponse(
            name="mail-torchrec", version=package_version("mail-torchrec")
        )

    def ModelReady(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._metadata(request)
        return pb.ModelReadyResponse(ready=True)

    def ModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        return pb.ModelMetadataResponse(**self._metadata(request))

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.ranker.check_name(request.model_name)
        result = self.ranker.infer(_decode_call(request))
        response = pb.ModelInferResponse(
            model_name=self.ranker.name, model_version=result.version, id=request.id
        )
        for name, array in result.outputs.items():
            response.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
            response.raw_output_contents.append(to_bytes(array))
        return response

    def _metadata(self, request: Any) -> dict[str, Any]:
        self.ranker.check_name(request.name)
        return self.ranker.metadata(request.version)


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
