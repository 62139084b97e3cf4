"""Validation rows of training files: which rows, and which times and settings are refused."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.data.validation_split import (
    RowFilter,
    RowSplit,
    ValidationSettings,
    count_numbers,
)
from mail_torchrec.train.settings import TrainSettings
from mail_torchrec.train.validator import sample_rows
from tests.support.small_rows import SCHEMA, write_rows

DAYS = [19_000, 19_001, 19_001, 19_003]
DATES = [datetime.date(1970, 1, 1) + datetime.timedelta(days=day) for day in DAYS]
LATE = [datetime.datetime.combine(date, datetime.time(23, 59)) for date in DATES]


@pytest.fixture(scope="module")
def schema() -> Schema:
    return Schema.model_validate(SCHEMA)


def numbers(schema: Schema, values: pa.Array, unit: str | None = None) -> list[int]:
    settings = {"last_days": 1, "column": "time", "unit": unit}
    split = RowSplit(ValidationSettings.model_validate(settings), schema)
    return split.numbers(pa.table({"time": values}), {}, "a.parquet").tolist()


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        (pa.array(DATES), None),
        (pa.array(LATE, pa.timestamp("us")), None),
        (pa.array(LATE, pa.timestamp("ms")).cast(pa.timestamp("ms", "UTC")), None),
        (pa.array([str(date) for date in DATES]), None),
        (pa.array([str(time) for time in LATE], pa.large_string()), None),
        (pa.array([str(date) for date in DATES]).dictionary_encode(), None),
        (pa.array([int(f"{date:%Y%m%d}") for date in DATES], pa.int32()), "yyyymmdd"),
        (pa.array([day * 86_400 + 86_399 for day in DAYS]), "second"),
        (pa.array([day * 86_400_000 + 1 for day in DAYS]), "millisecond"),
        (pa.array(DAYS, pa.uint16()), "day"),
    ],
    ids=str,
)
def test_every_form_of_a_time_has_its_day(
    schema: Schema, values: pa.Array, unit: str | None
) -> None:
    assert numbers(schema, values, unit) == DAYS


@pytest.mark.parametrize(
    ("values", "unit", "message"),
    [
        (pa.array([1_700_000_000]), None, "integers such as 1700000000; set data.validation.unit"),
        (pa.array([20_241_399]), "yyyymmdd", "should hold dates such as 20240531"),
        (pa.array(DATES), "second", "unit is for integers; drop unit"),
        (pa.array(["soon"]), None, "should hold dates, timestamps, texts such as 2024-05-31"),
        (pa.array([1.5]), None, "received double"),
        (pa.array([None, *DATES]), None, "should hold a time in every row, received null"),
    ],
    ids=str,
)
def test_other_times_are_refused_with_the_column(
    schema: Schema, values: pa.Array, unit: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"a.parquet: column 'time' .*{message}"):
        numbers(schema, values, unit)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give one of path, share, last_days, received none"),
        ({"path": "a", "share": 0.1}, "received path and share"),
        ({"last_days": 1}, "last_days needs column"),
        ({"share": 0.1, "column": "day"}, "column and unit are for last_days"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ValidationSettings.model_validate(settings)


def test_a_split_that_leaves_no_rows_is_refused(schema: Schema) -> None:
    days = RowSplit(ValidationSettings(last_days=3, column="time"), schema)
    with pytest.raises(ValueError, match="leaves no rows for training, the files have 3 days"):
        days.first([7, 8, 9], "rows")
    assert days.first([6, 9], "rows") == 7
    users = RowSplit(ValidationSettings(share=0.1), schema)
    with pytest.raises(ValueError, match=r"no rows for validation.*change data.validation.share"):
        users.first([0], "rows")


def test_a_share_of_the_users_is_kept_by_a_hash_and_no_row_is_lost(
    schema: Schema, tmp_path: Path
) -> None:
    write_rows(tmp_path / "a.parquet", 300, seed=1)
    split = RowSplit(ValidationSettings(share=0.4), schema)
    source = Source(str(tmp_path), schema, split=split)
    counts = [source.count_numbers(group) for group in source.row_groups]
    parts = []
    for keeps in (True, False):
        kept = RowFilter(split, 1, keeps)
        groups = [
            type(group)(group.file, group.index, kept.count(numbers))
            for group, numbers in zip(source.row_groups, counts, strict=True)
        ]
        part = source.select(groups, kept)
        users = [
            table["user"].to_pylist() for group in part.row_groups for table in part.pieces(group)
        ]
        parts.append([user for piece in users for user in piece])
        assert part.num_rows == len(parts[-1])
        assert part.num_stored_rows == 300
    assert not set(parts[0]) & set(parts[1])
    assert len(parts[0]) + len(parts[1]) == 300
    hashes = hash64(pa.array(sorted(set(parts[0]))), "validation")
    assert (hashes < np.uint64(int(0.4 * 2**64))).all()


def test_a_sample_is_about_as_large_as_asked_and_of_rows_that_are_there(
    schema: Schema, tmp_path: Path
) -> None:
    write_rows(tmp_path / "a.parquet", 300, seed=1, row_group_size=20)
    source = Source(str(tmp_path), schema)
    for wanted in (1, 40, 299):
        sample = sample_rows(source, wanted)
        assert wanted <= sample.num_rows <= wanted + len(source.row_groups)
        assert all(group.num_rows <= 20 for group in sample.row_groups)
    assert sample_rows(source, 300) is source
    assert sample_rows(source, None) is source


@pytest.mark.parametrize(
    ("given", "training_rows", "expected"),
    [
        (None, 1_000, 2_000),
        (None, 4_000_000, 100_000),
        (None, 10**9, 262_144),
        ("all", 10**9, None),
        (7, 10**9, 7),
    ],
)
def test_without_a_number_a_fortieth_of_the_training_rows_is_evaluated(
    given: Any, training_rows: int, expected: int | None
) -> None:
    settings = TrainSettings(evaluate_rows=given)
    assert settings.validation_rows(training_rows) == expected


def test_numbers_are_counted() -> None:
    assert count_numbers(np.array([1, 0, 1, 1])) == {0: 1, 1: 3}
