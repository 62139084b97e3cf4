"""The study of a sweep: settings that were tried and their results, in a file of Optuna's."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mail_torchrec.records.run_log import is_number, read_log
from mail_torchrec.sweep.space import Pruning, SearchSpace
from mail_torchrec.validation.progress import ValidationProgress
from mail_torchrec.validation.settings import EarlyStoppingSettings

if TYPE_CHECKING:
    from optuna import Study

STUDY_FILE = "study.log"
_LOWER_IS_BETTER = ("log_loss", "normalised_entropy", "calibration")


def direction(metric: str) -> Literal["minimize", "maximize"]:
    """Returns the direction of a metric; calibration is searched by its distance from 1."""
    return "minimize" if metric.endswith(_LOWER_IS_BETTER) else "maximize"


def objective(metric: str, value: float) -> float:
    """Returns the number that is searched."""
    return abs(value - 1) if metric.endswith("calibration") else value


def open_study(folder: Path, space: SearchSpace, metric: str, seed: int) -> "Study":
    """Opens the study of a sweep, or creates it.

    Args:
        folder: of the sweep; the file is ``study.log`` there, one JSON object a line.
        space: for its pruning.
        metric: of the search.
        seed: of the sampler (TPE).

    Raises:
        ValueError: Optuna is not installed.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise ValueError(f"a sweep needs Optuna ({error}); pip install -e '.[sweep]'") from error
    optuna.logging.set_verbosity(logging.WARNING)
    pruner: Any = optuna.pruners.NopPruner()
    if isinstance(space.pruning, Pruning):
        pruner = optuna.pruners.SuccessiveHalvingPruner(
            min_resource=space.pruning.min_evaluations, reduction_factor=space.pruning.reduction
        )
    return optuna.create_study(
        study_name="sweep",
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / STUDY_FILE))),
        sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True),
        pruner=pruner,
        direction=direction(metric),
        load_if_exists=True,
    )


def validation_values(log: Path, metric: str, cohort: str) -> list[tuple[int, float]]:
    """Reads step and value of each evaluation of a run on its validation rows so far.

    Args:
        log: ``metrics.jsonl`` of the run; missing before its first step.
        metric: name of the metric.
        cohort: of the metric.
    """
    if not log.exists():
        return []
    found = []
    for record in _complete_records(log):
        value = _lookup(record, ("validation", cohort, metric))
        if is_number(value):
            found.append((int(record["step"]), float(value)))
    return found


def best_of(values: Sequence[tuple[int, float]], metric: str, cohort: str) -> ValidationProgress:
    """Finds the best evaluation of a run, as the run itself does."""
    settings, progress = EarlyStoppingSettings(metric=metric, cohort=cohort), ValidationProgress()
    for step, value in values:
        progress = progress.after(settings, step, value)
    return progress


def _complete_records(log: Path) -> list[dict[str, Any]]:
    """Reads the records; a last line that is being written now is left out."""
    try:
        return read_log(log)
    except ValueError:
        if log.read_bytes().endswith(b"\n"):
            raise
        return []  # asked again in a moment


def _lookup(tree: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree
