"""Plans the trainings and evaluations of a reproduction, each a call of the command line."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from mail_torchrec.checkpoint.data_record import SourceRecord, read_data_record
from mail_torchrec.config import (
    Config,
    config_differences,
    dump_config,
    load_config,
    recorded_config,
)
from mail_torchrec.model.mail import Towers
from mail_torchrec.records.run_record import check_recorded
from mail_torchrec.reproduce.methods.definitions import METHODS
from mail_torchrec.reproduce.methods.resolution import resolve_config
from mail_torchrec.train.assembly import config_feature_tables
from mail_torchrec.train.data_splits import open_sources
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)

_ANY_ROWS = 3
"""Rows of the tables of a model that is built to check its settings alone."""


class Job(Protocol):
    """A call of the command line, to be made once."""

    @property
    def title(self) -> str:
        """Name of the job in messages."""

    @property
    def log(self) -> Path:
        """File with the output of its process."""

    def is_finished(self) -> bool:
        """Returns whether its results exist."""

    def arguments(self) -> list[str]:
        """Makes room for its results, and returns the arguments of ``mail-torchrec``."""


@dataclass(frozen=True)
class TrainingJob:
    """One training: a method, a seed, a run directory and the configuration."""

    method: str
    seed: int
    path: Path
    config: Config
    data: tuple[SourceRecord, SourceRecord, SourceRecord | None]
    """Training, test and validation data; None without validation files."""
    point: str = ""
    """Place on a curve, for messages."""

    @property
    def title(self) -> str:
        """Name of the job in messages."""
        return f"{self.method}, {f'{self.point}, ' if self.point else ''}seed {self.seed}"

    @property
    def run_dir(self) -> RunDir:
        """Its run directory."""
        return RunDir(self.path)

    @property
    def log(self) -> Path:
        """File with the output of its process."""
        return self.path.with_suffix(".log")

    def is_finished(self) -> bool:
        """Returns whether its results exist.

        Raises:
            ValueError: they do, but of another configuration or other data. Settings that the run
                did not have yet count as their defaults.
        """
        if not self.run_dir.metrics.exists():
            return False
        try:
            other = config_differences(recorded_config(self.path), self.config)
            check_recorded(self.path, *(path.name for path in self._results()))
            record = read_data_record(self.run_dir.data)
        except ValueError as error:
            other = [str(error)]
        else:
            of_files = self.data[2] is not None  # validation rows in files of their own
            held_out = record.validation if of_files else None
            if (record.train, record.test, held_out) != self.data:
                other.append(
                    "the files of data.train, data.test or data.validation.path hold other rows now"
                )
        if other:
            raise ValueError(
                f"'{self.path}' was trained with another configuration or on other data; choose "
                "another --out, or delete it:\n  " + "\n  ".join(other[:10])
            )
        return True

    def _results(self) -> list[Path]:
        results = [self.run_dir.data, self.run_dir.metrics, self.run_dir.log]
        return [*results, *filter(Path.exists, [self.run_dir.predictions])]

    def arguments(self) -> list[str]:
        """Deletes an unfinished training, writes the configuration, and returns the arguments."""
        if self.path.exists():
            logger.info("%s was not finished; it starts again", self.title)
            shutil.rmtree(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        config = self.path.with_suffix(".yaml")
        config.write_text(dump_config(self.config))
        return ["train", "--config", str(config), "--run-dir", str(self.path)]


@dataclass(frozen=True)
class EvaluationJob:
    """One evaluation of a finished training under overrides; predictions go to its directory."""

    training: TrainingJob
    name: str
    overrides: tuple[str, ...]

    @property
    def title(self) -> str:
        """Name of the job in messages."""
        return f"{self.training.title}, {self.name}"

    @property
    def predictions(self) -> Path:
        """Folder of the predictions."""
        return self.training.path / self.name

    @property
    def log(self) -> Path:
        """File with the output of its process."""
        return self.predictions.with_suffix(".log")

    def is_finished(self) -> bool:
        """Returns whether its predictions exist."""
        return self.predictions.exists()

    def arguments(self) -> list[str]:
        """Returns the arguments of ``mail-torchrec``."""
        run_dir, predictions = str(self.training.path), str(self.predictions)
        return ["evaluate", "--run-dir", run_dir, "--predictions", predictions, *self.overrides]


def plan_trainings(
    config_path: Path,
    out: Path,
    methods: Sequence[str],
    num_seeds: int,
    overrides: tuple[str, ...],
    point: str = "",
) -> list[TrainingJob]:
    """Plans every training, seed by seed.

    Each configuration is validated, and its towers are built once on the meta device.

    Args:
        config_path: the user's configuration.
        out: folder of the runs.
        methods: their names.
        num_seeds: of each method.
        overrides: of the command line.
        point: place on a curve, for messages.

    Raises:
        ValueError: the configuration, the data or some methods cannot be used; all such methods are
            named.
    """
    config = load_config(config_path, list(overrides))
    config.data.check_no_credentials()
    sources = open_sources(config)
    data = (
        SourceRecord.of(sources.train),
        SourceRecord.of(sources.test),
        SourceRecord.of(sources.validation) if sources.validation is not None else None,
    )
    faults = []
    for name in methods:
        try:
            _check_buildable(resolve_config(METHODS[name], config_path, overrides, seed=1))
        except ValueError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise ValueError(
            "these methods cannot be trained here; correct this, or name the others with "
            "--method:\n" + "\n".join(faults)
        )
    return [
        TrainingJob(
            name,
            seed,
            out / "runs" / METHODS[name].file_name / f"seed-{seed}",
            resolve_config(METHODS[name], config_path, overrides, seed),
            data,
            point,
        )
        for seed in range(1, num_seeds + 1)
        for name in methods
    ]


def group_by_method(jobs: Sequence[TrainingJob]) -> dict[str, list[TrainingJob]]:
    """Groups trainings by method, both in the order of the trainings."""
    found: dict[str, list[TrainingJob]] = {}
    for job in jobs:
        found.setdefault(job.method, []).append(job)
    return found


def _check_buildable(config: Config) -> None:
    num_rows = dict.fromkeys(config.schema_.table_names, _ANY_ROWS)
    with torch.device("meta"):
        vector_dims = dict.fromkeys(config.schema_.vectors(), _ANY_ROWS)
        Towers(
            config.model,
            config.schema_,
            config_feature_tables(config),
            num_rows,
            vector_dims=vector_dims,
        )
