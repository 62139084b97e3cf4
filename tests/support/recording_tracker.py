"""A tracker of one's own: writes what it is told to a file, and fails as often as it should."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mail_torchrec.trackers.tracker import Outcome, RunDescription, TrackedValue, Tracker


class RecordingTracker(Tracker):
    """Appends each call to the file `to` as a line of JSON; the first `failures` calls raise."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        if "to" not in options:
            raise ValueError("tracker 'recording' should be given a file 'to'")
        self._path, self._failures = Path(options["to"]), int(options.get("failures", 0))

    def start(self, run: RunDescription, run_id: str | None) -> str:
        new_id = run_id or f"{run.name}-1"
        self._record("start", new_id, dict(run.settings))
        return new_id

    def log(self, values: Sequence[TrackedValue]) -> None:
        self._record("log", [[one.name, one.value, one.step] for one in values])

    def finish(self, outcome: Outcome, files: Sequence[Path]) -> None:
        self._record("finish", outcome, sorted(path.name for path in files))

    def _record(self, *call: Any) -> None:
        if self._failures:
            self._failures -= 1
            raise ConnectionError("no route to https://me:secret@tracker.example")
        with self._path.open("a") as file:
            file.write(json.dumps(call) + "\n")


def recorded(path: Path) -> list[list[Any]]:
    """Reads the calls that were recorded."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def recorded_values(path: Path) -> list[list[Any]]:
    """Reads all numbers that were recorded, in their order: name, value, step."""
    return [value for call in recorded(path) if call[0] == "log" for value in call[1]]
