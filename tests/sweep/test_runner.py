"""Trials of a sweep: reported, stopped early, failed, interrupted and gone on with.

The trainings are scripts here: they write the log of a run whose validation is a known function of
its settings. ``test_sweep.py`` has real ones.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from optuna.trial import TrialState

from mail_torchrec.sweep.report import write_report
from mail_torchrec.sweep.runner import Sweep, SweepPlan, best_number
from mail_torchrec.sweep.space import SearchSpace
from mail_torchrec.sweep.trials import TrialFiles

NUM_EVALUATIONS = 9


class Scripted:
    """A training that has one more evaluation whenever it is looked at."""

    def __init__(self, files: TrialFiles, rate: float, metric: str, fails: bool) -> None:
        self._files, self._metric, self._fails = files, metric, fails
        self._log = files.run_dir / "metrics.jsonl"
        done = len(self._log.read_text().splitlines()) if self._log.exists() else 0
        self._values = iter([rate * (1 + step / 100) for step in range(done, NUM_EVALUATIONS)])
        self._step = done
        self.was_stopped = False

    def exit_code(self) -> int | None:
        if self._fails:
            return 1
        for value in self._values:
            self._step += 1
            record = {"step": self._step, "validation": {"all": {self._metric: value}}}
            with self._log.open("a") as log:
                log.write(json.dumps(record) + "\n")
            return None
        test = {"auc": 0.5, "rows": 7}
        metrics = {"new": test, "old": test, "all": test}
        (self._files.run_dir / "metrics.json").write_text(json.dumps(metrics))
        return 0

    def stop(self) -> None:
        self.was_stopped = True

    def reason(self) -> str:
        return "Error: the loss is nan"


class ScriptedLauncher:
    """Starts scripts; the number of ``interrupt_at`` looks ends it all, as Ctrl-C does."""

    def __init__(self, metric: str = "auc", fail_from: float = 2.0, limit: int = 10**9) -> None:
        self.metric, self.fail_from, self.limit = metric, fail_from, limit
        self.started: list[tuple[str, Scripted]] = []

    def start(self, files: TrialFiles, config: Path, overrides: Sequence[str]) -> Scripted:
        if len(self.started) >= self.limit:
            raise KeyboardInterrupt
        (files.run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        settings = dict(one.split("=", 1) for one in overrides)
        rate = float(settings["rate"])
        self.started.append(
            (files.path.name, Scripted(files, rate, self.metric, rate > self.fail_from))
        )
        return self.started[-1][1]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("mail_torchrec.sweep.runner._POLL_SECONDS", 0.0)
    yield


def plan(folder: Path, metric: str = "auc", num_trials: int = 12, **pruning: int) -> SweepPlan:
    space = {"space": {"rate": {"low": 0.0, "high": 1.0}}, "pruning": pruning or "none"}
    return SweepPlan(
        folder,
        folder / "c.yaml",
        SearchSpace.model_validate(space),
        metric,
        "all",
        num_trials,
        2,
        1,
    )


@pytest.mark.parametrize("metric", ["auc", "log_loss", "calibration"])
def test_the_best_trial_is_the_one_with_the_best_validation(tmp_path: Path, metric: str) -> None:
    swept = Sweep(plan(tmp_path, metric), ScriptedLauncher(metric))
    swept.run()
    rates = {trial.number: trial.params["rate"] for trial in swept.study.trials}
    last = 1 + (NUM_EVALUATIONS - 1) / 100
    expected = {
        "auc": lambda rate: rate,
        "log_loss": lambda rate: -rate,
        "calibration": lambda rate: -min(abs(rate * (1 + i / 100) - 1) for i in range(9)),
    }[metric]
    assert len(rates) == 12
    best = max(rates, key=lambda number: expected(rates[number]))
    assert best_number(swept.study) == best
    if metric == "auc":
        assert swept.study.best_value == pytest.approx(rates[best] * last)
    kept = [path.parent.parent.name for path in tmp_path.glob("trials/*/run/checkpoints")]
    assert kept == [f"{best:04d}"]


def test_trials_that_fall_behind_are_stopped_and_the_best_is_not(tmp_path: Path) -> None:
    launcher = ScriptedLauncher()
    swept = Sweep(plan(tmp_path, num_trials=30, min_evaluations=1, reduction=3), launcher)
    swept.run()
    states = [trial.state for trial in swept.study.trials]
    assert states.count(TrialState.PRUNED) > 5
    assert states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED) == 30
    stopped = {int(name) for name, one in launcher.started if one.was_stopped}
    assert stopped == {i for i, state in enumerate(states) if state == TrialState.PRUNED}
    finished = [t for t in swept.study.trials if t.state == TrialState.COMPLETE]
    assert max(t.params["rate"] for t in finished) == max(
        t.params["rate"] for t in swept.study.trials
    )


def test_an_interrupted_sweep_goes_on_with_its_trials(tmp_path: Path) -> None:
    first = ScriptedLauncher(limit=5)
    with pytest.raises(KeyboardInterrupt):
        Sweep(plan(tmp_path), first).run()
    assert first.started[-1][1].was_stopped
    second = ScriptedLauncher()
    swept = Sweep(plan(tmp_path), second)
    before = {trial.number: trial.params for trial in swept.study.trials}
    swept.run()
    trials = swept.study.trials
    assert len(trials) == 12
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) >= 11
    assert all(trials[number].params == params for number, params in before.items())
    assert len({trial.params["rate"] for trial in trials if trial.params}) >= 11
    unfinished = [name for name, one in first.started if one.was_stopped]
    assert [name for name, _ in second.started][: len(unfinished)] == unfinished


def test_failed_trials_are_told_apart_and_only_failures_end_the_sweep(tmp_path: Path) -> None:
    swept = Sweep(plan(tmp_path), ScriptedLauncher(fail_from=0.6))
    swept.run()
    failed = [trial for trial in swept.study.trials if trial.state == TrialState.FAIL]
    assert failed and all(trial.params["rate"] > 0.6 for trial in failed)
    assert failed[0].user_attrs["reason"] == "Error: the loss is nan"
    text = write_report(plan(tmp_path), swept.study, "mail-torchrec sweep")
    assert f"- Trial {failed[0].number}: Error: the loss is nan" in text
    (tmp_path / "other").mkdir()
    with pytest.raises(
        ValueError, match="first 3 trials all failed, the last one with: Error: the"
    ):
        Sweep(plan(tmp_path / "other"), ScriptedLauncher(fail_from=-1.0)).run()


def test_a_report_tells_the_winners_test_metrics_apart(tmp_path: Path) -> None:
    swept = Sweep(plan(tmp_path), ScriptedLauncher())
    swept.run()
    text = write_report(plan(tmp_path), swept.study, "mail-torchrec sweep --out x")
    found = json.loads((tmp_path / "sweep.json").read_text())
    best = found["best"]
    assert best["number"] == best_number(swept.study)
    assert best["test"]["all"] == {"auc": 0.5, "rows": 7}
    assert f"Trial {best['number']}, step 9: auc {best['validation']:.5f}" in text
    assert len(found["trials"]) == 12
    for name in ("history.png", "settings.png", "report.html", "report.md"):
        assert (tmp_path / name).stat().st_size > 500
