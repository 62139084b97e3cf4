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

import numpy as np
import pytest

from mail_torchrec.config import Config
from mail_torchrec.export.command import Order, export
from mail_torchrec.export.manifest import MANIFEST, Manifest, checksums, read_golden, version_of, write_golden
from mail_torchrec.export.scorer import Scorer
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.small_rows import config_tree, write_rows

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `first` and, newer, `second`, whose scores are others."""
    root = tmp_path_factory.mktemp("served")
    write_rows(root / "train" / "a.parquet", 250, seed=1)
    write_rows(root / "test" / "c.parquet", 120, seed=3)
    tree = config_tree(root, train={"tables": {"name": "adagrad", "learning_rate": 0.2}})
    train(Config.model_validate(tree | {"model": tree["model"] | {"multi_task": {}}}), RunDir(root / "run"))
    export(Order(RunDir(root / "run"), root / "models" / "first"))
    make_version(root / "models" / "first", root / "models" / "second", created="2998-01-01T00:00:00+00:00", factor=1.5)
    return root / "models"


def make_version(source: Path, target: Path, *, created: str, factor: float) -> None:
    """A good version: another's, its items' embeddings multiplied."""
    shutil.copytree(source, target)
    manifest = Manifest.read(target)
    weights = target / manifest.tables["item"].files["weight"]
    (np.fromfile(weights, np.float32) * np.float32(factor)).tofile(weights)
    scorer = Scorer(target, verify=False)
    requests = [request for request, _ in read_golden(target)]
    write_golden(target, requests, {name: scores.tolist() for name, scores in scorer.run(scorer.encode(requests)).items()})
    write_manifest(target, created=created)


def write_manifest(folder: Path, **changes: Any) -> None:
    """As an export of these very files would."""
    (folder / MANIFEST).rename(folder.parent / "aside.json")
    files = checksums(folder)
    (folder.parent / "aside.json").rename(folder / MANIFEST)
    Manifest.read(folder).model_copy(update={"files": files, "version": version_of(files), **changes}).write(folder)


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
    command = [
        sys.executable,
        "-c",
        code,
        "serve",
        "--model",
        str(model),
        "--http-port",
        "0",
        "--grpc-port",
        "0",
        "--threads",
        "1",
        *options,
    ]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, stdout=file, text=True, cwd=REPOSITORY)
    try:
        found = wait_for(lambda: re.search(r"http://(\S+), gRPC (\S+)", log.read_text()) or process.poll() is not None)
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
