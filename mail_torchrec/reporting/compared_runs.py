"""Finished runs as ``compare`` reads them, and the checks that their metrics can be compared."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mail_torchrec.records.run_log import is_number
from mail_torchrec.records.run_record import read_recorded
from mail_torchrec.reporting.cohorts import COHORTS, ITEM_COHORTS, USER_ITEM_COHORTS
from mail_torchrec.utils.config_trees import (
    NEUTRAL_SETTINGS,
    is_setting_of,
    tree_differences,
)
from mail_torchrec.utils.formats import check_run_format
from mail_torchrec.utils.unique_keys import parse_yaml

METRICS = ("auc", "gauc")

_DATA: dict[str, Callable[[Any], bool]] = {
    "train": lambda of: isinstance(of, dict) and {"rows", "fingerprint"} <= of.keys(),
    "test_rows": lambda of: isinstance(of, str),
    "ranks": lambda of: is_number(of) and of > 0,
}
"""What is read of ``data.json``, and what it should be."""
_SEED = "train.seed"
_BATCH_SIZE = "train.batch_size"
_INTEGERS = (_SEED, _BATCH_SIZE, "data.cold_start.keep")
_TEST_SETTINGS = (
    "data.root",
    "data.test",
    "data.test.",
    "data.cold_start.",
    "data.new_user_max_behaviours",
    "data.new_items.",
)


@dataclass(frozen=True)
class ComparedRun:
    """Metrics of a finished run, and what they depend on."""

    path: Path
    config: dict[str, Any]
    """Content of ``config.yaml``."""
    data: dict[str, Any]
    """Content of ``data.json``."""
    metrics: dict[str, dict[str, float | None]]
    """Content of ``metrics.json``."""

    @property
    def name(self) -> str:
        """Name of the method."""
        return str(self.config["name"])

    @property
    def seed(self) -> int | None:
        """Seed of the training."""
        seed: int | None = _lookup(self.config, _SEED)
        return seed

    @property
    def batch(self) -> tuple[int, int]:
        """Rows of a rank's training batch, and number of ranks."""
        return _lookup(self.config, _BATCH_SIZE) or 0, self.data["ranks"]

    @property
    def num_kept(self) -> int | None:
        """Behaviours that the users hidden in the simulated cold start keep; None for all."""
        kept: int | None = _lookup(self.config, "data.cold_start.keep")
        return None if _lookup(self.config, "data.cold_start.oracle") else kept


def read_compared_run(run_dir: Path, name: str | None = None) -> ComparedRun:
    """Reads a finished run.

    Args:
        run_dir: directory of the run.
        name: of its method, in place of the one in its configuration.

    Raises:
        ValueError: an unfinished or damaged run, or one of another format.
    """
    if not os.path.lexists(run_dir / "config.yaml"):
        raise ValueError(f"'{run_dir}' has no config.yaml; is this a run directory?")
    check_run_format(run_dir)
    config = _read_mapping(run_dir, "config.yaml", "train it again")
    config |= {"name": name} if name is not None else {}
    metrics = _read_mapping(
        run_dir, "metrics.json", "the run has not finished, or was stopped; train it again"
    )
    if missing := [cohort for cohort in COHORTS if not is_cohort(metrics.get(cohort))]:
        raise ValueError(
            f"'{run_dir / 'metrics.json'}' should hold auc and gauc of new, old and all rows, "
            f"missing, incomplete or no numbers: {missing}"
        )
    data = _read_mapping(run_dir, "data.json", "what it was tested on is unknown; train it again")
    if missing := [key for key, is_one in _DATA.items() if not is_one(data.get(key))]:
        raise ValueError(f"'{run_dir / 'data.json'}' is incomplete, missing or wrong: {missing}")
    if not isinstance(name := config.get("name"), str):
        raise ValueError(
            f"'{run_dir / 'config.yaml'}' should have a text as its 'name', received {name!r}"
        )
    if wrong := [key for key in _INTEGERS if not isinstance(_lookup(config, key), int | None)]:
        raise ValueError(f"'{run_dir / 'config.yaml'}' should have integers as {wrong}")
    return ComparedRun(run_dir, config, data, metrics)


