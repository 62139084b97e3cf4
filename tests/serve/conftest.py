"""One run, exported twice; and a real server in a process of its own."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mail_torchrec.config import Config
from mail_torchrec.export.command import Order, export
from mail_torchrec.export.manifest import Manifest
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.small_rows import config_tree, write_rows

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `first` (float32) and, made after it, `second` (float16)."""
    root = tmp_path_factory.mktemp("served")
    write_rows(root / "train" / "a.parquet", 250, seed=1)
    write_rows(root / "test" / "c.parquet", 120, seed=3)
    tree = config_tree(root, train={"tables": {"name": "adagrad", "learning_rate": 0.2}})
    train(Config.model_validate(tree | {"model": tree["model"] | {"multi_task": {}}}), RunDir(root / "run"))
    export(Order(RunDir(root / "run"), root / "models" / "first"))
    export(Order(RunDir(root / "run"), root / "models" / "second", "float16"))
    changed = json.loads((root / "models" / "second" / "manifest.json").read_text())
    changed["created"] = "2999-01-01T00:00:00+00:00"  # both may have been made in one second
    (root / "models" / "second" / "manifest.json").write_text(json.dumps(changed))
    return root / "models"


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


@contextmanager
def running(model: Path, log: Path, *options: str) -> Iterator[Running]:
    """A server on free ports, its torch hidden; ended by SIGTERM, which has to be clean."""
    code = "import sys; sys.modules['torch'] = None; from mail_torchrec.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--model", str(model), "--http-port", "0", "--grpc-port", "0", "--threads", "1", *options]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, stdout=file, text=True, cwd=REPOSITORY)
    try:
        found = wait_for(lambda: re.search(r"http://(\S+), gRPC (\S+)", log.read_text()) or process.poll() is not None)
        assert not isinstance(found, bool), log.read_text()
        yield Running(found[1], found[2], log, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


def wait_for(check: Callable[[], Any], seconds: float = 60) -> Any:
    """What the check says, once it is true."""
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def version_in(folder: Path) -> str:
    return Manifest.read(folder).version


@pytest.fixture(scope="session")
def server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of `first` alone."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(exported / "first", folder / "model")
    with running(folder / "model", folder / "log", "--name", "ads", "--max-candidates", "40", "--max-bytes", "50000") as found:
        yield found
