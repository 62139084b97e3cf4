"""Record of the data that a run was trained and evaluated on: ``data.json`` of a run directory.

Shape: ``R`` rows.
"""

import hashlib
from collections.abc import Iterable
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
from mail_torchrec.distributed.collectives import gather_objects, world_size
from mail_torchrec.settings import Settings, first_fault
from mail_torchrec.utils.run_files import write_file
from mail_torchrec.utils.safe_paths import read_document

_MAX_NAMED_FILES = 5


class SourceRecord(Settings):
    """Training or test data."""

    rows: int
    fingerprint: str
    """Checksum of the files' fingerprints, the same wherever copies of the files lie."""
    files: tuple[FileFingerprint, ...]

    @staticmethod
    def of(source: Source) -> "SourceRecord":
        """Describes opened files, with all their rows."""
        return SourceRecord.of_files(source.num_stored_rows, tuple(source.fingerprints))

    @staticmethod
    def of_rows(source: Source) -> "SourceRecord":
        """Describes the rows that a source reads of its files."""
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
        rows = f"({source.num_stored_rows} rows, {self.rows} then)"
        more = len(differing) - _MAX_NAMED_FILES
        named = ", ".join(differing[:_MAX_NAMED_FILES]) + (f" and {more} more" if more > 0 else "")
        return f"{named} {rows}"


class ScoredRows(NamedTuple):
    """Checksums of the rows that all ranks scored, the same on every rank."""

    rows: str
    """Of users, labels and cohorts, see :func:`rows_checksum`."""
    labels: str
    """Of users and labels."""

    @staticmethod
    def of(labels_R: NDArray[Any], users_R: NDArray[Any], is_new_R: NDArray[Any]) -> "ScoredRows":
        """Computes the checksums of all ranks' rows; every rank calls it with its own.

        Args:
            labels_R: 0 or 1.
            users_R: hash of the group key (int64).
            is_new_R: whether the row is reported as a new user's.
        """
        own = rows_sum(labels_R, users_R, is_new_R), rows_sum(labels_R, users_R)
        return ScoredRows(*map(rows_checksum, zip(*gather_objects(own), strict=True)))


class DataRecord(Settings):
    """Content of ``data.json``."""

    train: SourceRecord
    """Training files, with the validation rows that are split from them."""
    test: SourceRecord
    validation: SourceRecord | None = None
    """Validation rows, and the files that hold them; None where the run has none."""
    test_rows: str
    """Checksum of the scored rows: users, labels and cohorts, see :func:`rows_checksum`."""
    test_labels: str
    """The same without cohorts."""
    ranks: int
    """Ranks that the training ended on; a step has so many times ``train.batch_size`` rows."""

    @staticmethod
    def of(
        train: Source, validation: Source | None, test: Source, scored: ScoredRows
    ) -> "DataRecord":
        """Describes the data of a run that ends on these ranks."""
        return DataRecord(
            train=SourceRecord.of(train),
            test=SourceRecord.of(test),
            validation=SourceRecord.of_rows(validation) if validation is not None else None,
            test_rows=scored.rows,
            test_labels=scored.labels,
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
        return DataRecord.model_validate_json(read_document(path))
    except ValidationError as error:
        raise ValueError(
            f"'{path}' cannot be read: {first_fault(error)}; train the run again"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' cannot be read: {error}; train the run again") from error


def rows_checksum(sums: Iterable[tuple[int, int]]) -> str:
    """Formats the checksum of rows whose parts have these sums of :func:`rows_sum`.

    Runs with equal checksums were evaluated on the same impressions, split into the same cohorts,
    whatever features and files they had.
    """
    num_rows, summed = (sum(parts) for parts in zip(*sums, strict=True))
    return f"{num_rows}-{summed % 2**64:016x}"


def rows_sum(
    labels_R: NDArray[Any], users_R: NDArray[Any], is_new_R: NDArray[Any] | None = None
) -> tuple[int, int]:
    """Returns the number of rows, and a sum of hashes of their users, labels and cohorts.

    Args:
        labels_R: 0 or 1.
        users_R: hash of the group key (int64).
        is_new_R: whether the row is reported as a new user's; None leaves the cohorts out.
    """
    kinds_R = 2 * labels_R.astype(np.int64)
    if is_new_R is not None:
        kinds_R += is_new_R.astype(np.int64)
    sums = [hash64(pa.array(users_R[kinds_R == kind]), f"row {kind}").sum() for kind in range(4)]
    return len(users_R), sum(map(int, sums))


def read_labels_checksum(source: Source, schema: Schema) -> str:
    """Computes the checksum of users and labels of files; two columns are read.

    Raises:
        ValueError: a label that is neither 0 nor 1, or an unreadable file.
    """
    key, label = (schema.file_column(name) for name in (schema.group_key, schema.label))
    sums = []
    for group in source.row_groups:
        table, file = source.read(group, list({key, label})), source.file(group)
        labels_R = binary(table[label], file=file, name=label)
        sums.append(rows_sum(labels_R, user_hashes(plain_ids(table[key], file=file, name=key))))
    return rows_checksum(sums)
