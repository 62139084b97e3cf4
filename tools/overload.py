"""Overloads a real server under hard limits, and measures how soon it says that it is alive.

    python tools/overload.py --model models/kr --out tools/results/overload.md

The server (`mail-torchrec serve`) may open 64 files and allocate 2 GB, as hard limits. In turn it
gets connections that do nothing or send half a request, and at once 12 valid requests of 3 MB and
10 that are refused after as much work as is known. Clients whose connection was closed to make
room ask again, those of liveness too, and their time goes on. The exit code is 1 where the server
answered 5xx, or took a second to say that it is alive.
"""

import json
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import click

from mail_torchrec.cli.options import LOCAL_PATH, OUTPUT_FILE
from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.requests import Request
from tools.served import Running, as_json, percentiles, running
from tools.tool_command import ToolCommand

MAX_FILES, MAX_MEMORY = 64, 2 * 2**30
INFER = "/v2/models/ads/infer"
UNFINISHED = {
    "idle": b"",
    "half a head": b"GET /v2/health/live HTTP/1.1\r\nHo",
    "half a body": f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 40000\r\n\r\n".encode()
    + b" " * 5000,
}
"""Bytes of requests that do not end."""
_NUM_REQUESTS, _NUM_CANDIDATES = 12, 2000


def connect(address: str) -> socket.socket:
    """Opens a connection to ``host:port``."""
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def liveness_seconds(server: Running) -> float:
    """Asks whether the server is alive until it says so, and returns the seconds."""
    start = time.monotonic()
    status = _ask_until_answered(server, "/v2/health/live")
    assert status == 200, f"liveness is {status}"
    return time.monotonic() - start


def flood(server: Running, stack: ExitStack, count: int) -> list[float]:
    """Opens connections that do nothing; returns the seconds of a liveness check after each ten."""
    seconds = []
    for i in range(count):
        connection = stack.enter_context(connect(server.http if i % 4 else server.grpc))
        with suppress(ConnectionError):  # closed already, to make room
            connection.sendall([*UNFINISHED.values()][i % 3] if i % 4 else b"")
        if i % 10 == 9:
            seconds.append(liveness_seconds(server))
    return seconds


