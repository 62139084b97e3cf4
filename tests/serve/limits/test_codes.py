"""No input is a fault of the server: it answers 4xx, logs nothing and counts no 500."""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2 as pb

from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.requests import Request
from tests.serve.test_protocol import INFER, body, raw_text
from tools.served import Running, raw, wait_for

HALF = "\ud800"


@pytest.fixture(autouse=True)
def faultless(server: Running) -> Iterator[None]:
    """Checks afterwards that nothing was logged or counted as the server's fault."""
    before = server.log.read_text()
    yield
    assert server.log.read_text() == before
    assert 'mail_refused_total{status="500"}' not in server.metrics()


def one_tensor(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "request", "datatype": "BYTES", "shape": [1], "data": ["{}"]} | changes
    return {"inputs": [tensor]}


SURROGATES: dict[str, Any] = {
    "an input's name": one_tensor(name=HALF),
    "a string": one_tensor(data=[HALF]),
    "the id": one_tensor() | {"id": HALF},
    "a datatype": one_tensor(datatype=HALF),
    "a parameter": one_tensor() | {"parameters": {"user": HALF}},
    "an output's name": one_tensor() | {"outputs": [{"name": HALF}]},
    "a key": one_tensor() | {HALF: 1},
    "a raw column": raw_text(json.dumps({"user": {HALF: 1}, "candidates": [{}]})),
    "a raw value": raw_text(json.dumps({"user": {"city": HALF}, "candidates": [{}]})),
}


@pytest.mark.parametrize("content", SURROGATES.values(), ids=SURROGATES)
def test_half_a_surrogate_pair_is_refused_as_bad_json(server: Running, content: Any) -> None:
    for data in (
        json.dumps(content).encode(),
        json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass"),
    ):
        status, answer = server.ask(INFER, data)
        assert status == 400 and "JSON in UTF-8" in answer["error"]


def ask_bytes(server: Running, head: bytes) -> bytes:
    """Sends bytes as they are, and returns the first line of the response."""
    host, port = server.http.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head)
        return connection.recv(4096).partition(b"\r\n")[0]


POST = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n".encode()
HEADS: dict[str, bytes] = {
    "a length of 5,000 digits": POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "a JSON length of 5,000 digits": POST
    + b"Inference-Header-Content-Length: "
    + b"9" * 5000
    + b"\r\nContent-Length: 2\r\n\r\n{}",
    "other bytes in a header": POST
    + b"Content-Encoding: \xed\xa0\x80\r\nContent-Length: 0\r\n\r\n",
    "a surrogate in the path": b"GET /v2/models/%ED%A0%80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "an upgrade": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "damaged chunks": POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_hostile_heads_get_4xx(server: Running, head: bytes) -> None:
    assert ask_bytes(server, head).startswith(b"HTTP/1.1 4")


def test_damaged_chunks_behind_an_answer_end_the_connection(server: Running) -> None:
    host, port = server.http.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\nc351\r\n" + b" " * 50_001)
        assert connection.recv(12) == b"HTTP/1.1 413"
        connection.sendall(b"xyz\r\n" * 9)
        with suppress(ConnectionError):
            while connection.recv(4096):
                pass


def test_damaged_chunks_behind_a_body_that_is_too_long_get_one_answer(server: Running) -> None:
    large = b"c351\r\n" + b" " * 50_001 + b"\r\nxyz\r\n" * 9
    for _ in range(9):
        first = ask_bytes(server, POST + b"Transfer-Encoding: chunked\r\n\r\n" + large)
        assert first.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413"))


def test_a_client_that_hangs_up_is_no_fault(server: Running) -> None:
    key = 'mail_refused_total{status="499"}'
    before = server.metrics().get(key, 0)
    host, port = server.http.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(POST + b"Content-Length: 100\r\n\r\nhalf")
    wait_for(lambda: server.metrics().get(key, 0) == before + 1)


def test_a_long_refusal_over_grpc_arrives(server: Running, exported: Path) -> None:
    """Each byte of another script takes three in a trailer, of which there are 8 KiB."""
    request = read_golden(exported / "first")[0][0]
    long = Request(dict(request.user) | {"\u4e00" * 5000: 1}, request.candidates)
    with (
        tritonclient.grpc.InferenceServerClient(server.grpc) as client,
        pytest.raises(tritonclient.grpc.InferenceServerException) as caught,
    ):
        client.infer("ads", raw(tritonclient.grpc, long))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "is none of" in str(caught.value) or "\u4e00\u4e00" in str(caught.value)
    status, answer = server.ask(INFER, body(long))
    assert status == 400 and "\u4e00\u4e00" in answer["error"]


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "ServerLive"])
def test_bytes_that_are_no_grpc_message_are_an_invalid_argument(
    server: Running, method: str
) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        ask = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        with pytest.raises(grpc.RpcError) as caught:
            ask(b"\xff\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_half_a_surrogate_pair_over_grpc_is_refused(server: Running) -> None:
    text = np.array([b'{"user": {"\\ud800": 1}, "candidates": [{}]}'], dtype=object)
    message = pb.ModelInferRequest(model_name="ads")
    message.inputs.add(name="request", datatype="BYTES", shape=[1]).contents.bytes_contents.extend(
        text
    )
    with grpc.insecure_channel(server.grpc) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            ask(message.SerializeToString())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
