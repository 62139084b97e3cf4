"""Trackers told in a thread: complete, in order, and never in the way of the run."""

import logging
from pathlib import Path
from threading import Event

import pytest

from mail_torchrec.trackers.background import BackgroundTracker
from mail_torchrec.trackers.run_trackers import TRACKERS_FILE, RunTrackers
from mail_torchrec.trackers.settings import TrackerSettings
from mail_torchrec.trackers.tracker import RunDescription
from tests.support.recording_tracker import RecordingTracker, recorded, recorded_values

RECORDING = "tests.support.recording_tracker:RecordingTracker"


class _Stuck(RecordingTracker):
    """Waits in each call for what never comes."""

    def log(self, values: object) -> None:
        Event().wait()


def _run(folder: Path) -> RunDescription:
    return RunDescription("DMR", folder, {"train.epochs": "1"}, {"torch": "2.13"})


def _settings(folder: Path, **options: object) -> TrackerSettings:
    return TrackerSettings(name=RECORDING, options={"to": str(folder / "calls.jsonl")} | options)


@pytest.mark.parametrize("failures", [0, 5])
def test_every_number_arrives_once_and_in_order(tmp_path: Path, failures: int) -> None:
    settings, kept = _settings(tmp_path, failures=failures), list[str]()
    tracker = BackgroundTracker(settings, _run(tmp_path), None, kept.append, retry_seconds=0.01)
    tracker.start()
    for step in range(500):
        tracker.log({"loss/ranking": step / 2, "rows_per_second": 7.0}, step)
    tracker.close("finished", [tmp_path / "config.yaml"])
    path = tmp_path / "calls.jsonl"
    expected = [
        [name, value, step]
        for step in range(500)
        for name, value in (("loss/ranking", step / 2), ("rows_per_second", 7.0))
    ]
    assert recorded_values(path) == expected
    assert recorded(path)[0] == ["start", "DMR-1", {"train.epochs": "1"}]
    assert recorded(path)[-1] == ["finish", "finished", ["config.yaml"]]
    assert kept == ["DMR-1"]


def test_a_service_that_is_away_costs_one_warning_without_its_credentials(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = _settings(tmp_path, failures=10**9).model_copy(update={"close_seconds": 0.05})
    tracker = BackgroundTracker(settings, _run(tmp_path), None, print, retry_seconds=0.01)
    with caplog.at_level(logging.WARNING):
        tracker.start()
        tracker.log({"loss": 1.0}, 1)
        tracker.close("finished", [])
    first, *rest = [record.getMessage() for record in caplog.records]
    assert "cannot be told of the run (ConnectionError: no route to" in first
    assert "secret" not in caplog.text
    assert [message.partition(": its run")[0] for message in rest] == [
        f"tracker '{RECORDING}' lacks 1 numbers of the run",
        f"tracker '{RECORDING}' did not take the end of the run within 0.05 seconds "
        "(trackers.close_seconds)",
    ]


def test_a_service_that_never_answers_does_not_hold_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = TrackerSettings(
        name=f"{__name__}:_Stuck", options={"to": str(tmp_path / "calls")}, close_seconds=0.05
    )
    tracker = BackgroundTracker(settings, _run(tmp_path), None, print)
    tracker.start()
    for step in range(200_000):
        tracker.log({"loss": 1.0}, step)
    tracker.close("stopped", [])
    assert "lacks 200000 numbers of the run" in caplog.text


def test_a_run_that_goes_on_is_the_same_run_there(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: DMR\n")
    files = ["config.yaml", "metrics.json"]
    with (
        pytest.raises(SystemExit),
        RunTrackers([_settings(tmp_path)], _run(tmp_path), files, goes_on=False) as trackers,
    ):
        trackers.log({"loss": 0.5}, 1)
        raise SystemExit(143)
    (tmp_path / TRACKERS_FILE).write_text(f'{{"{RECORDING}": "kept"}}')
    with RunTrackers([_settings(tmp_path)], _run(tmp_path), files, goes_on=True) as trackers:
        trackers.log({"loss": 0.25}, 2)
    path = tmp_path / "calls.jsonl"
    starts = [call[1] for call in recorded(path) if call[0] == "start"]
    ends = [call[1:] for call in recorded(path) if call[0] == "finish"]
    assert starts == ["DMR-1", "kept"]
    assert ends == [["stopped", ["config.yaml"]], ["finished", ["config.yaml"]]]
    assert recorded_values(path) == [["loss", 0.5, 1], ["loss", 0.25, 2]]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 1}', '{"a": "1", "a": "2"}'])
def test_ids_that_cannot_be_read_begin_a_new_run_there(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / TRACKERS_FILE).write_text(content)
    with RunTrackers([_settings(tmp_path)], _run(tmp_path), [], goes_on=True):
        pass
    assert recorded(tmp_path / "calls.jsonl")[0][1] == "DMR-1"
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("wandb", {}, "unknown tracker 'wandb'; known are mlflow, or name your own"),
        ("no_module:Tracker", {}, "cannot import 'no_module'"),
        ("pathlib:Path", {}, "should be a class derived from"),
        (RECORDING, {}, "should be given a file 'to'"),
        ("mlflow", {"url": "x"}, "url: Extra inputs are not permitted; its options are: uri"),
        ("mlflow", {}, "set its option uri, or MLFLOW_TRACKING_URI"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_training(
    tmp_path: Path,
    name: str,
    options: dict[str, str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = TrackerSettings(name=name, options=options)
    with pytest.raises(ValueError, match=expected.replace("(", r"\(")):
        RunTrackers([settings], _run(tmp_path), [], goes_on=False)
