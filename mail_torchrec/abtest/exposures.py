"""The log of an A/B test -> sums a user: who saw which version how often, and what came of it.

Files are read a batch at a time; what stays in memory is a line for each user and version.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray

from mail_torchrec.data.parquet.arrow import Bools, Ints, binary, one_chunk, plain_ids
from mail_torchrec.data.parquet.source import parquet_files, unreadable

_BATCH = 1_000_000  # rows read at a time
_KEYS = ["user", "version", "is_new"]
_SUMS = ["impressions", "clicks", "conversions"]


@dataclass(frozen=True)
class LogColumns:
    """What the columns of the log are called."""

    user: str = "user"
    version: str = "version"
    click: str = "click"
    """0 or 1; a count where ``impressions`` is given."""
    conversion: str | None = None
    """Likewise; without a click it counts as none, as in training."""
    is_new: str | None = None
    """1 where the user was new."""
    impressions: str | None = None
    """How many impressions a row stands for; None: each row is one."""

    @property
    def names(self) -> list[str]:
        """Those that there are, each once."""
        given = (
            self.user,
            self.version,
            self.click,
            self.conversion,
            self.is_new,
            self.impressions,
        )
        return list(dict.fromkeys(name for name in given if name is not None))


@dataclass(frozen=True)
class Exposures:
    """A line for each user, version and (where the log says it) whether the user was new; ``L`` lines."""

    users: pa.Array
    """int64 or large_string [L]."""
    versions: pa.Array
    """large_string [L]."""
    is_new_L: Bools | None
    impressions_L: Ints
    clicks_L: Ints
    conversions_L: Ints | None
    """Those after a click."""
    unclicked: int
    """Conversions without a click, in the whole log."""

    @property
    def user_of_L(self) -> Ints:
        """The number 0 .. U - 1 of each line's user."""
        numbers: Ints = self.users.dictionary_encode().indices.to_numpy().astype(np.int64)
        return numbers


def read_exposures(paths: Iterable[str], columns: LogColumns) -> Exposures:
    """Sums the log.

    Args:
        paths: Parquet files, folders or URIs.
        columns: their names.

    Raises:
        ValueError: no log, a missing column, a null, a value that is no count; the message names
            file and column.
    """
    sums: pa.Table | None = None
    waiting: list[pa.Table] = []
    unclicked = 0
    for part, num_unclicked in _parts(paths, columns):
        unclicked += num_unclicked
        waiting.append(part)
        if sum(map(len, waiting)) > max(
            _BATCH, 0 if sums is None else len(sums)
        ):  # so that each line is summed a few times, not each time
            sums, waiting = _summed([sums, *waiting] if sums is not None else waiting), []
    if sums is None and not waiting:
        raise ValueError("the log should hold impressions, received no rows")
    sums = _summed([sums, *waiting] if sums is not None else waiting)
    sums = sums.sort_by(
        [(name, "ascending") for name in _KEYS]
    )  # so that the same log gives the same figures to the last digit
    return Exposures(
        users=one_chunk(sums["user"]),
        versions=one_chunk(sums["version"]),
        is_new_L=_ints(sums["is_new"]) == 1 if columns.is_new else None,
        impressions_L=_ints(sums["impressions"]),
        clicks_L=_ints(sums["clicks"]),
        conversions_L=_ints(sums["conversions"]) if columns.conversion else None,
        unclicked=unclicked,
    )


def _parts(paths: Iterable[str], columns: LogColumns) -> Iterator[tuple[pa.Table, int]]:
    """Sums of each batch, and its conversions without a click."""
    kind: tuple[str, pa.DataType] | None = None
    for path in paths:
        for fragment in parquet_files(
            path, "name Parquet files or folders of the exposure and click log"
        ):
            file = str(fragment.path)
            for batch in _batches(fragment, columns.names, file):
                part, num_unclicked = _counted(batch, columns, file)
                found = part["user"].type
                if (kind := kind or (file, found))[1] != found:
                    raise ValueError(
                        f"{file}: column '{columns.user}' should be {kind[1]} as in {kind[0]}, "
                        f"found {found}; cast one of them"
                    )
                yield _summed([part]), num_unclicked


def _batches(fragment: pads.ParquetFileFragment, names: list[str], file: str) -> Iterator[pa.Table]:
    try:
        if missing := [name for name in names if name not in fragment.physical_schema.names]:
            raise ValueError(
                f"{file}: column '{missing[0]}' is missing; the file has "
                f"{', '.join(fragment.physical_schema.names)}"
            )
        for batch in fragment.to_batches(columns=names, batch_size=_BATCH):
            if len(batch):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error


def _counted(batch: pa.Table, columns: LogColumns, file: str) -> tuple[pa.Table, int]:
    """The batch's rows in our own columns, and its conversions without a click."""
    zeros = np.zeros(len(batch), np.int64)
    impressions, clicks = zeros + 1, zeros
    if columns.impressions is None:
        clicks = binary(batch[columns.click], file=file, name=columns.click).astype(np.int64)
    else:
        impressions = _counts(batch, columns.impressions, file)
        clicks = _counts(batch, columns.click, file)
        if len(wrong := np.flatnonzero(clicks > impressions)):
            row = wrong[0]
            raise ValueError(
                f"{file}: column '{columns.click}' should not exceed '{columns.impressions}', "
                f"received {clicks[row]} clicks on "
                f"{impressions[row]} impressions"
            )
    conversions = zeros
    if columns.conversion is not None and columns.impressions is None:
        conversions = binary(batch[columns.conversion], file=file, name=columns.conversion).astype(
            np.int64
        )
    elif columns.conversion is not None:
        conversions = _counts(batch, columns.conversion, file)
    is_new = (
        binary(batch[columns.is_new], file=file, name=columns.is_new) if columns.is_new else zeros
    )
    counted = np.minimum(conversions, clicks)
    keys = {
        "user": _ids(batch, columns.user, file),
        "version": _ids(batch, columns.version, file).cast(pa.large_string()),
    }
    sums = {
        "is_new": is_new.astype(np.int8),
        "impressions": impressions,
        "clicks": clicks,
        "conversions": counted,
    }
    return pa.table(keys | sums), int((conversions - counted).sum())


def _ids(batch: pa.Table, name: str, file: str) -> pa.Array:
    column = batch[name]
    if column.null_count:
        raise ValueError(
            f"{file}: column '{name}' should say it of every row, received {column.null_count} "
            "nulls; leave such rows out"
        )
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ):
        raise ValueError(
            f"{file}: column '{name}' should hold integers or strings, found {kind}; cast it there"
        )
    return plain_ids(column, file=file, name=name)


def _counts(batch: pa.Table, name: str, file: str) -> Ints:
    column = batch[name]
    if (
        not pa.types.is_integer(column.type)
        or column.null_count
        or (len(column) and pc.min(column).as_py() < 0)
    ):
        raise ValueError(
            f"{file}: column '{name}' should hold counts, integers from 0 on without nulls, found "
            f"{column.type} from {pc.min(column)} on, "
            f"{column.null_count} nulls"
        )
    return _ints(column)


def _summed(parts: list[pa.Table]) -> pa.Table:
    grouped = pa.concat_tables(parts).group_by(_KEYS).aggregate([(name, "sum") for name in _SUMS])
    return grouped.rename_columns({f"{name}_sum": name for name in _SUMS})


def _ints(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(column.to_numpy(), np.int64)
