"""A real `mail-torchrec serve` in a process of its own, and versions for it to load.

The tools beside this file and the tests of the server use it.
"""

import json
import os
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

from mail_torchrec.inference.artifact_files import MANIFEST, checksums
from mail_torchrec.inference.golden_file import read_golden, write_golden
from mail_torchrec.inference.manifest import ArtifactManifest
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
    """Running server."""

    http: str
    grpc: str
    log: Path
    process: "subprocess.Popen[str]"

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Sends a request, and returns the status and the JSON (or text) of the response.

        A body that is not bytes is sent as JSON.
        """
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.http}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                status, text = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text[:1] == b"{" else text.decode()

    def metrics(self) -> dict[str, float]:
        """Reads the Prometheus metrics."""
        lines = [
            line.rpartition(" ") for line in self.ask("/metrics")[1].splitlines() if line[:1] != "#"
        ]
        return {name: float(value) for name, _, value in lines}


@contextmanager
def running(
    model: Path | str,
    log: Path,
    *options: str,
    max_files: int | None = None,
    max_memory: int | None = None,
) -> Iterator[Running]:
    """Runs a server on free ports, without torch; it has to end cleanly by SIGTERM.

    Args:
        model: exported model, a folder of versions, or where they are published.
        log: file of its log.
        options: further options of ``mail-torchrec serve``.
        max_files: its hard limit of open files (``ulimit -n``).
        max_memory: its hard limit of private writable memory in bytes (``ulimit -d``), used or
            not; so Arrow's own pool, which reserves 1 GiB of addresses, is the system's then.
    """
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
    limits = [
        f"ulimit -{letter} {value}; "
        for letter, value in (("n", max_files), ("d", max_memory and max_memory // 1024))
        if value is not None
    ]
    if limits:
        command = ["sh", "-c", "".join(limits) + 'exec "$@"', "sh", *command]
    environment = os.environ | ({"ARROW_DEFAULT_MEMORY_POOL": "system"} if max_memory else {})
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stderr=file, stdout=file, text=True, cwd=ROOT, env=environment
        )
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
    """Waits for a check to be true, and returns its result."""
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, f"waited {seconds:g} s in vain"
        time.sleep(0.05)
    return found


def make_version(source: Path, target: Path, *, created: str, factor: float) -> None:
    """Copies a version with all its embeddings multiplied: a good one with other scores."""
    shutil.copytree(source, target)
    manifest = ArtifactManifest.read(target)
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


def make_bad_version(source: Path, target: Path, *, created: str) -> None:
    """Copies a version with whole files, whose golden scores are not those of its graph."""
    shutil.copytree(source, target)
    golden = read_golden(target)
    scores: dict[str, list[float]] = {}
    for name in golden[0][1]:
        scores[name] = [value for _, of_request in golden for value in of_request[name]]
        scores[name][0] += 0.05
    write_golden(target, [request for request, _ in golden], scores)
    write_manifest(target, created=created)


def write_manifest(folder: Path, **changes: Any) -> None:
    """Writes the manifest that an export of these very files would write."""
    (folder / MANIFEST).rename(folder.parent / "aside.json")
    files = checksums(folder)
    (folder.parent / "aside.json").rename(folder / MANIFEST)
    ArtifactManifest.read(folder).model_copy(update={"files": files, **changes}).write(folder)


def publish(source: Path, folder: Path) -> None:
    """Copies a version under a hidden name, then renames it."""
    hidden = folder.with_name(f".{folder.name}")
    shutil.copytree(source, hidden)
    hidden.rename(folder)


def as_json(request: Request) -> str:
    """Formats the content of the input ``request``."""
    return json.dumps({"user": request.user, "candidates": request.candidates})


def tensors(client: Any, arrays: Mapping[str, Any]) -> list[Any]:
    """Builds inputs of one of tritonclient's two modules."""
    names = {"int64": "INT64", "float32": "FP32", "bool": "BOOL", "object": "BYTES"}
    found = []
    for name, array in arrays.items():
        found.append(client.InferInput(name, list(array.shape), names[str(array.dtype)]))
        found[-1].set_data_from_numpy(array)
    return found


def raw(client: Any, request: Request) -> list[Any]:
    """Builds the input with raw values."""
    return tensors(client, {"request": np.array([as_json(request)], dtype=object)})


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Computes percentiles in milliseconds, by name."""
    points = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
    return {name: float(np.percentile(seconds, point)) * 1e3 for name, point in points.items()}
