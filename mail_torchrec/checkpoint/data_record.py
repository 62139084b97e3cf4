"""Record of the data that a run was trained and evaluated on: ``data.json`` of a run directory.

Shape: ``R`` rows.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from mail_torchrec.data.fingerprint import FileFingerprint, differing_files
from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.parquet.arrow import binary
from mail_torchrec.data.parquet.logical_types import plain_ids
from mail_torchrec.data.reading.chunk import user_hashes
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.collectives import world_size
from mail_torchrec.settings import Settings
from mail_torchrec.utils.run_files import write_file

_MAX_NAMED_FILES = 5


class SourceRecord(Settings):
    """Training or test data."""

    rows: int
    fingerprint: str
    """Checksum of the files' fingerprints, the same wherever copies of the files lie."""
    files: tuple[FileFingerprint, ...]

    @staticmethod
    def of(source: Source) -> "SourceRecord":
        """Describes opened files."""
        return SourceRecord.of_files(source.num_rows, tuple(source.fingerprints))

    @staticmethod
    def of_files(num_rows: int, files: tuple[FileFingerprint, ...]) -> "SourceRecord":
        """Describes files by their rows and fingerprints."""
        contents = "\n".join(file.content for file in files)
        fingerprint = hashlib.sha256(contents.encode()).hexdigest()[:32]
        return SourceRecord(rows=num_rows, fingerprint=fingerprint, files=files)

    def difference(self, source: Source) -> str | None:
        """Says how other files differ from the recorded ones; None where they do not."""
        differing = differing_files(source.fingerprints, self.files)
        if not differing:
            return None
        rows = f"({source.num_rows} rows, {self.rows} then)"
        more = len(differing) - _MAX_NAMED_FILES
        named = ", ".join(differing[:_MAX_NAMED_FILES]) + (f" and {more} more" if more > 0 else "")
        return f"{named} {rows}"


class ScoredRows(NamedTuple):
    """Rows that were scored."""

    labels_R: NDArray[Any]
    """0 or 1."""
    users_R: NDArray[Any]
    """Hash of the group key (int64)."""
    is_new_R: NDArray[Any]
    """Whether the row is reported as a new user's."""


class DataRecord(Settings):
    """Content of ``data.json``."""

    train: SourceRecord
    test: SourceRecord
    test_rows: str
    """Checksum of the scored rows: users, labels and cohorts, see :func:`rows_checksum`."""
    test_labels: str
    """The same without cohorts."""
    ranks: int
    """Ranks that the training ended on; a step has so many times ``train.batch_size`` rows."""

    @staticmethod
    def of(train: Source, test: Source, scored: ScoredRows) -> "DataRecord":
        """Describes the data of a run that ends on these ranks."""
        return DataRecord(
            train=SourceRecord.of(train),
            test=SourceRecord.of(test),
            test_rows=rows_checksum(scored.labels_R, scored.users_R, scored.is_new_R),
            test_labels=rows_checksum(scored.labels_R, scored.users_R),
            ranks=world_size(),
        )

    def write(self, path: Path) -> None:
        """Writes the record."""
        write_file(path, self.model_dump_json(indent=2) + "\n")


def read_data_record(path: Path) -> DataRecord:
    """Reads the record of a finished run.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    try:
        return DataRecord.model_validate_json(path.read_text())
    except (OSError, ValidationError) as error:
        raise ValueError(f"'{path}' cannot be read: {error}; train the run again") from error


def rows_checksum(
    labels_R: NDArray[Any], users_R: NDArray[Any], is_new_R: NDArray[Any] | None = None
) -> str:
    """Computes a checksum of rows: their users, labels and cohorts, in any order.

    Runs with equal checksums were evaluated on the same impressions, split into the same cohorts,
    whatever features and files they had.

    Args:
        labels_R: 0 or 1.
        users_R: hash of the group key (int64).
        is_new_R: whether the row is reported as a new user's; None leaves the cohorts out.
    """
    kinds_R = 2 * labels_R.astype(np.int64)
    if is_new_R is not None:
        kinds_R += is_new_R.astype(np.int64)
    sums = [hash64(pa.array(users_R[kinds_R == kind]), f"row {kind}").sum() for kind in range(4)]
    return f"{len(users_R)}-{int(np.array(sums, np.uint64).sum()):016x}"


def read_labels_checksum(source: Source, schema: Schema) -> str:
    """Computes the checksum of users and labels of files; two columns are read.

    Raises:
        ValueError: a label that is neither 0 nor 1, or an unreadable file.
    """
    key, label = (schema.file_column(name) for name in (schema.group_key, schema.label))
    labels, users = [], []
    for group in source.row_groups:
        table, file = source.read(group, list({key, label})), source.file(group)
        labels.append(binary(table[label], file=file, name=label))
        users.append(user_hashes(plain_ids(table[key], file=file, name=key)))
    return rows_checksum(np.concatenate(labels), np.concatenate(users))
