"""Trainings whose calls to the system fail from a certain call on, and what became of each.

``faulty_disk.c`` is loaded in front of the C library of a fresh interpreter, which forks itself for
each training: so every call of Python, torch and Arrow on the run directory is met.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.small_rows import SCHEMA

_COLUMNS = SCHEMA["columns"]
ROOT = Path(__file__).parents[2]
FAULTS = ["none", "EIO", "ESTALE", "full", "denied", "short", "crash"]
"""EIO and ESTALE are given once; the others go on."""
CALLS = "open create read write sync truncate rename delete mkdir list".split()
_SECONDS = 120


class Case(NamedTuple):
    """A training with a fault."""

    fault: str
    call: int
    """Index of the call at which the fault begins."""
    resumes: bool
    """Whether the training goes on from a checkpoint when it meets the fault."""


class Outcome(NamedTuple):
    """What a fault left, and what the run came to after it."""

    case: Case
    error: str | None
    """Error that the training ended with; None where it went on over the fault."""
    before: list[str]
    """Checkpoints before the fault."""
    after: list[str]
    """Everything in the folder of the checkpoints after it."""
    calls: dict[str, int]
    """Number of calls of each kind."""
    places: int
    """Number of places for a fault: calls, but for reads and writes that follow equal ones."""
    resumed: str
    """What the run printed when it was resumed without the fault."""
    metrics: Any
    """Its metrics in the end."""
    log: list[dict[str, Any]]
    """Its records in the end, but for times, memory, and checkpoints that could not be written."""


def is_available() -> bool:
    """Returns whether there is a C compiler."""
    return shutil.which("gcc") is not None


def outcomes(root: Path, folder: Path, cases: Iterable[Case]) -> list[Outcome]:
    """Trains a small model on the rows below ``root`` once a case.

    The first outcome is that of a run without a fault, and the second that of one that resumes.
    """
    folder.mkdir()
    shim = folder / "faulty_disk.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"], check=True)
    arguments = [str(shim), str(root), str(folder)]
    run = subprocess.run(
        [sys.executable, "-m", __name__, *arguments],
        cwd=ROOT,
        env=os.environ | {"LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"},
        input=json.dumps(list(cases)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = [json.loads(line) for line in run.stdout.splitlines()]
    return [Outcome(**record | {"case": Case(*record["case"])}) for record in found]


def _main(shim: str, root: str, folder: str) -> None:
    from mail_torchrec.train import trainer

    trainer.draw_loss_curves = lambda logs, out_png: trainer.write_file(out_png, logs[0].name)
    driver = _Driver(ctypes.CDLL(shim), Path(root), Path(folder))
    for case in [Case("none", 0, False), Case("none", 0, True), *json.load(sys.stdin)]:
        print(json.dumps(driver.outcome(Case(*case))._asdict()), flush=True)


class _Driver:
    def __init__(self, shim: ctypes.CDLL, root: Path, folder: Path) -> None:
        self._shim, self._root, self._folder = shim, root, folder
        self._killed = folder / "killed"
        error, *_ = self._forked(lambda: self._train(self._killed, resume=False, stop_after=3))
        assert error == "killed", error

    def outcome(self, case: Case) -> Outcome:
        run = self._folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        if case.resumes:
            shutil.copytree(self._killed, run)
        before = _checkpoints(run)
        error, calls, places = self._forked(lambda: self._train(run, case.resumes, case=case))
        after = _checkpoints(run)
        said = self._folder / "said.txt"
        failed, *_ = self._forked(lambda: self._train(run, resume=True), said)
        if failed:
            return Outcome(case, error, before, after, calls, places, failed, None, [])
        metrics = json.loads((run / "metrics.json").read_text())
        text = said.read_text()
        return Outcome(case, error, before, after, calls, places, text, metrics, _log(run))

    def _train(
        self, run: Path, resume: bool, stop_after: int | None = None, case: Case | None = None
    ) -> None:
        from mail_torchrec.config import Config
        from mail_torchrec.train.metrics_writer import MetricsWriter
        from mail_torchrec.train.run_dir import RunDir
        from mail_torchrec.train.trainer import train
        from tests.support.small_rows import config_tree

        if stop_after:
            record_step = MetricsWriter.record_step

            def stop(writer: MetricsWriter, *arguments: Any) -> None:
                record_step(writer, *arguments)
                if writer.num_done == stop_after:
                    os._exit(0)

            MetricsWriter.record_step = stop  # type: ignore[method-assign]
        tree = config_tree(
            self._root,
            data={"root": str(self._root), "test": "train"},
            train={"batch_size": 16, "save_predictions": True},
            checkpoint={"every": 2, "keep": 1, "mode": "sync"},
        )
        # Few tables and tensors: each is some calls.
        tree["model"] = {"tower": "base_dnn", "tower_options": {"hidden_dims": [8]}}
        tree["model"]["zero_shot"] = None
        columns = ("user", "clicked", "age", "history", "item")
        tree["schema"] = {"dim": 8, "columns": {name: _COLUMNS[name] for name in columns}}
        config = Config.model_validate(tree)
        if case:
            self._shim.faulty_arm(str(run).encode(), FAULTS.index(case.fault), case.call)
        train(config, RunDir(run), resume=resume)

    def _forked(
        self, action: Callable[[], None], said: Path | None = None
    ) -> tuple[str | None, dict[str, int], int]:
        """Runs an action in a fork; returns its error, calls of each kind, and places."""
        answer = self._folder / "answer.json"
        answer.unlink(missing_ok=True)
        if not (process := os.fork()):
            self._run_fork(action, said or self._folder / "ignored.txt", answer)
        deadline = time.monotonic() + _SECONDS
        while os.waitpid(process, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                return "it hung", {}, 0
            time.sleep(0.02)
        if not answer.exists():
            return "killed", {}, 0
        error, calls, places = json.loads(answer.read_text())
        return error, calls, places

    def _run_fork(self, action: Callable[[], None], said: Path, answer: Path) -> None:
        error = None
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 2)
        try:
            action()
        except (OSError, ValueError) as raised:  # one line for the user
            error = f"{type(raised).__name__}: {raised}"
        except BaseException:
            error = f"a fault of ours: {traceback.format_exc()}"
        self._shim.faulty_disarm()
        counts = [int(self._shim.faulty_count(call)) for call in range(len(CALLS))]
        sys.stderr.flush()
        places = int(self._shim.faulty_count(-1))
        answer.write_text(json.dumps([error, dict(zip(CALLS, counts, strict=True)), places]))
        os._exit(0)


def _checkpoints(run: Path) -> list[str]:
    folder = run / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _log(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    times = ("rows_per_second", "input_wait")
    return [
        {key: value for key, value in line.items() if key not in times}
        for line in lines
        if "usage" not in line and "checkpoint_failed" not in line
    ]


if __name__ == "__main__":
    _main(*sys.argv[1:])