def check_seeds(runs: Sequence[ComparedRun]) -> None:
    """Checks that runs of one name are seeds of one method.

    Raises:
        ValueError: two of them have one seed, or differ in more than the seed; all differences are
            listed.
    """
    of_seed: dict[int | None, ComparedRun] = {}
    for run in runs:
        if run.seed in of_seed:
            raise ValueError(
                f"'{run.path}' and '{of_seed[run.seed].path}' are both method '{run.name}', seed "
                f"{run.seed}; give another method another name=..., another seed another "
                "train.seed=..., or pass one of the two"
            )
        of_seed[run.seed] = run
        if lines := _differences_of_method(runs[0], run):
            raise ValueError(
                f"'{runs[0].path}' and '{run.path}' are both method '{run.name}', and differ in "
                "more than the seed, so that their mean would be of no method; give one of them "
                f"another name (--name '{run.path}=NAME'), or compare them separately:\n  "
                + "\n  ".join(lines)
            )


def _differences_of_method(first: ComparedRun, run: ComparedRun) -> list[str]:
    """Lists settings that differ between two runs, but for the seed and neutral settings."""
    lines = [
        f"{key}: {values[0]} and {values[1]}"
        for key, values in tree_differences(first.config, run.config).items()
        if not is_setting_of(key, (*NEUTRAL_SETTINGS, _SEED, _BATCH_SIZE))
    ]
    if math.prod(first.batch) != math.prod(run.batch):
        batches = ("{} x {}".format(*each.batch) for each in (first, run))
        lines.append(f"{_BATCH_SIZE} x ranks: {' and '.join(batches)}")
    return lines


def shared_cohorts(runs: Sequence[ComparedRun]) -> list[str]:
    """Lists the cohorts that all runs report, those of new and old items behind those of users."""
    items = (*ITEM_COHORTS, *USER_ITEM_COHORTS)
    shared = [name for name in items if all(is_cohort(run.metrics.get(name)) for run in runs)]
    return [*COHORTS, *shared]


def data_differences(first: ComparedRun, run: ComparedRun) -> list[str]:
    """Lists why the metrics of two runs cannot be compared: their rows; empty where they can.

    Seeds of one method should be trained on the same rows, too.
    """
    lines = [
        f"{cohort} rows: {_size(first, cohort)} and {_size(run, cohort)}"
        for cohort in shared_cohorts([first, run])
        if _size(first, cohort) != _size(run, cohort)
    ]
    other_rows = first.data["test_rows"] != run.data["test_rows"]
    if other_rows and not lines:
        lines = ["test rows: as many, with other users, labels or new users"]
    kept = {first.num_kept, run.num_kept} - {None}
    if lines or len(kept) > 1:
        lines += [
            f"{key}: {values[0]} and {values[1]}"
            for key, values in tree_differences(first.config, run.config).items()
            if is_setting_of(key, _TEST_SETTINGS)
        ]
    trained_on = [each.data["train"]["fingerprint"] for each in (first, run)]
    if first.name == run.name and trained_on[0] != trained_on[1]:
        sizes = (each.data["train"]["rows"] for each in (first, run))
        lines.append("training data: {} rows and {} others".format(*sizes))
    return lines


def _size(run: ComparedRun, cohort: str) -> str:
    metrics = run.metrics[cohort]
    return f"{metrics.get('rows')} of {metrics.get('users')} users"


def _lookup(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def is_cohort(values: object) -> bool:
    """Returns whether a value of metrics.json is the metrics of a cohort: numbers by name."""
    required = {*METRICS, "rows"}
    if not isinstance(values, dict) or not required <= set(values):
        return False
    weighted = values.get("weighted", {})
    plain = [value for name, value in values.items() if name != "weighted"]
    if not isinstance(weighted, dict) or not is_number(values["rows"]):
        return False
    return all(value is None or is_number(value) for value in (*plain, *weighted.values()))


def _read_mapping(run_dir: Path, name: str, hint: str) -> dict[str, Any]:
    """Reads a JSON or YAML mapping (every JSON text is YAML, too)."""
    try:
        if not os.path.lexists(run_dir / name):
            raise ValueError(f"'{run_dir}' has no {name}; {hint}")
        content = parse_yaml(read_recorded(run_dir, name))
    except yaml.YAMLError as error:
        raise ValueError(f"'{run_dir / name}' cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"'{run_dir / name}' should hold a mapping, received {type(content).__name__}"
        )
    return content