def body(request: Request) -> bytes:
    """Formats a raw request as JSON of the protocol."""
    data = [as_json(request)]
    tensor = {"name": "request", "datatype": "BYTES", "shape": [1], "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


def large_request(request: Request, num_bytes: int) -> bytes:
    """Builds a valid request of 2,000 candidates of some size, by the items' list column.

    Raises:
        ValueError: the items have no list column.
    """
    candidate = request.candidates[0]
    columns = [name for name, value in candidate.items() if isinstance(value, list)]
    if not columns:
        raise ValueError("large requests need a list column of the items, and the model has none")
    values = (candidate[columns[0]] or [7])[:1]
    values *= num_bytes // _NUM_CANDIDATES // (len(json.dumps(values)) + 1) + 1
    return body(Request(request.user, [{**candidate, columns[0]: values}] * _NUM_CANDIDATES))


def hostile_requests(num_bytes: int) -> list[bytes]:
    """Builds bodies that are refused, of the most work for their bytes that is known."""
    one = {"name": "request", "datatype": "BYTES", "shape": [1]}
    raw = json.dumps({"user": {}, "candidates": [{}] * (num_bytes // 4)})
    tensors = [
        one | {"data": [[]] * (num_bytes // 4)},
        one | {"data": ["x"] * (num_bytes // 5)},
        one | {"data": [raw]},
        one | {"datatype": "INT64", "data": [1] * (num_bytes // 3)},
    ]
    bodies = [json.dumps({"inputs": [tensor]}).encode() for tensor in tensors]
    return [b'{"inputs":[' + b"{}," * (num_bytes // 3) + b"{}]}", *bodies]


def overload(
    server: Running, pool: ThreadPoolExecutor, bodies: Sequence[bytes]
) -> tuple[list[int], list[float]]:
    """Sends requests at once and asks for liveness until all are answered.

    Returns:
        The status of each request, and the seconds of each liveness check.
    """
    asked = [pool.submit(_ask_until_answered, server, INFER, one) for one in bodies]
    seconds = []
    while not all(one.done() for one in asked):
        seconds.append(liveness_seconds(server))
        time.sleep(0.01)
    return [one.result() for one in asked], seconds


def _ask_until_answered(server: Running, path: str, data: bytes | None = None) -> int:
    while True:
        with suppress(OSError):  # closed to make room for another connection
            status, _ = server.ask(path, data)
            if status != 429:
                return status
        assert server.process.poll() is None, f"the server ended: {server.log.read_text()[-2000:]}"
        time.sleep(0.1)


def peak_bytes(server: Running) -> int:
    """Reads the most memory that the server's process had at once."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def measure(server: Running, request: Request, rounds: int) -> Iterator[tuple[str, Any]]:
    """Yields the rows of the report: a name and what was measured."""
    yield "memory before", f"{peak_bytes(server) / 2**20:,.0f} MiB"
    with ExitStack() as stack:
        seconds = flood(server, stack, 800)
    yield "800 connections that do nothing: liveness", seconds
    valid, hostile = large_request(request, 3_000_000), hostile_requests(3_000_000)
    statuses: Counter[int] = Counter()
    seconds = []
    with ThreadPoolExecutor(25) as pool:
        for _ in range(rounds):
            found, waits = overload(server, pool, [valid] * _NUM_REQUESTS + hostile * 2)
            statuses.update(found)
            seconds += waits
    yield f"{_NUM_REQUESTS + 10} requests of 3 MB at once, {rounds} times: liveness", seconds
    yield "their statuses", ", ".join(f"{n} of {status}" for status, n in sorted(statuses.items()))
    yield "most memory", f"{peak_bytes(server) / 2**20:,.0f} MiB"
    closed = {
        name.split('"')[1]: int(value)
        for name, value in server.metrics().items()
        if name.startswith("mail_connections_closed_total")
    }
    yield "connections closed", ", ".join(f"{n} {reason}" for reason, n in closed.items())
    yield "lines of log", len(server.log.read_text().splitlines())


@click.command(
    cls=ToolCommand, help=(__doc__ or "").replace("\n\n    python", "\n\n\b\n    python")
)
@click.option("--model", type=LOCAL_PATH, required=True, help="An exported model.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--out", type=OUTPUT_FILE, required=True, help="The result, Markdown.")
def main(model: Path, rounds: int, out: Path) -> None:
    """Overloads the server and writes the result."""
    limits: dict[str, Any] = {"max_files": MAX_FILES, "max_memory": MAX_MEMORY}
    with (
        tempfile.TemporaryDirectory(prefix="overload-") as folder,
        running(
            model.resolve(), Path(folder) / "log", "--name", "ads", "--threads", "1", **limits
        ) as server,
    ):
        found = dict(measure(server, read_golden(model)[0][0], rounds))
    lines = ["# Overload: liveness under hard limits", ""]
    lines += [f"`python tools/overload.py --model {model} --rounds {rounds} --out {out}`:"]
    lines += [f"at most {MAX_FILES} open files and {MAX_MEMORY // 2**20:,} MiB of private memory."]
    lines += ["", "| what | measured |", "| --- | --- |"]
    for name, value in found.items():
        text = _format_waits(value) if isinstance(value, list) else value
        lines.append(f"| {name} | {text} |")
    out.write_text("\n".join(lines) + "\n")
    click.echo(out.read_text())
    longest = max(max(value) for value in found.values() if isinstance(value, list))
    sys.exit(longest >= 1 or " of 5" in found["their statuses"])


def _format_waits(seconds: list[float]) -> str:
    points = percentiles(seconds)
    return (
        f"{len(seconds)} answers, median {points['p50']:,.0f} ms, p99 {points['p99']:,.0f} ms, "
        f"longest {points['max']:,.0f} ms"
    )


if __name__ == "__main__":
    main()
