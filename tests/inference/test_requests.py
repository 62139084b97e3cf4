"""Raw requests become what the reader makes of rows, or an error that names column and value."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.chunk import ChunkEncoder
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.inference.request_encoder import RequestEncoder
from mail_torchrec.inference.requests import Request, input_specs
from mail_torchrec.inference.values import value_types
from tests.support.small_rows import SCHEMA, write_rows
from tests.support.untrained_model import requests_of

USER = {"age": 1, "city": "city1", "income": 0.5, "history": [4, 9], "actions": [1, 2], "hour": 3}
ITEM = {"item": 4, "tags": [1, 0]}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "a.parquet"
    write_rows(path, 120, seed=1)
    return path


@pytest.fixture(scope="module")
def encode(rows: Path) -> RequestEncoder:
    schema = Schema.model_validate(SCHEMA)
    source = Source(str(rows), schema)
    encoders = fit_encoders(source, schema, ColdStartSettings())
    return RequestEncoder(schema, encoders, value_types(source.types, schema))


def test_requests_become_what_the_reader_makes_of_rows(rows: Path, encode: RequestEncoder) -> None:
    schema, encoders = encode.schema, encode.encoders
    chunk = ChunkEncoder(schema, encoders, ColdStartSettings(), 0)(pq.read_table(rows), "rows")
    found = encode(requests_of(rows, schema, range(120)))
    assert list(found) == [spec.name for spec in input_specs(schema, encoders.num_rows)]
    for i, name in enumerate(schema.scalars):
        assert np.array_equal(found[name], chunk.scalars_CR[i])
    assert np.array_equal(found["income"], chunk.numeric_RN[:, 0])
    for name, jagged in chunk.lists.items():
        lengths = found[f"{name}.length"] if name != "actions" else found["history.length"]
        assert np.array_equal(lengths, jagged.lengths)
        for row, (start, length) in enumerate(zip(jagged.starts, jagged.lengths, strict=True)):
            assert np.array_equal(found[name][row, :length], jagged.stored[start : start + length])
            assert not found[name][row, length:].any()
    assert found["history"].shape == (120, 6) and found["tags"].shape == (120, 2)
    assert np.array_equal(found["candidate.user"], np.arange(120))


def test_padding_in_a_request_is_no_behaviour(encode: RequestEncoder) -> None:
    columns = SCHEMA["columns"]
    padded = {
        "history": {**columns["history"], "padding": -1},
        "tags": {**columns["tags"], "padding": 0},
    }
    schema = Schema.model_validate({**SCHEMA, "columns": {**columns, **padded}})
    user = {**USER, "history": [-1, 4, -1, 9], "actions": [0, 1, 0, 2]}
    found = RequestEncoder(schema, encode.encoders, encode.types)(
        [
            Request(user, [{**ITEM, "tags": [0, 1, 0]}]),
            Request({**USER, "history": [-1], "actions": [0]}, [{**ITEM, "tags": [0]}]),
        ]
    )
    expected = encode(
        [
            Request(USER, [{**ITEM, "tags": [1]}]),
            Request({**USER, "history": [], "actions": []}, [{**ITEM, "tags": []}]),
        ]
    )
    assert {name: values.tolist() for name, values in found.items()} == {
        name: values.tolist() for name, values in expected.items()
    }


def test_inputs_have_the_promised_types_shapes_and_limits(encode: RequestEncoder) -> None:
    none = {
        "age": None,
        "city": None,
        "income": None,
        "history": None,
        "actions": None,
        "hour": None,
        "user": 5,
    }
    found = encode(
        [
            Request(USER, [ITEM] * 3),
            Request(none, [{"item": None, "tags": None}, {"item": -5, "tags": [77]}]),
        ]
    )
    assert found["candidate.user"].tolist() == [0, 0, 0, 1, 1]
    for spec in input_specs(encode.schema, encode.encoders.num_rows):
        value = found[spec.name]
        assert str(value.dtype) == spec.dtype
        sizes = [
            {"users": 2, "candidates": 5, "tags.width": 2}.get(size, size) for size in spec.shape
        ]
        assert list(value.shape) == sizes
        assert spec.low is None or value.min() >= spec.low
        assert spec.high is None or value.max() <= spec.high
    assert (
        found["city"][1] == 1 and found["item"][3:].tolist() == [1, 0] and found["income"][1] == 0
    )
    assert encode([Request(none, [])])["tags"].shape == (0, 1)


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"age": "old"}, {}, "user: column 'age' should hold one integer or null"),
    ({"age": 1.5}, {}, "user: column 'age' should hold one integer or null"),
    ({"age": 2**70}, {}, "user: column 'age' should hold one integer or null"),
    ({"age": True}, {}, "user: column 'age' should hold one integer or null"),
    ({"city": 3}, {}, "user: column 'city' should hold one string or null"),
    ({"history": 3}, {}, "user: column 'history' should hold a list of integer values or null"),
    ({"history": [[1]]}, {}, "user: column 'history' should hold a list of integer values or null"),
    ({"income": "much"}, {}, "user: column 'income' should hold one number or null"),
    ({"income": float("nan")}, {}, "user: column 'income' should be finite, received nan"),
    (
        {"actions": [1]},
        {},
        "user 0: column 'actions' should be as long as 'history' in every row, received 1 "
        "actions on 2 items",
    ),
    (
        {"colour": 1},
        {},
        "user: column 'colour' is none of this model's; it knows actions, age, city",
    ),
    ({"item": 1}, {}, "user: column 'item' is none of this model's"),
    ({}, {"item": "x"}, "candidate: column 'item' should hold one integer or null"),
    ({}, {"age": 1}, "candidate: column 'age' is none of this model's; it knows item, tags"),
]


@pytest.mark.parametrize(
    ("user", "item", "message"), BAD, ids=[message[:40] for *_, message in BAD]
)
def test_a_bad_value_is_named(
    encode: RequestEncoder, user: dict[str, Any], item: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        encode([Request(USER | user, [ITEM, ITEM | item])])
    assert message in str(error.value)


@pytest.mark.parametrize("column", ["age", "history", "income"])
def test_a_missing_column_is_named(encode: RequestEncoder, column: str) -> None:
    without = {name: value for name, value in USER.items() if name != column}
    with pytest.raises(
        ValueError, match=f"user 1 should have a value of column '{column}', or null, received none"
    ):
        encode([Request(USER, [ITEM]), Request(without, [ITEM])])
