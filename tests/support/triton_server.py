"""A real Triton in a process of its own, where one is installed."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tools.served import ROOT, wait_for

CLIENTS = [tritonclient.http, tritonclient.grpc]
needs_triton = pytest.mark.skipif(
    not (ROOT / ".triton" / "installed").exists(),
    reason="no Triton here; launch/triton/install.sh installs one",
)


@dataclass
class Triton:
    """Running Triton; addresses by client module."""

    addresses: dict[Any, str]

    def ask(
        self, client: Any, request: str, shape: tuple[int, ...] = (1, 1), model: str = "ads"
    ) -> Any:
        """Sends a raw request, as JSON, to a model of the Python backend."""
        tensor = client.InferInput("request", list(shape), "BYTES")
        tensor.set_data_from_numpy(np.full(shape, request, dtype=object))
        with client.InferenceServerClient(self.addresses[client]) as to:
            return to.infer(model, [tensor])

    def is_ready(self, models: list[str]) -> bool:
        """Asks over both protocols."""
        try:
            for client in CLIENTS:
                with client.InferenceServerClient(self.addresses[client]) as to:
                    if not all(to.is_model_ready(model) for model in models):
                        return False
        except (ConnectionError, InferenceServerException):  # not listening yet
            return False
        return True


@contextmanager
def running_triton(repository: Path, log: Path) -> Iterator[Triton]:
    """Runs a Triton on free ports until all models are ready; it has to end cleanly by SIGTERM.

    Args:
        repository: of the models.
        log: file of its log.
    """
    http, grpc = _free_ports(2)
    command = [
        ROOT / "launch/triton/server.sh",
        repository,
        f"--http-port={http}",
        f"--grpc-port={grpc}",
    ]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=log.parent)
    found = Triton({tritonclient.http: f"127.0.0.1:{http}", tritonclient.grpc: f"127.0.0.1:{grpc}"})
    models = sorted(path.name for path in repository.iterdir())
    try:
        wait_for(lambda: found.is_ready(models) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield found
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
