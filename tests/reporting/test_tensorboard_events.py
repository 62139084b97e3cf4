"""TensorBoard reads the events of a run, and hides the points that a resumed run repeats."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mail_torchrec.reporting.tensorboard_events import (
    event_file_name,
    first_events,
    scalar_events,
)


def test_points_are_read_back_and_repeated_steps_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for number, (purge, steps) in enumerate([(1, (2, 4, 6)), (5, (6, 8))]):
        monkeypatch.setattr("time.time_ns", lambda now=number: (1_700_000_000 + now) * 10**9)
        names.append(event_file_name())
        points = (scalar_events({"loss/a": step + number / 2, "rate": 7}, step) for step in steps)
        (tmp_path / names[-1]).write_bytes(first_events(purge) + b"".join(points))
    assert names == sorted(set(names))
    read = EventAccumulator(str(tmp_path)).Reload()
    assert [(one.step, one.value) for one in read.Scalars("loss/a")] == [
        (2, 2.0),
        (4, 4.0),
        (6, 6.5),
        (8, 8.5),
    ]
    assert [one.value for one in read.Scalars("rate")] == [7.0] * 4
