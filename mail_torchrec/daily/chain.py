"""Chains of continued runs: what each run of a chain was trained on, and how it went."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mail_torchrec.checkpoint.data_record import read_data_record
from mail_torchrec.config import Config, load_run_config
from mail_torchrec.continuation.parent_record import Ancestor, file_digits, read_parent
from mail_torchrec.continuation.progressive_record import ProgressiveRecord, read_progressive
from mail_torchrec.data.ids.managed import ManagedIds
from mail_torchrec.records.run_log import is_number, read_log
from mail_torchrec.records.run_record import check_recorded
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.formats import check_run_format
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)

_RATE = "rows_per_second"


class TableFullness(NamedTuple):
    """Use of a managed table at the beginning of a run."""

    owned: int
    """Rows that an id owns."""
    rows: int
    """Rows that ids can own."""
    admitted: int
    """Ids that got a row for this run."""
    left: int
    """Ids that lost theirs."""
    refused: int
    """Ids that occurred often enough and found no row."""


@dataclass(frozen=True)
class ChainedRun:
    """One run of a chain."""

    path: Path
    name: str
    day: str | None
    """Day of its training data; None where none is known."""
    is_there: bool
    """Whether its directory was found; of others the chain knows day and rows alone."""
    rows: int | None = None
    """Rows of its training data; None where it did not finish."""
    seconds: float | None = None
    """Time that its training steps took; None where it has logged none."""
    progressive: ProgressiveRecord | None = None
    """Metrics that its parent had on its training data; None for the first run."""
    tables: dict[str, TableFullness] | None = None
    """Managed tables."""


@dataclass(frozen=True)
class Chain:
    """Runs of which each one continues the one before, the oldest first."""

    runs: tuple[ChainedRun, ...]

    @property
    def title(self) -> str:
        """Name of the chain: its last run's directory."""
        return self.runs[-1].path.name


def read_chains(run_dirs: Sequence[Path]) -> list[Chain]:
    """Reads the chains that end with these runs.

    Args:
        run_dirs: of runs; those that another one of them descends from belong to its chain.

    Raises:
        ValueError: a folder is no run directory, or a file of a run is damaged.
    """
    paths = list(dict.fromkeys(_real(path) for path in run_dirs))
    ancestors = {path: _ancestors(path) for path in paths}
    inner = {_real(Path(one.run)) for found in ancestors.values() for one in found}
    return [_read_chain(path, ancestors[path]) for path in paths if path not in inner]


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _ancestors(path: Path) -> tuple[Ancestor, ...]:
    if not RunDir(path).config.is_file():
        raise ValueError(f"'{path}' has no config.yaml; is this a run directory?")
    check_run_format(path)
    record = read_parent(path)
    return () if record is None else record.ancestors


def _read_chain(path: Path, ancestors: tuple[Ancestor, ...]) -> Chain:
    steps = [0, *(ancestor.step for ancestor in ancestors)]
    runs = [_read_ancestor(one, steps[i]) for i, one in enumerate(ancestors)]
    record = read_parent(path)
    day = None if record is None else record.day
    return Chain((*runs, _read_run(path, steps[-1], day)))


def _read_ancestor(ancestor: Ancestor, first_step: int) -> ChainedRun:
    """Reads a run that another one continues, if its directory is still that of this run."""
    path = _real(Path(ancestor.run))
    if not RunDir(path).config.is_file():
        logger.warning("'%s' is gone; its metrics are left out", path)
    elif not _is_trained_on(path, ancestor):
        logger.warning(
            "'%s' was trained on other data than the chain says: another run is there now, and is "
            "left out",
            path,
        )
    else:
        return _read_run(path, first_step, ancestor.day, ancestor.rows)
    return ChainedRun(path, ancestor.name, ancestor.day, is_there=False, rows=ancestor.rows)


def _is_trained_on(path: Path, ancestor: Ancestor) -> bool:
    """Returns whether a run was trained on these files; one that did not finish may have been."""
    if not RunDir(path).data.is_file():
        return True
    files = read_data_record(RunDir(path).data).train.files
    return sorted(map(file_digits, files)) == sorted(ancestor.files)


def _read_run(path: Path, first_step: int, day: str | None, rows: int | None = None) -> ChainedRun:
    run, config = RunDir(path), load_run_config(path)
    if rows is None and run.data.is_file():
        rows = read_data_record(run.data).train.rows
    progressive = read_progressive(path)
    return ChainedRun(
        path,
        config.name,
        day,
        is_there=True,
        rows=rows,
        seconds=_step_seconds(run.log, first_step, config.train.epochs, rows),
        progressive=progressive,
        tables=_fullness(path, config),
    )


def _step_seconds(log: Path, first_step: int, num_epochs: int, rows: int | None) -> float | None:
    """Computes the time of the training steps from the rates in the log.

    The batches of an epoch are equally long, so that the rows between two lines are a share of all.
    """
    if rows is None or not log.is_file():
        return None
    found = [line for line in read_log(log) if is_number(line.get(_RATE)) and line[_RATE] > 0]
    if not found or found[-1]["step"] <= first_step:
        return None
    rows_per_step = rows * num_epochs / (found[-1]["step"] - first_step)
    steps = [first_step, *(line["step"] for line in found)]
    return float(
        sum(
            (after - before) * rows_per_step / line[_RATE]
            for before, after, line in zip(steps[:-1], steps[1:], found, strict=True)
        )
    )


def _fullness(path: Path, config: Config) -> dict[str, TableFullness]:
    """Counts the owned rows of the managed tables of a run."""
    schema, folder, found = config.schema_, RunDir(path).vocabularies, {}
    for name in schema.table_names:
        policy = schema.id_policy(name)
        if policy.name != "managed":
            continue
        check_recorded(path, folder.name)
        encoder = policy.load(folder)
        assert isinstance(encoder, ManagedIds)
        update = encoder.last_update
        found[name] = TableFullness(
            owned=len(encoder.values),
            rows=encoder.num_rows - encoder.first_own_row,
            admitted=update.admitted,
            left=update.evicted + update.expired,
            refused=update.refused,
        )
    return found
