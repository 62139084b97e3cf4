"""Columns of vectors: values in any container, scales, and the values that are refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.content.vector_scales import VectorMoments
from mail_torchrec.data.content.vector_values import vector_values
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import PIECE_ROWS, Source
from tests.support.plain import TREE, TYPES, row

ROWS = [[1.0, -2.5], None, [3.0, 4.5], [0.5, 0.0]]
CONTAINERS = {
    "list of float16": pa.list_(pa.float16()),
    "list of float64": pa.list_(pa.float64()),
    "large list": pa.large_list(pa.float32()),
    "fixed size": pa.list_(pa.float32(), 2),
    "fixed size of float16": pa.list_(pa.float16(), 2),
    "view": pa.list_view(pa.float32()),
    "large view": pa.large_list_view(pa.float64()),
    "dictionary": pa.list_(pa.dictionary(pa.int8(), pa.float32())),
    "tensor": pa.fixed_shape_tensor(pa.float32(), [2]),
}


def column(kind: pa.DataType) -> pa.ChunkedArray:
    """The rows in two chunks."""
    storage = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    half = storage.value_type == pa.float16()
    rows: list[Any] = [None if v is None else np.float16(v) if half else v for v in ROWS]
    values = [pa.array([None if v is None else list(v) for v in rows], storage)]
    if isinstance(kind, pa.BaseExtensionType):
        values = [pa.ExtensionArray.from_storage(kind, part) for part in values]
    return pa.chunked_array([values[0][:2], values[0][2:]])


@pytest.mark.parametrize("kind", CONTAINERS.values(), ids=CONTAINERS.keys())
@pytest.mark.parametrize("length", [None, 2])
def test_vectors_are_the_same_in_every_container(kind: pa.DataType, length: int | None) -> None:
    expected = np.array([[math.nan] * 2 if v is None else v for v in ROWS])
    for start in (0, 1, 3):
        found = vector_values(column(kind).slice(start), length, file="f", name="v")
        np.testing.assert_array_equal(found, expected[start:])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 2.0], [3.0]], "vectors of 2 numbers, received 1 in row 1 of its row group; give"),
        ([None, [], [3.0]], "vectors of 1 numbers, received 0 in row 1 of its row group; give"),
        ([[1.0, math.nan]], "finite numbers .* received nan in element 1 of row 0 of its row"),
        ([None, [-math.inf, 0.0]], "finite numbers .* received -inf in element 0 of row 1 .*null"),
        ([[1.0], [None]], "finite numbers .* received null in element 0 of row 1 of its row group"),
        ([[1e39]], r"finite numbers of 32 bits, received 1e\+39 in element 0 of row 0 of its row"),
    ],
)
def test_a_bad_vector_is_named_with_its_file_row_and_column(
    tmp_path: Path, rows: list[Any], message: str
) -> None:
    schema = schema_with({"group": "item", "kind": "vector"})
    file = write_vectors(tmp_path, pa.array(rows, pa.list_(pa.float64())))
    with pytest.raises(ValueError, match=f"{file}, row group 0: column 'v' should hold {message}"):
        fit(file, schema)


def test_all_files_have_vectors_of_numbers_and_of_one_length(tmp_path: Path) -> None:
    schema = schema_with({"group": "context", "kind": "vector", "length": 3})
    message = "column 'v' should hold vectors of 3 numbers, received 2 in row 0"
    with pytest.raises(ValueError, match=message):
        fit(write_vectors(tmp_path, pa.array([[1.0, 2.0]])), schema)
    with pytest.raises(ValueError, match=r"column 'v' should be a list of numbers, found list<"):
        fit(write_vectors(tmp_path, pa.array([["a", "b"]])), schema)
    with pytest.raises(ValueError, match="column 'v' should hold a vector in the training data"):
        fit(write_vectors(tmp_path, pa.array([None, None], pa.list_(pa.float32()))), schema)


def test_scales_are_those_of_all_rows_and_are_saved(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = random.normal([1e6, 0, 5], [1, 1e-3, 0], (PIECE_ROWS + 500, 3))
    rows: list[Any] = [None if i % 7 == 0 else v for i, v in enumerate(values.tolist())]
    schema = schema_with({"group": "attribute", "kind": "vector"})
    file = write_vectors(tmp_path, pa.array(rows))
    fit(file, schema).save(tmp_path / "saved")
    scale = Encoders.load(tmp_path / "saved", schema).vectors["v"]
    given = np.array([v for v in rows if v is not None])
    np.testing.assert_allclose(scale.mean_E, given.mean(axis=0), rtol=1e-12, atol=1e-15)
    deviations = [*given.std(axis=0)[:2], 1.0]  # the third element is a constant
    np.testing.assert_allclose(scale.deviation_E, deviations, rtol=1e-7)
    found = scale.apply(np.array([given[0], [math.nan] * 3]))
    expected = (given[0] - given.mean(axis=0)) / deviations
    np.testing.assert_allclose(found, [expected, [0, 0, 0]], rtol=1e-5, atol=1e-6)


def test_moments_do_not_depend_on_how_rows_are_split() -> None:
    values = np.random.default_rng(0).normal(3, 2, (1000, 4))
    values[::3] = math.nan
    whole, parts = VectorMoments(), VectorMoments()
    whole.add(values)
    for part in np.array_split(values, 13):
        parts.add(part)
    for name in ("mean_E", "deviation_E"):
        one, other = getattr(whole.scale(), name), getattr(parts.scale(), name)
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize(
    ("column_v", "message"),
    [
        ({"group": "behaviour", "kind": "vector"}, "should be of group 'attribute', .*init_from"),
        ({"group": "item", "kind": "vector", "table": "item"}, "looks up no table"),
        ({"group": "item", "length": 3}, "length is for kind 'vector'"),
        ({"group": "item", "kind": "vector", "column": "tags"}, "should hold vectors alone"),
    ],
)
def test_a_schema_with_an_impossible_vector_is_refused(
    column_v: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"schema\.columns\.v: .*{message}"):
        schema_with(column_v)


def test_a_table_of_hashed_ids_begins_with_no_vectors() -> None:
    hashed = {"ids": "hash", "rows": 9, "init_from": {"path": "items.parquet"}}
    with pytest.raises(ValueError, match=r"schema\.tables\.item: init_from needs ids 'vocabulary'"):
        Schema.model_validate(TREE | {"tables": {"item": hashed}})


def schema_with(column_v: dict[str, Any]) -> Schema:
    return Schema.model_validate(TREE | {"columns": TREE["columns"] | {"v": column_v}})


def write_vectors(folder: Path, vectors: pa.Array) -> Path:
    """Usual rows with these vectors, in one row group."""
    path = folder / "vectors.parquet"
    rows = pa.Table.from_pylist([row(i) for i in range(len(vectors))], TYPES)
    pq.write_table(rows.append_column("v", vectors), path)
    return path


def fit(file: Path, schema: Schema) -> Encoders:
    return fit_encoders(Source(str(file), schema), schema, ColdStartSettings())
