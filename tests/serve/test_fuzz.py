"""Requests generated from the server's description, and random gRPC messages, do no harm."""

import json
import struct
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs

from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.serve.openapi_schemas import REQUEST_FORMAT
from tests.serve.test_protocol import INFER, body
from tests.support.exported_models import version_in
from tools.served import Running

PATHS = [
    *("/v2", "/v2/health/live", "/v2/health/ready", "/metrics", "/openapi.json"),
    *(
        "/v2/models/ads",
        "/v2/models/ads/ready",
        "/v2/models/ads/versions/{version}",
        "/v2/models/ads/versions/{version}/ready",
    ),
    *(INFER, "/v2/models/ads/versions/{version}/infer"),
]
POSITIVE, NEGATIVE = "positive", "negative"
"""Modes of schemathesis, imported where it is used, for it takes 1.5 s in each process."""
CALM = [HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.fixture(autouse=True)
def unharmed(server: Running, exported: Path) -> Any:
    """Checks afterwards that each golden request has its scores."""
    yield
    for request, scores in read_golden(exported / "first"):
        status, answer = server.ask(INFER, body(request))
        assert (
            status == 200
            and np.abs(np.array(answer["outputs"][0]["data"]) - scores["pctr"]).max() <= 1e-5
        )


@pytest.fixture(scope="session")
def api(server: Running) -> Any:
    import schemathesis

    described = server.ask("/openapi.json")[1]
    strategy = described_values(
        described["components"]["schemas"], {"$ref": "#/components/schemas/ScoringRequest"}
    )
    schemathesis.openapi.format(REQUEST_FORMAT, strategy.map(json.dumps))
    return schemathesis.openapi.from_url(f"http://{server.http}/openapi.json")


def described_values(parts: dict[str, Any], schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Generates values of a schema of the description, independently of the server's code."""
    if "$ref" in schema:
        return described_values(parts, parts[schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return st.one_of([described_values(parts, one) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "object":
            of_keys = {
                key: described_values(parts, one) for key, one in schema["properties"].items()
            }
            required = {key: one for key, one in of_keys.items() if key in schema["required"]}
            return st.fixed_dictionaries(
                required, optional={key: one for key, one in of_keys.items() if key not in required}
            )
        case "array":
            return st.lists(
                described_values(parts, schema["items"]),
                min_size=schema.get("minItems", 0),
                max_size=4,
            )
        case "integer":
            return st.integers(schema["minimum"], schema["maximum"]) | st.integers(0, 9)
        case "number":
            return st.floats(schema.get("minimum"), allow_nan=False, allow_infinity=False)
        case "string":
            return st.text(max_size=5)
        case "null":
            return st.none()
    return st.none() | st.integers(0, 9)


CASES = [(path, POSITIVE) for path in PATHS]
CASES += [
    (path, NEGATIVE) for path in PATHS if path.endswith("/infer")
]  # elsewhere there is nothing to get wrong


@pytest.mark.parametrize(("path", "mode"), CASES)
def test_every_answer_is_as_described(api: Any, path: str, mode: str) -> None:
    import schemathesis

    operation = api[path]["post" if path.endswith("/infer") else "get"]
    num_examples, statuses = 30 if path == INFER else 4, set()

    @settings(max_examples=num_examples, suppress_health_check=CALM, derandomize=True)
    @given(operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def check(case: Any) -> None:
        statuses.add(
            case.call_and_validate(
                excluded_checks=[schemathesis.checks.positive_data_acceptance]
            ).status_code
        )

    check()
    if mode == POSITIVE and "{" not in path:
        assert 200 in statuses  # so what is asked is good enough to be scored


def test_the_description_leaves_out_no_path(api: Any) -> None:
    assert {path for path in api} == set(PATHS)


NAMES = st.sampled_from(["request", "city", "history", "candidate.user", "x"]) | st.text(max_size=4)
DATATYPES = st.sampled_from(["BYTES", "INT64", "FP32", "BOOL", "FP64"]) | st.text(max_size=3)
SIZES = st.sampled_from([-(2**63), -1, 0, 1, 1, 1, 2, 6, 2**31, 2**62])
CONTENTS = {
    "bool_contents": st.booleans(),
    "int64_contents": st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3),
    "int_contents": st.integers(-(2**31), 2**31 - 1),
    "fp32_contents": st.floats(width=32),
    "fp64_contents": st.floats(),
    "bytes_contents": st.binary(max_size=9) | st.just(b'{"user": {}, "candidates": [{}]}'),
}
RAW = st.binary(max_size=20) | st.binary(max_size=9).map(
    lambda data: struct.pack("<I", len(data)) + data
)
PARAMETERS = st.builds(pb.InferParameter) | st.builds(
    pb.InferParameter, int64_param=st.integers(-3, 3), string_param=st.text(max_size=3)
)


@st.composite
def messages(draw: st.DrawFn) -> pb.ModelInferRequest:
    """Generates messages for the right or another model, with right or wrong tensors."""
    version = draw(st.sampled_from(["", "", "", "first", "9"]))
    message = pb.ModelInferRequest(
        model_name=draw(st.sampled_from(["ads", "ads", "ads", "other"])), model_version=version
    )
    for _ in range(draw(st.integers(0, 3))):
        tensor = message.inputs.add(
            name=draw(NAMES), datatype=draw(DATATYPES), shape=draw(st.lists(SIZES, max_size=9))
        )
        for part in draw(st.lists(st.sampled_from(list(CONTENTS)), max_size=2, unique=True)):
            getattr(tensor.contents, part).extend(draw(st.lists(CONTENTS[part], max_size=3)))
    message.raw_input_contents.extend(draw(st.lists(RAW, max_size=3)))
    for name in draw(st.lists(st.sampled_from(["pctr", "history.virtual", "y"]), max_size=3)):
        message.outputs.add(name=name)
    for name, value in draw(
        st.dictionaries(st.sampled_from(["user", "z"]), PARAMETERS, max_size=2)
    ).items():
        message.parameters[name].CopyFrom(value)
    return message


@st.composite
def spoilt(draw: st.DrawFn, good: pb.ModelInferRequest) -> pb.ModelInferRequest:
    """Generates changes of one tensor of a good call."""
    message = pb.ModelInferRequest()
    message.CopyFrom(good)
    i = draw(st.integers(0, len(message.inputs) - 1))
    tensor, other = message.inputs[i], draw(st.integers(0, len(message.inputs) - 1))
    match draw(st.sampled_from(["name", "datatype", "shape", "bytes", "another's bytes", "gone"])):
        case "name":
            tensor.name = draw(NAMES)
        case "datatype":
            tensor.datatype = draw(DATATYPES)
        case "shape":
            tensor.shape[:] = draw(st.lists(SIZES, max_size=3))
        case "bytes":
            size = len(message.raw_input_contents[i])
            message.raw_input_contents[i] = draw(
                st.binary(min_size=size, max_size=size) | st.binary(max_size=16)
            )
        case "another's bytes":
            message.raw_input_contents[i] = message.raw_input_contents[other]
        case "gone":
            del message.inputs[i], message.raw_input_contents[other]
    return message


def encoded_message(exported: Path) -> pb.ModelInferRequest:
    """Builds a call with three users' tensors."""
    names = {"int64": "INT64", "float32": "FP32", "bool": "BOOL"}
    message = pb.ModelInferRequest(model_name="ads")
    for name, array in (
        Scorer(exported / "first")
        .encode([request for request, _ in read_golden(exported / "first")[:3]])
        .items()
    ):
        message.inputs.add(name=name, datatype=names[str(array.dtype)], shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    return message


def test_no_grpc_message_is_a_fault_of_the_server(server: Running, exported: Path) -> None:
    good, seen = encoded_message(exported), set()
    with grpc.insecure_channel(server.grpc) as channel:
        ask = stubs.GRPCInferenceServiceStub(channel).ModelInfer
        assert len(ask(good).outputs) == 3

        @settings(max_examples=200, suppress_health_check=CALM)
        @given(messages() | spoilt(good))
        def check(message: pb.ModelInferRequest) -> None:
            try:
                answer = ask(message, timeout=30)
            except grpc.RpcError as error:
                seen.add(error.code().name)
                assert error.code().name in ("INVALID_ARGUMENT", "NOT_FOUND") and error.details()
            else:
                seen.add("OK")
                scores = np.concatenate(
                    [np.frombuffer(raw, "<f4") for raw in answer.raw_output_contents]
                )
                assert (
                    answer.model_version == version_in(exported / "first")
                    and np.isfinite(scores).all()
                )

        check()
    assert seen == {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}


@pytest.mark.parametrize(
    "method", ["RepositoryIndex", "SystemSharedMemoryStatus", "ModelConfig", "ModelStatistics"]
)
def test_what_is_not_served_over_grpc_is_said_to_be_unimplemented(
    server: Running, method: str
) -> None:
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        getattr(stubs.GRPCInferenceServiceStub(channel), method)(getattr(pb, f"{method}Request")())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
