"""A real `mail-torchrec serve` in a process of its own, and versions to give it: for the tools beside this file, and the server's tests."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mail_torchrec.inference.manifest import (
    MANIFEST,
    Manifest,
    checksums,
    read_golden,
    version_of,
    write_golden,
)
from mail_torchrec.inference.requests import Request
from mail_torchrec.inference.scorer import Scorer

ROOT = Path(__file__).parents[1]
_WITHOUT_TORCH = (
    "import sys; sys.modules['torch'] = None; from mail_torchrec.cli import main; main()"
)
_SCALED = {
    "float32": ("weight", np.float32),
    "float16": ("weight", np.float16),
    "int8": ("scale", np.float32),
}


@dataclass
class Running:
    """A server that is up."""

    http: str
    grpc: str
    log: Path
    process: "subprocess.Popen[str]"

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON (or text) of a request; a body that is no bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.http}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                status, text = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text[:1] == b"{" else text.decode()

    def figures(self) -> dict[str, float]:
        """What ``/metrics`` says now."""
        lines = [
            line.rpartition(" ") for line in self.ask("/metrics")[1].splitlines() if line[:1] != "#"
        ]
        return {name: float(value) for name, _, value in lines}


@contextmanager
def running(model: Path, log: Path, *options: str) -> Iterator[Running]:
    """A server on free ports, without torch; ended by SIGTERM, which has to be clean."""
    command = [
        sys.executable,
        "-c",
        _WITHOUT_TORCH,
        "serve",
        "--model",
        str(model),
        "--http-port",
        "0",
        "--grpc-port",
        "0",
        *options,
    ]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, stdout=file, text=True, cwd=ROOT)
    try:
        found = wait_for(
            lambda: (
                re.search(r"http://(\S+), gRPC (\S+)", log.read_text())
                or process.poll() is not None
            )
        )
        assert not isinstance(found, bool), log.read_text()
        yield Running(found[1], found[2], log, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def wait_for(check: Callable[[], Any], seconds: float = 60) -> Any:
    """What the check says, once it is true."""
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, f"waited {seconds:g} s in vain"
        time.sleep(0.05)
    return found


def make_version(source: Path, target: Path, *, created: str, factor: float) -> None:
    """A good version whose scores are others: another's, all its embeddings multiplied."""
    shutil.copytree(source, target)
    manifest = Manifest.read(target)
    part, dtype = _SCALED[manifest.table_type]
    for table in manifest.tables.values():
        path = target / table.files[part]
        (np.fromfile(path, dtype) * dtype(factor)).tofile(path)
    scorer = Scorer(target, verify=False)
    requests = [request for request, _ in read_golden(target)]
    write_golden(
        target,
        requests,
        {name: scores.tolist() for name, scores in scorer.run(scorer.encode(requests)).items()},
    )
    write_manifest(target, created=created)


def make_liar(source: Path, target: Path, *, created: str) -> None:
    """A version whose files are whole, and whose scores are not those that it says its trainer gave."""
    shutil.copytree(source, target)
    golden = read_golden(target)
    scores: dict[str, list[float]] = {}
    for name in golden[0][1]:
        scores[name] = [value for _, of_request in golden for value in of_request[name]]
        scores[name][0] += 0.05
    write_golden(target, [request for request, _ in golden], scores)
    write_manifest(target, created=created)


def write_manifest(folder: Path, **changes: Any) -> None:
    """As an export of these very files would."""
    (folder / MANIFEST).rename(folder.parent / "aside.json")
    files = checksums(folder)
    (folder.parent / "aside.json").rename(folder / MANIFEST)
    Manifest.read(folder).model_copy(
        update={"files": files, "version": version_of(files), **changes}
    ).write(folder)


def put(source: Path, folder: Path) -> None:
    """As a careful operator does: copied under a hidden name, then renamed."""
    hidden = folder.with_name(f".{folder.name}")
    shutil.copytree(source, hidden)
    hidden.rename(folder)


def as_json(request: Request) -> str:
    """What the input ``request`` holds."""
    return json.dumps({"user": request.user, "candidates": request.candidates})


def tensors(client: Any, arrays: Mapping[str, Any]) -> list[Any]:
    """Inputs of one of tritonclient's two modules."""
    names = {"int64": "INT64", "float32": "FP32", "bool": "BOOL", "object": "BYTES"}
    found = []
    for name, array in arrays.items():
        found.append(client.InferInput(name, list(array.shape), names[str(array.dtype)]))
        found[-1].set_data_from_numpy(array)
    return found


def raw(client: Any, request: Request) -> list[Any]:
    """The input that holds raw values."""
    return tensors(client, {"request": np.array([as_json(request)], dtype=object)})


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds, by name."""
    points = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
    return {name: float(np.percentile(seconds, point)) * 1e3 for name, point in points.items()}
