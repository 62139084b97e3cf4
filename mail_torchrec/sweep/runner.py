"""Runs the trials of a sweep side by side: starts, watches and prunes them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mail_torchrec.sweep.space import SearchSpace
from mail_torchrec.sweep.study import best_of, objective, open_study, validation_values
from mail_torchrec.sweep.trials import RunningTrial, TrialFiles, TrialLauncher
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.progress import progress_bar

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

logger = get_logger(__name__)

_POLL_SECONDS = 0.5
_MOST_FIRST_FAILURES = 3
OVERRIDES, REASON, STEP, VALUE = "overrides", "reason", "step", "validation"
"""What a trial of the study has beside its settings: its overrides, why it failed, the step of its
best checkpoint, and the metric there."""


@dataclass(frozen=True)
class SweepPlan:
    """Plan of a sweep."""

    folder: Path
    """Study, configuration, report, and below ``trials/`` a folder a trial."""
    config: Path
    """Configuration that the trials change."""
    space: SearchSpace
    metric: str
    """Metric of the validation rows, by which trials are compared and pruned."""
    cohort: str
    num_trials: int
    num_jobs: int
    """Trials side by side."""
    seed: int
    """Of the sampler."""
    keeps_checkpoints: bool = False
    """Keep the checkpoints of all trials, not of the best alone."""

    def files(self, number: int) -> TrialFiles:
        """Returns the files of a trial."""
        return TrialFiles(self.folder / "trials" / f"{number:04d}")


@dataclass
class _Started:
    """A trial that is being trained."""

    trial: "Trial"
    running: RunningTrial
    files: TrialFiles
    num_reported: int = 0
    values: list[tuple[int, float]] = field(default_factory=list)
    """Step and value of its evaluations so far."""


class Sweep:
    """Runs the trials of a study that are missing.

    Args:
        plan: of the sweep.
        launcher: starts trainings.
    """

    def __init__(self, plan: SweepPlan, launcher: TrialLauncher) -> None:
        self._plan, self._launcher = plan, launcher
        self.study: Study = open_study(plan.folder, plan.space, plan.metric, self._sampler_seed())
        """The study, with all trials so far."""

    def run(self) -> None:
        """Trains until the study has as many trials as planned; an interruption leaves it to go on.

        Raises:
            ValueError: the first trials all failed.
        """
        num_ended = sum(trial.state.is_finished() for trial in self.study.trials)
        bar = progress_bar(
            total=self._plan.num_trials, initial=num_ended, desc="trials", unit="trial", leave=True
        )
        with bar, self._stopped_at_the_end() as started:
            unfinished = self._unfinished()
            while True:
                while unfinished and len(started) < self._plan.num_jobs:
                    started.append(self._continue(unfinished.pop(0)))
                while self._is_trial_missing() and len(started) < self._plan.num_jobs:
                    started.append(self._begin())
                if not started:
                    return
                time.sleep(_POLL_SECONDS)
                for one in list(started):
                    if self._watch(one):
                        started.remove(one)
                        bar.update()
                        bar.set_postfix_str(self._best_so_far())
                        self._check_first_trials()

    def _sampler_seed(self) -> int:
        """Returns a seed that differs from the one of an earlier call, which drew with it."""
        trials = self._plan.folder / "trials"
        return self._plan.seed * 100_003 + (len(list(trials.iterdir())) if trials.exists() else 0)

    def _is_trial_missing(self) -> bool:
        return len(self.study.get_trials(deepcopy=False)) < self._plan.num_trials

    def _unfinished(self) -> list["Trial"]:
        """Lists the trials of an earlier call that were stopped with it."""
        from optuna.trial import Trial, TrialState

        found = []
        for frozen in self.study.get_trials(states=(TrialState.RUNNING,)):
            if OVERRIDES in frozen.user_attrs:
                found.append(Trial(self.study, frozen._trial_id))
            else:  # killed before it had settings
                self.study.tell(frozen.number, state=TrialState.FAIL)
        return found

    def _begin(self) -> _Started:
        trial = self.study.ask()
        trial.set_user_attr(OVERRIDES, self._plan.space.suggest(trial))
        return self._continue(trial)

    def _continue(self, trial: "Trial") -> _Started:
        files = self._plan.files(trial.number)
        files.path.mkdir(parents=True, exist_ok=True)
        overrides: Sequence[str] = [
            f"name=trial-{trial.number:04d}",
            *trial.user_attrs[OVERRIDES],
        ]
        running = self._launcher.start(files, self._plan.config, overrides)
        num_reported = len(self.study.trials[trial.number].intermediate_values)
        return _Started(trial, running, files, num_reported)

    def _watch(self, one: _Started) -> bool:
        """Reports new evaluations of a trial, and ends it where due; returns whether it ended."""
        from optuna.trial import TrialState

        code = one.running.exit_code()
        if self._report(one) and code is None:
            one.running.stop()
            self._end(one, TrialState.PRUNED)
            return True
        if code is None:
            return False
        if code or not RunDir(one.files.run_dir).metrics.exists() or not one.values:
            reason = "no validation value" if not code and not one.values else one.running.reason()
            one.trial.set_user_attr(REASON, reason)
            logger.warning("trial %d failed: %s", one.trial.number, reason)
            self._end(one, TrialState.FAIL)
        else:
            self._end(one, TrialState.COMPLETE)
        return True

    def _report(self, one: _Started) -> bool:
        """Tells the study of new evaluations; returns whether the trial should be stopped."""
        plan = self._plan
        one.values = validation_values(RunDir(one.files.run_dir).log, plan.metric, plan.cohort)
        stop = False
        for _, value in one.values[one.num_reported :]:
            one.num_reported += 1
            one.trial.report(objective(plan.metric, value), one.num_reported)
            stop = stop or one.trial.should_prune()
        return stop

    def _end(self, one: _Started, state: Any) -> None:
        """Records the end of a trial, and deletes the checkpoints that are not of the best one."""
        from optuna.trial import TrialState

        plan, number = self._plan, one.trial.number
        best = best_of(one.values, plan.metric, plan.cohort)
        value = None
        if best.best is not None:
            one.trial.set_user_attr(STEP, best.best_step)
            one.trial.set_user_attr(VALUE, best.best)
            value = objective(plan.metric, best.best) if state == TrialState.COMPLETE else None
        self.study.tell(number, value, state=state)
        if not plan.keeps_checkpoints:
            for trial in self.study.get_trials(deepcopy=False):
                if trial.state.is_finished() and trial.number != best_number(self.study):
                    plan.files(trial.number).delete_checkpoints()

    def _best_so_far(self) -> str:
        number = best_number(self.study)
        if number is None:
            return ""
        value = self.study.trials[number].user_attrs[VALUE]
        return f"best: trial {number}, {self._plan.metric} {value:.5g}"

    def _check_first_trials(self) -> None:
        """Ends a sweep whose trials all fail: its configuration or its data are at fault.

        Raises:
            ValueError: so it is.
        """
        from optuna.trial import TrialState

        ended = [trial for trial in self.study.trials if trial.state.is_finished()]
        failed = [trial for trial in ended if trial.state == TrialState.FAIL]
        if len(ended) == len(failed) >= _MOST_FIRST_FAILURES:
            last = failed[-1]
            raise ValueError(
                f"the first {len(failed)} trials all failed, the last one with: "
                f"{last.user_attrs.get(REASON)}; its files are in "
                f"'{self._plan.files(last.number).path}'"
            )

    @contextmanager
    def _stopped_at_the_end(self) -> Iterator[list[_Started]]:
        """Yields the list of the trials that run; they are stopped, and saved, with this block."""
        started: list[_Started] = []
        try:
            yield started
        finally:
            for one in started:
                one.running.stop()


def best_number(study: "Study") -> int | None:
    """Returns the number of the best finished trial; None where none has finished."""
    from optuna.trial import TrialState

    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return None
    return int(study.best_trial.number)
