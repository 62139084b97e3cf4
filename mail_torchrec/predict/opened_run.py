"""Finished run on its ranks: the model with its weights, and rows to score."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from mail_torchrec.checkpoint.intact import intact_model_checkpoint
from mail_torchrec.config import Config, load_run_config
from mail_torchrec.data.column_types import load_column_types
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.collectives import broadcast_from_rank_0
from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.train.assembly import AssembledModel, assemble
from mail_torchrec.train.data_splits import (
    DataSplit,
    load_split,
    open_sources,
    split_validation_rows,
)
from mail_torchrec.train.resume import check_vocabularies
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.state import load_model
from mail_torchrec.utils.spans import span

_SHARES = "data.cold_start"


@dataclass(frozen=True)
class OpenedRun:
    """Model of a finished run, and the rows to score."""

    config: Config
    assembled: AssembledModel
    data: DataSplit
    source: Source
    """Files of the rows."""
    origin: dict[str, str]
    """Names of the run and of its checkpoint, for what is written."""


@contextmanager
def open_run(
    run_dir: RunDir,
    data: str | None,
    config: Config,
    unread: Collection[str] = (),
    *,
    validation: bool = False,
) -> Iterator[OpenedRun]:
    """Yields a finished run on its ranks; every rank calls it.

    Args:
        run_dir: the run.
        data: Parquet file or folder (or URI); None takes the run's test data.
        config: of the run, see :func:`finished_config`.
        unread: columns of the schema that the files need not have.
        validation: take the run's validation rows where ``data`` is None.

    Raises:
        ValueError: data that does not fit the schema, or a run that is damaged.
    """
    with process_group(config.train.device, config.train.timeout) as device:
        folder = intact_model_checkpoint(run_dir.checkpoints)
        assert folder is not None
        broadcast_from_rank_0(partial(check_vocabularies, folder, run_dir))
        types = load_column_types(run_dir.vocabularies)
        if data is None and validation:
            source = split_validation_rows(open_sources(config)).validation
            assert source is not None, "the run has no validation rows"
        else:
            with span("opening the data", reads=True):
                source = Source(
                    data or config.data.path(config.data.test),
                    config.schema_,
                    types,
                    "give --data a Parquet file or folder",
                    unread,
                )
        encoders = Encoders.load(run_dir.vocabularies, config.schema_)
        # One copy of the tables scores all rows, on whatever ranks there are.
        sharding = config.sharding.model_copy(update={"replicas": None})
        one_copy = config.model_copy(update={"sharding": sharding})
        assembled = assemble(one_copy, encoders, device)
        load_model(assembled, folder)
        split = load_split(config, encoders, assembled.feature_tables, source, training=False)
        origin = {"run": config.name, "run_dir": str(run_dir.path), "checkpoint": folder.name}
        yield OpenedRun(config, assembled, split, source, origin)


def finished_config(run_dir: RunDir, overrides: list[str]) -> Config:
    """Reads the configuration of a finished run.

    Args:
        run_dir: the run.
        overrides: of its configuration.

    Raises:
        ValueError: no finished run there, or overrides that do not fit.
    """
    run_dir.check_trained()
    config = load_run_config(run_dir.path, overrides)
    share = config.data.cold_start.test_share
    keys = {override.partition("=")[0] for override in overrides}
    is_ignored = f"{_SHARES}.hide_share" in keys and f"{_SHARES}.test_share" not in keys
    if is_ignored and share is not None:
        raise ValueError(
            f"{_SHARES}.hide_share changes nothing here: the share of evaluated users that are "
            f"hidden is {_SHARES}.test_share={share:g}; override that one"
        )
    return config
