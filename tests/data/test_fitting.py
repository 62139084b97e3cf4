"""Fitting of vocabularies and scales on the training files."""

import statistics
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mail_torchrec.data.cold_start import ColdStartSettings, hidden_users
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.ids.vocabulary import Vocabulary
from mail_torchrec.data.numeric import NumericScale
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from tests.support import plain
from tests.support.plain import TYPES, any_rows, row, vocabularies, write

files = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)


def fit(path: Path, schema: Schema, **cold_start: Any) -> Encoders:
    return fit_encoders(Source(str(path), schema), schema, ColdStartSettings(**cold_start))


def values(encoders: Encoders) -> dict[str, list[Any]]:
    return {
        name: table.values.to_pylist()
        for name, table in encoders.tables.items()
        if isinstance(table, Vocabulary)
    }


def hidden(rows: list[plain.Row], cold_start: ColdStartSettings) -> set[int]:
    """Returns the users hidden by ``data/cold_start.py``, which has tests of its own."""
    users = [row["user"] for row in rows]
    return {
        user
        for user, is_hidden in zip(users, hidden_users(pa.array(users), cold_start), strict=True)
        if is_hidden
    }


@files
@given(any_rows(), st.sampled_from([0.0, 0.5, 1.0]), st.data())
def test_vocabularies_equal_plain_counting(
    tmp_path: Path, rows: list[plain.Row], share: float, data: st.DataObject
) -> None:
    """Lists cut, hidden behaviours and nulls left out; items counted in targets and histories."""
    schema, first = plain.schema(), data.draw(st.integers(0, len(rows)))
    write(tmp_path / "a.parquet", rows, [first, len(rows) - first])
    cold_start = ColdStartSettings(hide_share=share)
    assert values(fit(tmp_path, schema, hide_share=share)) == vocabularies(
        rows, hidden(rows, cold_start)
    )


def test_the_oracle_counts_hidden_behaviours(tmp_path: Path, schema: Schema) -> None:
    write(tmp_path / "a.parquet", [row(history=[77], actions=[1])])
    assert 77 not in values(fit(tmp_path, schema, hide_share=1.0))["item"]
    assert 77 in values(fit(tmp_path, schema, hide_share=1.0, oracle=True))["item"]


@files
@given(any_rows())
def test_scales_equal_plain_statistics(tmp_path: Path, rows: list[plain.Row]) -> None:
    write(tmp_path / "a.parquet", rows, [1] * len(rows))
    scale = fit(tmp_path, plain.schema()).scales["income"]
    known = [row["income"] for row in rows if row["income"] is not None] or [0.0]
    assert scale.mean == pytest.approx(statistics.fmean(known), abs=1e-12)
    deviation = statistics.pstdev(known)
    assert scale.deviation == pytest.approx(deviation, abs=1e-9) or (
        deviation < 1e-9 and scale.deviation == 1.0
    )


def test_the_deviation_of_large_numbers_is_exact(tmp_path: Path, schema: Schema) -> None:
    """A sum of squares would have lost it: 1e16 and a deviation of 1."""
    write(tmp_path / "a.parquet", [row(income=1e8 + i % 2 * 2) for i in range(100)], [10] * 10)
    assert fit(tmp_path, schema).scales["income"] == NumericScale(1e8 + 1, 1.0)


def test_files_of_different_types_share_a_vocabulary(tmp_path: Path, schema: Schema) -> None:
    """int32 and int64, string, large_string and dictionary."""
    for name, integers, text in (
        ("a", pa.int32(), pa.string()),
        ("b", pa.int64(), pa.large_string()),
    ):
        types = TYPES.set(2, pa.field("age", integers)).set(3, pa.field("city", text))
        write(
            tmp_path / f"{name}.parquet",
            [row(age=5, city="x"), row(age=-124, city="y"), row(age=5, city="x")],
            types=types,
        )
    write(
        tmp_path / "c.parquet",
        [row(age=7, city="x")],
        types=TYPES.set(3, pa.field("city", pa.dictionary(pa.int8(), pa.string()))),
    )
    found = values(fit(tmp_path, schema))
    assert (found["age"], found["city"]) == ([5, 7, -124], ["x", "y"])


def test_files_of_clashing_types_are_named(tmp_path: Path, schema: Schema) -> None:
    write(tmp_path / "a.parquet", [row()])
    write(
        tmp_path / "b.parquet", [row(hour="3")], types=TYPES.set(7, pa.field("hour", pa.string()))
    )
    with pytest.raises(
        ValueError,
        match=(
            r"b\.parquet: column 'hour' should hold integer values, as in .*a\.parquet, "
            r"found string; .* cast one"
        ),
    ):
        fit(tmp_path, schema)


def test_a_bad_number_is_named_while_fitting(tmp_path: Path, schema: Schema) -> None:
    write(tmp_path / "a.parquet", [row(), row(income=float("nan"))])
    with pytest.raises(
        ValueError,
        match=r"a\.parquet, row group \d+: column 'income' should be finite, received nan in row 1",
    ):
        fit(tmp_path, schema)


@pytest.mark.parametrize("column", ["user", "age"])
def test_an_id_above_int64_is_named_while_fitting(
    tmp_path: Path, schema: Schema, column: str
) -> None:
    write(
        tmp_path / "a.parquet",
        [row(**{column: 2**64 - 1})],
        types=TYPES.set(TYPES.get_field_index(column), pa.field(column, pa.uint64())),
    )
    with pytest.raises(
        ValueError,
        match=(
            rf"a\.parquet, row group \d+: column '{column}' should fit into signed 64-bit "
            r"integers"
        ),
    ):
        fit(tmp_path, schema)


def test_min_count_rows_and_hash(tmp_path: Path) -> None:
    schema = Schema.model_validate(
        plain.TREE
        | {
            "tables": {
                "age": {"min_count": 2},
                "city": {"rows": 3},
                "hour": {"ids": "hash", "rows": 9},
            }
        }
    )
    write(
        tmp_path / "a.parquet",
        [row(age=age, city=city) for age, city in ((1, "a"), (1, "b"), (2, "b"))],
    )
    encoders = fit(tmp_path, schema)
    assert (values(encoders)["age"], values(encoders)["city"]) == ([1], ["b"])
    assert (encoders.num_rows["age"], encoders.num_rows["city"], encoders.num_rows["hour"]) == (
        3,
        3,
        9,
    )
