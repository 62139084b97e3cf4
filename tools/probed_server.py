"""Server that is asked all the time and killed now and then, for ``tools/soak_days.py``."""

import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.requests import Request
from mail_torchrec.inference.scorer import Scorer
from tools.served import ROOT, Running, as_json, wait_for
from tools.torchrun_job import LostError

NAME = "soak"
_PAUSE = 0.05
Scores = dict[str, list[float]]


@dataclass
class Probe:
    """One request: when it was sent and answered, by which version and how."""

    begin: float
    end: float
    request: int
    version: str = ""
    scores: Scores = field(default_factory=dict)
    error: str = ""


class ProbedServer:
    """``mail-torchrec serve`` of a folder of versions, in a process of its own.

    Args:
        models: folder of versions.
        log: file of its log.
    """

    def __init__(self, models: Path, log: Path) -> None:
        self._models, self._log = models, log
        [first, *_] = sorted(path for path in models.iterdir() if path.name[0] != ".")
        self.requests: list[Request] = [request for request, _ in read_golden(first)]
        """Requests that it is asked."""
        self.probes: list[Probe] = []
        self.down: list[tuple[float, float]] = []
        """Times from a kill to the first answer behind it."""
        self._stop = threading.Event()
        self._start()
        self._thread = threading.Thread(target=self._ask_on, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """Kills it by SIGKILL, and starts it anew."""
        begin = time.monotonic()
        self._running.process.kill()
        self._running.process.wait()
        self._start()
        self.down.append((begin, time.monotonic()))

    def close(self) -> None:
        """Ends the requests, and the server."""
        self._stop.set()
        self._thread.join(60)
        self._running.process.kill()
        self._running.process.wait()

    def wait_for_version(self, version: str) -> float:
        """Waits until a version is served, and returns the seconds."""
        begin = time.monotonic()
        wait_for(lambda: self._is_serving(version), 120)
        return time.monotonic() - begin

    def ask(self, request: int) -> tuple[str, Scores]:
        """Sends a request; returns version and scores."""
        tensor = {"name": "request", "shape": [1], "datatype": "BYTES"}
        body = {"inputs": [tensor | {"data": [as_json(self.requests[request])]}]}
        status, answer = self._running.ask(f"/v2/models/{NAME}/infer", body)
        if status != 200:
            raise ValueError(f"status {status}: {answer}")
        return answer["model_version"], {one["name"]: one["data"] for one in answer["outputs"]}

    def check(self, expected: dict[str, list[Scores]]) -> int:
        """Checks the probes so far, and returns their number.

        Args:
            expected: version -> scores of each request.

        Raises:
            LostError: a request failed while the server was up, or had other scores.
        """
        probes, self.probes = self.probes, []
        for probe in probes:
            was_down = any(probe.begin < end and probe.end > begin for begin, end in self.down)
            if probe.error and not was_down:
                raise LostError(f"a request failed: {probe.error}; see {self._log}")
            if not probe.error and expected[probe.version][probe.request] != probe.scores:
                raise LostError(f"version {probe.version} answered with other scores")
        return len(probes)

    def _start(self) -> None:
        command = ["-m", "mail_torchrec", "serve", "--model", str(self._models), "--name", NAME]
        options = ["--http-port", "0", "--grpc-port", "0", "--poll", "0.2"]
        start = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("a") as file:
            process = subprocess.Popen(
                [sys.executable, *command, *options], stdout=file, stderr=file, text=True, cwd=ROOT
            )

        def addresses() -> re.Match[str] | None:
            assert process.poll() is None, self._log.read_text()[start:]
            text = self._log.read_text()[start:]
            return re.search(r"http://(\S+), gRPC (\S+)", text)

        found = wait_for(addresses)
        self._running = Running(found[1], found[2], self._log, process)

    def _is_serving(self, version: str) -> bool:
        try:
            return version in self._running.ask(f"/v2/models/{NAME}")[1]["versions"]
        except (OSError, TypeError):  # it has just started
            return False

    def _ask_on(self) -> None:
        number = 0
        while not self._stop.wait(_PAUSE):
            number = (number + 1) % len(self.requests)
            begin, answer, error = time.monotonic(), ("", Scores()), ""
            try:
                answer = self.ask(number)
            except (OSError, ValueError, urllib.error.URLError) as found:
                error = str(found) or type(found).__name__
            self.probes.append(Probe(begin, time.monotonic(), number, *answer, error))


def scores_of(folder: Path, requests: list[Request]) -> list[Scores]:
    """Returns the scores of each request by an exported model, as a server's JSON has them."""
    scorer = Scorer(folder, threads=1)
    found: list[Scores] = []
    for request in requests:
        arrays = scorer.run(scorer.encode([request]))
        found.append(json.loads(json.dumps({name: x.tolist() for name, x in arrays.items()})))
    return found


def version_of(folder: Path) -> Any:
    """Returns the version of an exported model."""
    return ArtifactManifest.read(folder).version
