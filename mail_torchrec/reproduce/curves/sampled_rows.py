"""Samples of the training rows: some users with all their rows, written as files of their own."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mail_torchrec.checkpoint.data_record import SourceRecord
from mail_torchrec.config import Config
from mail_torchrec.data.parquet.selection import selected_files
from mail_torchrec.data.source import Source
from mail_torchrec.data.validation_split import RowSplit, ValidationSettings
from mail_torchrec.train.data_splits import open_sources
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)

_SALT = "rows"
_BATCH_ROWS = 65_536
_ORIGIN = "origin.json"


def sample_training_rows(config: Config, wanted: int, folder: Path) -> tuple[Path, int]:
    """Writes the rows of a sample of the training users, of about as many rows as are wanted.

    A salted hash of the user's key decides, so that a smaller sample is a part of a larger one. A
    sample that was made of the same files is kept.

    Args:
        config: whose training files are sampled.
        wanted: rows.
        folder: gets the files.

    Returns:
        The folder of the files, and their number of rows.

    Raises:
        ValueError: the sample would hold no row or all, or the folder has one of other files.
    """
    source = open_sources(config).train
    if not 0 < wanted < source.num_rows:
        raise ValueError(
            f"--rows should be below the {source.num_rows:,} training rows of '{source.path}', "
            f"received {wanted:,}; all rows are the last point of the curve anyway"
        )
    origin = {"fingerprint": SourceRecord.of(source).fingerprint, "columns": _columns(source)}
    if (folder / _ORIGIN).exists():
        made_of = json.loads((folder / _ORIGIN).read_text())
        if {name: made_of[name] for name in origin} != origin:
            raise ValueError(
                f"'{folder}' is a sample of other training files or columns; choose another --out, "
                "or delete it"
            )
        return folder / "train", made_of["rows"]
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted command
    num_rows = _write(config, source, wanted / source.num_rows, folder / "train")
    if not num_rows:
        raise ValueError(
            f"--rows {wanted} leaves no user of '{source.path}', which has {source.num_rows:,} "
            "rows; give more"
        )
    (folder / _ORIGIN).write_text(json.dumps(origin | {"rows": num_rows}))
    return folder / "train", num_rows


def _columns(source: Source) -> list[str]:
    """Lists the files' columns that a training reads, the one that splits rows included."""
    split = [] if source.split is None else [source.split.column]
    return list(dict.fromkeys([*source.columns, *split]))


def _write(config: Config, source: Source, share: float, folder: Path) -> int:
    """Writes a file for each one that has rows of chosen users; returns the number of rows."""
    users = RowSplit(ValidationSettings(share=share, salt=_SALT), config.schema_)
    columns, num_rows = _columns(source), 0
    folder.mkdir(parents=True)
    files = selected_files(config.data.path(config.data.train), "set data.train")
    for number, file in enumerate(files):
        tables = []
        for table in file.batches(columns, _BATCH_ROWS):
            is_chosen_R = users.numbers(table, source.types, file.path) == 1
            tables.append(table.filter(pa.array(is_chosen_R)))
        chosen = pa.concat_tables(tables) if tables else pa.table({})
        if len(chosen):
            pq.write_table(chosen, folder / f"part-{number:05}.parquet", row_group_size=_BATCH_ROWS)
        num_rows += len(chosen)
    logger.info("%s: a sample of %s rows of '%s'", folder, f"{num_rows:,}", source.path)
    return num_rows
