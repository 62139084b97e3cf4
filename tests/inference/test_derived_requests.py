"""Derived columns and buckets of JSON requests are those that the reader makes of rows."""

import json
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.chunk import Chunk, ChunkEncoder
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.inference.request_encoder import RequestEncoder
from mail_torchrec.inference.requests import Request, request_columns
from mail_torchrec.inference.values import value_types
from tests.support.derived_rows import DERIVED, derived_rows, write_derived_rows

ROWS = derived_rows(60)
USER = "age city income history times hour time since user".split()
CANDIDATE = "item tags flag published price".split()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tmp_path_factory.mktemp("rows") / "a.parquet"
    write_derived_rows(path, ROWS)
    return Source(str(path), Schema.model_validate(DERIVED))


@pytest.fixture(scope="module")
def encode(source: Source) -> RequestEncoder:
    schema = Schema.model_validate(DERIVED)
    encoders = fit_encoders(source, schema, ColdStartSettings())
    return RequestEncoder(schema, encoders, value_types(source.types, schema))


def of_json(row: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    """The columns of a row as a client sends them."""

    def text(value: Any) -> Any:
        return float(value) if isinstance(value, Decimal) else value.isoformat()

    found: dict[str, Any] = json.loads(json.dumps({c: row[c] for c in columns}, default=text))
    return found


def test_requests_are_encoded_as_rows_are(source: Source, encode: RequestEncoder) -> None:
    schema = encode.schema
    assert set(request_columns(schema).user) | {"user"} == set(USER)
    assert set(request_columns(schema).candidate) == set(CANDIDATE)
    to_chunk = ChunkEncoder(schema, encode.encoders, ColdStartSettings(), 0)
    chunk = Chunk.concatenate([to_chunk(source.read(group), "rows") for group in source.row_groups])
    requests = [Request(of_json(row, USER), [of_json(row, CANDIDATE)]) for row in ROWS]
    one_user = Request(requests[5].user, [of_json(row, CANDIDATE) for row in ROWS])
    found = encode(requests)
    for i, name in enumerate(schema.scalars):
        assert np.array_equal(found[name], chunk.scalars_CR[i]), name
    for i, name in enumerate(schema.numeric()):
        assert np.array_equal(found[name], chunk.numeric_RN[:, i]), name
    lengths, gaps = found["history.length"], found["gaps"]
    rows = [gap for row, length in zip(gaps, lengths, strict=True) for gap in row[:length]]
    assert rows == chunk.lists["gaps"].values.tolist()
    alone = encode([one_user])["city_item"][[3, 9]]
    pairs = [Request(requests[5].user, [requests[i].candidates[0]]) for i in (3, 9)]
    assert np.array_equal(alone, encode(pairs)["city_item"])


@pytest.mark.parametrize(
    ("time", "same"),
    [
        ("2024-03-31T00:30:00Z", "2024-03-31T01:30:00+01:00"),
        ("2024-03-31T00:30:00", datetime(2024, 3, 31, 0, 30)),
        ("2024-03-31", date(2024, 3, 31)),
        (None, None),
    ],
)
def test_times_are_instants(encode: RequestEncoder, time: Any, same: Any) -> None:
    user, candidate = of_json(ROWS[8], USER), of_json(ROWS[8], CANDIDATE)
    found, other = (
        encode([Request(user | {"time": value}, [candidate])]) for value in (time, same)
    )
    assert all(np.array_equal(found[name], other[name]) for name in found)
    assert (found["weekday"][0] == 1) == (time is None)


@pytest.mark.parametrize(
    ("user", "candidate", "message"),
    [
        ({"time": 1711845000}, {}, "user: column 'time' should hold one time or null: received 17"),
        ({"time": "today"}, {}, "user: column 'time' should hold one time or null: Invalid iso"),
        ({"times": ["2024-03-31"]}, {}, "user 0: column 'age of times at time in hours' should be"),
        ({}, {"published": 2**60}, "candidate: column 'published' should hold times of the years"),
        ({}, {"time": "2024-03-31"}, "candidate: column 'time' is none of this model's"),
        ({}, {"price": "5"}, "candidate: column 'price' should hold one number or null"),
    ],
)
def test_bad_values_are_told(
    encode: RequestEncoder, user: dict[str, Any], candidate: dict[str, Any], message: str
) -> None:
    given = of_json(ROWS[8], USER) | user, of_json(ROWS[8], CANDIDATE) | candidate
    with pytest.raises(ValueError, match=message):
        encode([Request(given[0], [given[1]])])


def test_users_of_a_file_are_encoded_as_requests_are(
    source: Source, encode: RequestEncoder, tmp_path: Path
) -> None:
    [stored] = source.files
    table = stored.read(stored.schema.names).slice(0, 9)
    requests = [Request(of_json(row, USER), [of_json(row, CANDIDATE)]) for row in ROWS[:9]]
    found, expected = encode.users(table, "users"), encode(requests)
    assert all(np.array_equal(found[name], expected[name]) for name in found)
    without = encode.users(table.drop_columns(["hour"]), "users")
    assert (without["hour"] == 1).all()
