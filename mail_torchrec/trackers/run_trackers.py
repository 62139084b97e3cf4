"""The trackers of one run, and the ids by which the services know it."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

from pydantic import TypeAdapter, ValidationError

from mail_torchrec.trackers.background import BackgroundTracker
from mail_torchrec.trackers.settings import TrackerSettings
from mail_torchrec.trackers.tracker import Outcome, RunDescription
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.run_files import write_file
from mail_torchrec.utils.safe_paths import read_document
from mail_torchrec.utils.unique_keys import parse_json

logger = get_logger(__name__)

TRACKERS_FILE = "trackers.json"
"""File in the run directory: tracker's name -> the service's id of the run."""


class RunTrackers:
    """Tells all trackers of a run; a context manager around the run, on rank 0.

    Args:
        settings: of the trackers; may be none.
        run: the run.
        files: names of the run's files to hand over at the end, those that are there then.
        goes_on: whether the run was begun before.

    Raises:
        ValueError: the settings of a tracker do not fit.
    """

    def __init__(
        self,
        settings: Sequence[TrackerSettings],
        run: RunDescription,
        files: Sequence[str],
        *,
        goes_on: bool,
    ) -> None:
        self._path, self._files = run.path, files
        self._ids = _read_ids(run.path / TRACKERS_FILE) if goes_on and settings else {}
        self._writing = Lock()
        self._trackers = [
            BackgroundTracker(
                one,
                run,
                self._ids.get(one.name),
                partial(self._keep, one.name),
            )
            for one in settings
        ]

    def __enter__(self) -> Self:
        for tracker in self._trackers:
            tracker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        paths = [path for name in self._files if (path := self._path / name).is_file()]
        for tracker in self._trackers:
            tracker.close(_outcome(error), paths)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Offers numbers of one step to all trackers; returns at once."""
        for tracker in self._trackers:
            tracker.log(values, step)

    def log_metrics(
        self, part: str, metrics: Mapping[str, Mapping[str, object]], step: int
    ) -> None:
        """Offers the metrics of rows by cohort and name, as ``part/cohort/name``."""
        self.log(named_metrics(part, metrics), step)

    def _keep(self, name: str, run_id: str) -> None:
        """Writes the service's id of the run; without it a resumed run begins anew there."""
        with self._writing:
            self._ids[name] = run_id
            write_file(self._path / TRACKERS_FILE, json.dumps(self._ids, indent=2) + "\n")


def named_metrics(part: str, metrics: Mapping[str, Mapping[str, object]]) -> dict[str, float]:
    """Names metrics of rows ``part/cohort/name``; those that are undefined are left out.

    Those with the rows' weights have ``weighted_`` before their names.

    Args:
        part: such as ``validation``.
        metrics: cohort -> name -> value.
    """
    return {
        f"{part}/{cohort}/{name}": float(value)
        for cohort, values in metrics.items()
        for name, value in (*values.items(), *_weighted_items(values))
        if isinstance(value, int | float)
    }


def _weighted_items(values: Mapping[str, object]) -> list[tuple[str, object]]:
    weighted = values.get("weighted", {})
    assert isinstance(weighted, Mapping)
    return [(f"weighted_{name}", value) for name, value in weighted.items()]


def _read_ids(path: Path) -> dict[str, str]:
    """Reads the ids of the services; a file that cannot be read is no reason not to go on."""
    if not path.exists():
        return {}
    try:
        return TypeAdapter(dict[str, str]).validate_python(parse_json(read_document(path)))
    except (OSError, ValueError, ValidationError) as error:
        logger.warning("'%s' cannot be read (%s): the trackers begin a new run", path, error)
        return {}


def _outcome(error: BaseException | None) -> Outcome:
    if error is None:
        return "finished"
    # Told to stop: saved, with an exit code; or interrupted.
    return "stopped" if isinstance(error, SystemExit | KeyboardInterrupt) else "failed"
