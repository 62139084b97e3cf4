"""Chain of deltas for tools/bench_deltas.py: days trained one after the other, each exported."""

import json
import multiprocessing as mp
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.scorer import Scorer
from tools.load_clients import Case, make_cases

_CONFIG = Path(__file__).parents[1] / "launch/configs/days.yaml"
_FIRST_DAY = date(2024, 5, 1)
_PRELOADED = ["mail_torchrec.cli", "mail_torchrec.train.trainer", "mail_torchrec.export.command"]


@dataclass(frozen=True)
class ChainLink:
    """One day: a full export at the beginning, else a delta."""

    number: int
    version: str
    train_seconds: float
    export_seconds: float
    """Time of the export of what is published, by a process that had its imports."""
    num_bytes: int
    """Size of what is published."""
    full_bytes: int
    """Size of a full export without spare rows."""
    full_seconds: float
    """Time of that export."""


@dataclass(frozen=True)
class DeltaChain:
    """Days in a folder, which a later call goes on with.

    Args:
        folder: of the world, runs, exports and scores.
        num_deltas: days after the first.
        users: users of the world at any time.
        items: items of its catalogue at any time.
        rows: rows of the item table.
        spare: share of spare rows.
    """

    folder: Path
    num_deltas: int
    users: int
    items: int
    rows: int
    spare: float

    def item(self, number: int) -> Path:
        """Returns the folder of a full export (0) or of a delta."""
        return self.folder / ("models" if number == 0 else "deltas") / f"{number:03}"

    def cases(self) -> list[Case]:
        """Makes calls of one user each, in raw values, of the last day."""
        return [case for case in make_cases(self.item(0)) if not case.is_encoded]

    def scores(self, number: int) -> list[list[Any]]:
        """Reads the scores of the cases by a full export of a day."""
        with np.load(self._scores(number)) as stored:
            arrays = [stored[name] for name in stored.files]
        names = len(arrays) // len(self.cases())
        return [arrays[start : start + names] for start in range(0, len(arrays), names)]

    def make(self) -> Iterator[ChainLink]:
        """Trains and exports day by day, and yields each one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "world").exists():
            world = ("--out", str(self.folder / "world"), "--days", str(self.num_deltas + 2))
            self._run("synthesize", *world, f"users={self.users}", f"items={self.items}")
        for number in range(self.num_deltas + 1):
            record = self.folder / f"{number:03}.json"
            if not record.exists():
                link = self._make(number)
                record.write_text(json.dumps(asdict(link)))
            yield ChainLink(**json.loads(record.read_text()))

    def _make(self, number: int) -> ChainLink:
        run, before = self._run_dir(number), self._run_dir(number - 1)
        full, item = self.folder / "full", self.item(number)
        for folder in (run, full, item):
            shutil.rmtree(folder, ignore_errors=True)
        days = (f"data.train={_day(number)}", f"data.test={_day(number + 1)}")
        if number == 0:
            sizes = (f"data.root={self.folder / 'world'}", f"schema.tables.item.rows={self.rows}")
            origin = ["--config", str(_CONFIG), *sizes]
            kind = ("--spare", str(self.spare))
        else:
            origin = ["--continue", str(before)]
            kind = ("--delta-of", str(self.item(number - 1)))
        trained = self._run("train", *origin, "--run-dir", str(run), *days)
        last_day = str(self.folder / "world" / _day(self.num_deltas + 1))
        export = ("export", "--run-dir", str(run), "--data", last_day)
        exported = self._run(*export, "--out", str(item), *kind)
        full_exported = self._run(*export, "--out", str(full))
        self._write_scores(number, full)
        shutil.rmtree(self._run_dir(number - 2), ignore_errors=True)
        version = ArtifactManifest.read(item).version
        sizes_of = (num_bytes(item), num_bytes(full))
        shutil.rmtree(full)
        return ChainLink(number, version, trained, exported, *sizes_of, full_exported)

    def _write_scores(self, number: int, full: Path) -> None:
        scorer = Scorer(full, threads=1)
        found = [scorer.run(scorer.encode(case.requests)) for case in self.cases()]
        np.savez(self._scores(number), *(array for by_name in found for array in by_name.values()))

    def _scores(self, number: int) -> Path:
        return self.folder / f"{number:03}.npz"

    def _run_dir(self, number: int) -> Path:
        return self.folder / "runs" / f"{number:03}"

    def _run(self, *words: str) -> float:
        """Runs a command in a fork of a process that has imported the package; returns its time."""
        log = self.folder / "log"
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        process = context.Process(target=_command, args=(words, log))
        start = time.perf_counter()
        process.start()
        process.join()
        if process.exitcode:
            raise ValueError(f"{' '.join(words)} failed:\n{log.read_text()[-3000:]}")
        return time.perf_counter() - start


def num_bytes(folder: Path) -> int:
    """Adds up the files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _day(number: int) -> str:
    return f"day={_FIRST_DAY + timedelta(days=number)}"


def _command(words: tuple[str, ...], log: Path) -> None:
    """Runs ``mail-torchrec``; the main function of a process."""
    from mail_torchrec.cli import main

    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    main(list(words))
