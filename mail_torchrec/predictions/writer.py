"""Writing of predictions: a folder of Parquet files, written by all ranks and published whole."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mail_torchrec.data.parquet.logical_types import plain_ids
from mail_torchrec.data.reading.chunk import user_hashes
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.collectives import broadcast_from_rank_0, gather_objects
from mail_torchrec.predictions.row_keys import RowKeys, RowKeyStream
from mail_torchrec.predictions.scored_batch import ScoredBatch
from mail_torchrec.utils.atomic_dir import atomic_dir
from mail_torchrec.utils.run_files import named_errors, sync_folder

_ROW_GROUP_ROWS = 65_536
_METADATA = b"mail_torchrec"
USER, LABEL, CONVERSION, IS_NEW, LOGIT = "user", "label", "conversion", "is_new", "logit"
IS_NEW_ITEM = "is_new_item"


@dataclass(frozen=True)
class PredictionFormat:
    """Choice of the columns of written predictions."""

    scores: tuple[str, ...]
    """Names of the probabilities and expected values."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """Columns of the files to keep, by their names among the predictions."""
    group_key: str | None = None
    """Column of the files that holds the user; with it the columns of an evaluation are written:
    user, label, cohort and logit."""
    has_conversions: bool = False
    """Write the conversion label of an evaluation."""
    has_new_items: bool = False
    """Write whether the item is a new one, in an evaluation."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """Run and checkpoint, for the metadata of the files."""

    def row_keys(self, source: Source) -> RowKeys:
        """Opens the kept columns, and checks them.

        Raises:
            ValueError: one is missing, or has the name of another column.
        """
        user = {} if self.group_key is None else {USER: self.group_key}
        others = [*self.scores, *(field.name for field in self._evaluation_fields())]
        return RowKeys(source, {**self.kept, **user}, others)

    def schema(self, keys: RowKeys) -> pa.Schema:
        """Returns the columns of the files, in order."""
        fields = list(keys.schema)
        fields += [pa.field(name, pa.float32()) for name in self.scores]
        metadata = {_METADATA: json.dumps(dict(self.origin)).encode()}
        return pa.schema([*fields, *self._evaluation_fields()], metadata)

    def _evaluation_fields(self) -> list[pa.Field]:
        if self.group_key is None:
            return []
        kinds = {LABEL: pa.uint8(), IS_NEW: pa.bool_(), LOGIT: pa.float32()}
        if self.has_conversions:
            kinds[CONVERSION] = pa.uint8()
        if self.has_new_items:
            kinds[IS_NEW_ITEM] = pa.bool_()
        return [pa.field(name, kind) for name, kind in kinds.items()]


def check_predictions_folder(out: Path, *, overwrite: bool) -> None:
    """Checks that predictions may be written there.

    Raises:
        ValueError: the folder exists and may not be overwritten, or holds anything but predictions;
            or it is named as a file of an earlier version.
    """
    if out.suffix == ".npz":
        raise ValueError(
            f"predictions should be a folder of Parquet files, received '{out}'; name a folder"
        )
    if not out.exists():
        return
    if not overwrite:
        raise ValueError(
            f"'{out}' exists already; choose another folder, or replace it with --overwrite"
        )
    other = [] if not out.is_dir() else [p.name for p in out.iterdir() if not _is_part(p.name)]
    if other or not out.is_dir():
        raise ValueError(
            f"'{out}' should hold predictions alone to be replaced, found "
            f"{', '.join(sorted(other)[:3]) or 'a file'}; choose another folder"
        )


@contextmanager
def write_predictions(
    out: Path, source: Source, columns: PredictionFormat, *, overwrite: bool
) -> Iterator["PredictionWriter"]:
    """Yields a writer of this rank's rows; the folder appears when all ranks' blocks succeed.

    Every rank calls it. The folder holds one file for each reader process of each rank, named by
    the number of its first row in the data, so that the files in the order of their names hold the
    rows in the order of the data.

    Args:
        out: the folder, on storage that all ranks share.
        source: of the scored rows.
        columns: to write.
        overwrite: replace predictions that are there.

    Raises:
        ValueError: ``out`` may not be written, or a kept column cannot be kept.
        OSError: a file could not be written; with its name.
    """
    with ExitStack() as stack:

        def begin() -> Path:
            check_predictions_folder(out, overwrite=overwrite)
            return stack.enter_context(atomic_dir(out, overwrite=overwrite))

        folder = broadcast_from_rank_0(begin)
        with PredictionWriter(folder, source, columns) as writer:
            yield writer
        gather_objects(None)  # all ranks are done
        broadcast_from_rank_0(lambda: _publish(folder, stack))


def _publish(folder: Path, stack: ExitStack) -> None:
    sync_folder(folder)
    stack.close()


def _is_part(name: str) -> bool:
    return name.startswith("part-") and name.endswith(".parquet")


class PredictionWriter:
    """Writes the scored rows of one rank, a file for each reader process.

    Args:
        folder: of all ranks' files.
        source: of the scored rows.
        columns: to write.
    """

    def __init__(self, folder: Path, source: Source, columns: PredictionFormat) -> None:
        self._folder, self._source, self._columns = folder, source, columns
        self._keys = columns.row_keys(source)
        self._parts: dict[int, _PartFile] = {}

    def __enter__(self) -> Self:
        return self

    def write(self, batch: ScoredBatch) -> None:
        """Writes the rows of one batch.

        Raises:
            ValueError: the files hold other rows by now.
            OSError: they could not be written.
        """
        if not batch.rows:
            return
        if batch.worker not in self._parts:
            first = batch.rows.start
            path = self._folder / f"part-{first:015}.parquet"
            schema = self._columns.schema(self._keys)
            self._parts[batch.worker] = _PartFile(path, schema, self._keys.stream(first))
        part = self._parts[batch.worker]
        part.write(self._table(batch, part.keys.take(len(batch.rows))))

    def _table(self, batch: ScoredBatch, keys: pa.Table) -> pa.Table:
        columns = {**dict(zip(keys.column_names, keys.columns, strict=True)), **batch.scores}
        if (key := self._columns.group_key) is not None:
            users = plain_ids(keys[USER], file=self._source.path, name=key)
            if not np.array_equal(user_hashes(users), batch.users_B):
                raise ValueError(
                    f"'{self._source.path}' was rewritten while its rows were scored: its group "
                    "keys are other ones now; evaluate again"
                )
            columns |= _labels_and_cohorts(batch)
        schema = self._columns.schema(self._keys)
        return pa.table([columns[name] for name in schema.names], schema=schema)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with ExitStack() as stack:
            for part in self._parts.values():
                stack.callback(part.discard if error else part.finish)


def _labels_and_cohorts(batch: ScoredBatch) -> dict[str, Any]:
    columns: dict[str, Any] = {
        LABEL: batch.labels_B.astype(np.uint8),
        CONVERSION: batch.conversions_B.astype(np.uint8),
        IS_NEW: batch.is_new_B,
        LOGIT: batch.logits_B,
    }
    if batch.is_new_item_B is not None:
        columns[IS_NEW_ITEM] = batch.is_new_item_B
    return columns


class _PartFile:
    """One Parquet file, written row group by row group."""

    def __init__(self, path: Path, schema: pa.Schema, keys: RowKeyStream) -> None:
        self.keys = keys
        """Keys of the rows to come."""
        self._path, self._schema = path, schema
        self._waiting: list[pa.Table] = []
        with named_errors(path):
            self._file: IO[bytes] = path.open("xb")
            self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")

    def write(self, table: pa.Table) -> None:
        """Appends rows, and writes a row group where there are enough."""
        self._waiting.append(table)
        if sum(map(len, self._waiting)) >= _ROW_GROUP_ROWS:
            self._flush()

    def finish(self) -> None:
        """Writes what is waiting, and waits until the file is on the disk."""
        try:
            self._flush()
            with named_errors(self._path):
                self._writer.close()
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self.discard()

    def discard(self) -> None:
        """Closes the file as it is."""
        self._writer.is_open = False  # else it would write a footer when it is collected
        self._file.close()

    def _flush(self) -> None:
        if self._waiting:
            with named_errors(self._path):
                self._writer.write_table(pa.concat_tables(self._waiting), _ROW_GROUP_ROWS)
        self._waiting = []
