"""Under floods and limits of the system, the server lives, answers and stays small."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc

from mail_torchrec.inference.golden_file import read_golden
from tests.serve.test_protocol import INFER, body
from tools.overload import (
    MAX_MEMORY,
    UNFINISHED,
    connect,
    flood,
    hostile_requests,
    large_request,
    overload,
    peak_bytes,
)
from tools.served import Running, raw, running, wait_for

POST = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 40000\r\n\r\n".encode()
LATE = "2"
"""Seconds of ``--receive-seconds`` and ``--keep-alive``."""


@pytest.fixture(scope="module")
def small(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that may open 64 files and holds 100,000 bytes of requests."""
    folder = tmp_path_factory.mktemp("small")
    shutil.copytree(exported / "first", folder / "model")
    limits = ("--max-bytes", "50000", "--max-waiting-bytes", "100000", "--receive-seconds", LATE)
    limits += ("--keep-alive", LATE)
    options = ("--name", "ads", "--threads", "1", *limits)
    with running(folder / "model", folder / "log", *options, max_files=64) as found:
        yield found


def closed_by_server(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_a_request_that_does_not_come_is_waited_for_no_longer_than_allowed(small: Running) -> None:
    with ExitStack() as stack:
        waiting = [stack.enter_context(connect(small.http)) for _ in UNFINISHED]
        for connection, data in zip(waiting, UNFINISHED.values(), strict=True):
            connection.sendall(data)
        dripping = [stack.enter_context(connect(small.http)) for _ in range(2)]
        dripping[1].sendall(POST)
        with suppress(ConnectionError):  # drops of a head or a body gain no time
            for one in POST[:100]:
                for connection in dripping:
                    connection.sendall(bytes([one]))
                time.sleep(0.1)
        assert all(map(closed_by_server, [*waiting, *dripping]))


def test_a_grpc_message_that_does_not_come_is_cancelled_and_others_are_answered(
    small: Running, exported: Path
) -> None:
    go = threading.Event()

    def nothing() -> Iterator[bytes]:
        go.wait(30)
        yield b""

    request = read_golden(exported / "first")[0][0]
    with grpc.insecure_channel(small.grpc) as channel:
        ask = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        calls = [ask.future(nothing()) for _ in range(100)]
        codes = {call.code().name for call in calls}
        go.set()
    assert codes == {"CANCELLED", "RESOURCE_EXHAUSTED"}
    with tritonclient.grpc.InferenceServerClient(small.grpc) as client:
        assert client.infer("ads", raw(tritonclient.grpc, request)).as_numpy("pctr").size
    assert small.ask("/v2/health/live")[0] == 200


def test_a_grpc_connection_without_a_call_is_closed(small: Running) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    with connect(small.grpc) as connection:
        connection.sendall(preface)
        while not closed_by_server(connection):
            pass


def test_unfinished_bodies_count_as_they_arrive_and_no_longer_than_they_are_there(
    small: Running, exported: Path
) -> None:
    good = body(read_golden(exported / "first")[0][0])
    with connect(small.http) as one, connect(small.http) as two, connect(small.http) as three:
        for connection in (one, two, three):
            connection.sendall(POST + b" " * 39_000)
        answers = b"".join(filter(None, map(_answer_so_far, (one, two, three))))
        assert b"HTTP/1.1 429" in answers and b"retry-after: 1" in answers
        assert b"requests of 100000 bytes" in answers
        assert small.ask("/v2/health/live")[0] == 200
    wait_for(lambda: small.ask(INFER, good)[0] == 200)


def _answer_so_far(connection: socket.socket) -> bytes:
    connection.settimeout(0.5)
    try:
        return connection.recv(4096)
    except TimeoutError:
        return b""


@pytest.mark.long
def test_responses_that_nobody_takes_are_bounded(small: Running) -> None:
    key = 'mail_connections_closed_total{reason="unread"}'
    asked = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 4000
    with ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(connect(small.http))
            connection.settimeout(0.2)
            with suppress(OSError):
                connection.sendall(asked)
        wait_for(lambda: small.metrics().get(key, 0) >= 1)


def test_idle_and_half_sent_connections_shut_nobody_out(small: Running, exported: Path) -> None:
    request, _ = read_golden(exported / "first")[0]
    with ExitStack() as stack:
        flood(small, stack, 150)
        assert small.ask(INFER, body(request))[0] in (200, 429)
        metrics = small.metrics()
        assert metrics['mail_connections_closed_total{reason="idle"}'] > 20
    wait_for(lambda: small.ask(INFER, body(request))[0] == 200)
    assert len(small.log.read_text().splitlines()) < 20


@pytest.mark.long
def test_liveness_waits_for_no_connection_that_does_nothing(exported: Path, tmp_path: Path) -> None:
    options = ("--name", "ads", "--threads", "1", "--receive-seconds", "600")
    with (
        running(exported / "first", tmp_path / "log", *options, max_files=64) as server,
        ExitStack() as stack,
    ):
        assert len(flood(server, stack, 800)) == 80
        assert server.metrics().get('mail_connections_closed_total{reason="late"}', 0) == 0
        assert len(server.log.read_text()) < 10_000


def check_overload(
    exported: Path, log: Path, num_bytes: int, rounds: int, max_memory: int | None = None
) -> None:
    """Sends valid and hostile requests at once, and checks codes, liveness and memory."""
    request = read_golden(exported / "first")[0][0]
    bodies = [large_request(request, num_bytes)] * 12 + hostile_requests(num_bytes) * 2
    options = ("--name", "ads", "--threads", "1", "--workers", "2")
    with (
        running(exported / "first", log, *options, max_memory=max_memory) as server,
        ThreadPoolExecutor(25) as pool,
    ):
        assert server.ask(INFER, body(request))[0] == 200
        before = peak_bytes(server)
        for _ in range(rounds):
            start = time.monotonic()
            statuses, seconds = overload(server, pool, bodies)
            assert statuses[:12] == [200] * 12 and set(statuses[12:]) <= {400, 413}
            if num_bytes > 1_000_000:  # waits do not lengthen with the work of the requests
                assert len(seconds) > len(bodies)
                assert sorted(seconds)[-2] < (time.monotonic() - start) / 4
        # As the page says: three times the bytes in the server, 60 times those in work.
        allowed = 3 * 22 * num_bytes + 2 * 60 * num_bytes + 2**26
        assert peak_bytes(server) - before < allowed
        assert len(log.read_text()) < 5000


def test_large_requests_at_once_take_memory_in_proportion_to_their_bytes(
    exported: Path, tmp_path: Path
) -> None:
    check_overload(exported, tmp_path / "log", 400_000, rounds=1)


@pytest.mark.long
def test_requests_of_three_megabytes_at_once_are_answered_within_two_gigabytes(
    exported: Path, tmp_path: Path
) -> None:
    check_overload(exported, tmp_path / "log", 3_000_000, rounds=2, max_memory=MAX_MEMORY)
    # 3 * 22 * 3 MB + 2 * 60 * 3 MB + 64 MB + 200 MB of the server itself: below 0.9 GB.
