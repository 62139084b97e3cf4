"""A request costs work in proportion to its bytes: what would cost more is refused."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc

from mail_torchrec.inference.errors import MAX_MESSAGE, InvalidRequestError
from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.raw_requests import (
    MAX_CONTAINERS,
    MAX_TEXT,
    RawRequest,
    parse_json,
    parse_raw_request,
)
from mail_torchrec.inference.requests import Request
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.serve.http_body import InferenceRequest, decode_body
from tests.serve.test_protocol import INFER, body
from tools.served import Running, as_json, raw, tensors

LONG, LONGER = "x" * MAX_TEXT, "x" * (MAX_TEXT + 1)


def with_values(request: Request, **values: Any) -> Request:
    """Changes columns of the user and of the first candidate."""
    first = {**request.candidates[0], **{k: v for k, v in values.items() if k in ("item", "tags")}}
    user = {**request.user, **{k: v for k, v in values.items() if k not in first}}
    return Request(user, [first, *request.candidates[1:]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"city": LONGER}, "user: column 'city' should be a string of at most 4096 characters"),
        ({"tags": [1, LONGER]}, "candidate: column 'tags' should be a string of at most 4096"),
        ({"user": LONGER}, "user: column 'user' should be a string of at most 4096 characters"),
        ({"tags": [{"a": 1}, {"b": 1}]}, "a value or a list of values, received an object"),
        ({"city": {"a": 1}}, "user: column 'city' should hold a value or a list of values"),
        (
            {"history": [[1]]},
            "column 'history' should hold a value or a list of values, received a",
        ),
    ],
)
def test_long_strings_and_objects_are_refused_with_their_column(
    server: Running, exported: Path, values: dict[str, Any], message: str
) -> None:
    request = with_values(read_golden(exported / "first")[0][0], **values)
    status, answer = server.ask(INFER, body(request))
    assert status == 400 and message in answer["error"] and len(answer["error"]) < 200
    with (
        tritonclient.grpc.InferenceServerClient(server.grpc) as client,
        pytest.raises(tritonclient.grpc.InferenceServerException) as caught,
    ):
        client.infer("ads", raw(tritonclient.grpc, request))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_the_longest_string_is_served_and_described(server: Running, exported: Path) -> None:
    request = with_values(read_golden(exported / "first")[0][0], city=LONG)
    unknown = with_values(request, city="nowhere")
    answers = [server.ask(INFER, body(one))[1] for one in (request, unknown)]
    assert answers[0]["outputs"] == answers[1]["outputs"]
    schemas = server.ask("/openapi.json")[1]["components"]["schemas"]
    [text, _] = schemas["ScoringRequest"]["properties"]["user"]["properties"]["city"]["anyOf"]
    assert text["maxLength"] == MAX_TEXT


def test_the_user_of_a_split_is_no_long_string_either(server: Running, exported: Path) -> None:
    request = read_golden(exported / "first")[0][0]
    status, answer = server.ask(INFER, body(request, parameters={"user": LONGER}))
    assert status == 400 and "the user's id should be a string of at most" in answer["error"]


def test_a_training_value_of_any_length_is_still_scored(exported: Path) -> None:
    """The limit is the servers': golden requests are rows of files."""
    request = with_values(read_golden(exported / "first")[0][0], city=LONGER)
    assert np.isfinite(Scorer(exported / "first").score(request)["pctr"]).all()


def test_no_output_is_computed_twice(server: Running, exported: Path) -> None:
    request = read_golden(exported / "first")[0][0]
    status, answer = server.ask(INFER, body(request, outputs=[{"name": "pctr"}] * 2))
    assert status == 400 and "an output should be asked for once" in answer["error"]


def test_users_without_candidates_count_as_candidates_do(server: Running, exported: Path) -> None:
    request = read_golden(exported / "first")[0][0]
    encoded = Scorer(exported / "first").encode([request] * 41)
    for name in ("item", "tags", "tags.length", "candidate.user"):
        encoded[name] = encoded[name][:1]
    with (
        tritonclient.grpc.InferenceServerClient(server.grpc) as client,
        pytest.raises(tritonclient.grpc.InferenceServerException) as caught,
    ):
        client.infer("ads", tensors(tritonclient.grpc, encoded))
    assert "at most 40 users a request, received 41" in str(caught.value)


def tensor(**changes: Any) -> bytes:
    one = {"name": "a", "datatype": "INT64", "shape": [1], "data": [1]} | changes
    return json.dumps({"inputs": [one]}).encode()


def ragged(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


HOSTILE: dict[str, bytes] = {
    "one long string among short ones": tensor(data=["x" * 50_000, *["a"] * 10_000]),
    "strings for a shape": tensor(shape=["a"] * 20_000),
    "a long shape": tensor(shape=[1] * 20_000),
    "a deep list": tensor(data=ragged(200)),
    "lists of several lengths": tensor(data=[[1]] * 5000 + [[1, 2]]),
    "numbers of many digits": tensor(data=[int("1" * 4000)] * 10),
    "inputs without anything": b'{"inputs":[' + b",".join([b"{}"] * 20_000) + b"]}",
    "inputs of another type": b'{"inputs":[' + b",".join([b"1"] * 20_000) + b"]}",
    "outputs without anything": tensor()[:-1] + b',"outputs":[' + b"{}," * 20_000 + b"{}]}",
    "a long name": tensor(name="x" * 50_000, data=["a"]),
}
RAW: dict[str, Callable[[dict[str, Any]], Any]] = {
    "objects with keys of their own": lambda one: [
        one | {"tags": [{str(i): 1} for i in range(5000)]}
    ],
    "candidates of another type": lambda one: [1] * 20_000,
}


def peak_of(parse: Callable[[], object]) -> int:
    """Most bytes in memory while a body is parsed and refused."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError) as caught:
            parse()
        assert len(str(caught.value)) <= MAX_MESSAGE + 3
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_refused_body_takes_memory_in_proportion_to_its_bytes(content: bytes) -> None:
    assert peak_of(lambda: decode_body(content, None)) < 60 * len(content) + 2**18


@pytest.mark.parametrize("change", RAW.values(), ids=RAW)
def test_a_refused_raw_request_does_so_too(exported: Path, change: Any) -> None:
    request = read_golden(exported / "first")[0][0]
    content = as_json(Request(request.user, change(dict(request.candidates[0])))).encode()
    element = np.array([content], dtype=object)
    assert peak_of(lambda: parse_raw_request(element)) < 60 * len(content) + 2**18


@pytest.mark.parametrize("element", [b"{}", b"[]", b'{"a":[]}'], ids=["objects", "lists", "both"])
@pytest.mark.parametrize("kind", [InferenceRequest, RawRequest])
def test_more_lists_and_objects_than_anybody_needs_are_refused_unparsed(
    element: bytes, kind: Any
) -> None:
    brackets = element.count(b"{") + element.count(b"[")
    content = b'{"inputs":[' + b",".join([element] * (MAX_CONTAINERS // brackets)) + b"]}"
    num = content.count(b"{") + content.count(b"[")
    message = f"at most 131072 lists and objects, received {num}"
    with pytest.raises(InvalidRequestError, match=message):
        parse_json(kind, content)
    fewer = b'{"inputs":[' + b",".join([element] * (MAX_CONTAINERS // brackets - 2)) + b"]}"
    with pytest.raises(InvalidRequestError) as caught:
        parse_json(kind, fewer)
    assert "opening brackets" not in str(caught.value)
