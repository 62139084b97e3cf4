"""Requests made of the server's own description, and gRPC messages made of anything: each is answered as described, and none harms it."""

import json
import struct
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs

from mail_torchrec.data.requests import Request
from mail_torchrec.export.manifest import read_golden
from mail_torchrec.export.scorer import Scorer
from mail_torchrec.serve.openapi import REQUEST_FORMAT
from tests.serve.conftest import version_in
from tests.serve.test_protocol import INFER, body
from tools.served import Running, as_json

PATHS = [
    *("/v2", "/v2/health/live", "/v2/health/ready", "/metrics", "/openapi.json"),
    *("/v2/models/ads", "/v2/models/ads/ready", "/v2/models/ads/versions/{version}", "/v2/models/ads/versions/{version}/ready"),
    *(INFER, "/v2/models/ads/versions/{version}/infer"),
]
CALM = [HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.fixture(autouse=True)
def unharmed(server: Running, exported: Path) -> Any:
    """Afterwards each golden request has its scores."""
    yield
    for request, scores in read_golden(exported / "first"):
        status, answer = server.ask(INFER, body(request))
        assert status == 200 and np.abs(np.array(answer["outputs"][0]["data"]) - scores["pctr"]).max() <= 1e-5


@pytest.fixture(scope="session")
def api(server: Running) -> Any:
    described = server.ask("/openapi.json")[1]
    strategy = described_values(described["components"]["schemas"], {"$ref": "#/components/schemas/ScoringRequest"})
    schemathesis.openapi.format(REQUEST_FORMAT, strategy.map(json.dumps))
    return schemathesis.openapi.from_url(f"http://{server.http}/openapi.json")


def described_values(parts: dict[str, Any], schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of what the description uses for a request's columns; independent of the server's code."""
    if "$ref" in schema:
        return described_values(parts, parts[schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return st.one_of([described_values(parts, one) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "object":
            of_keys = {key: described_values(parts, one) for key, one in schema["properties"].items()}
            required = {key: one for key, one in of_keys.items() if key in schema["required"]}
            return st.fixed_dictionaries(required, optional={key: one for key, one in of_keys.items() if key not in required})
        case "array":
            return st.lists(described_values(parts, schema["items"]), min_size=schema.get("minItems", 0), max_size=4)
        case "integer":
            return st.integers(schema["minimum"], schema["maximum"]) | st.integers(0, 9)
        case "number":
            return st.floats(schema.get("minimum"), allow_nan=False, allow_infinity=False)
        case "string":
            return st.text(max_size=5)
        case "null":
            return st.none()
    return st.none() | st.integers(0, 9)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", PATHS)
def test_every_answer_is_as_described(api: Any, path: str, mode: GenerationMode) -> None:
    [operation] = api[path].values()
    num_examples = 60 if path == INFER else 8
    if mode is GenerationMode.NEGATIVE and "{" not in path and path != INFER:
        pytest.skip("nothing to get wrong")

    @settings(max_examples=num_examples, suppress_health_check=CALM, derandomize=True)
    @given(operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        case.call_and_validate(excluded_checks=[schemathesis.checks.positive_data_acceptance])

    check()


def test_the_description_leaves_out_no_path(api: Any) -> None:
    assert {path for path in api} == set(PATHS)
