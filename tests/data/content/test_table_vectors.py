"""Vectors that a table begins with: rows by id, what is passed over, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.data.content.table_vectors import TableVectors
from mail_torchrec.data.ids.vocabulary import Vocabulary
from mail_torchrec.data.schema.columns import VectorFileSettings

SETTINGS = VectorFileSettings(path="items.parquet", id="item", vector="content")
KNOWN = Vocabulary(pa.array([7, 5, 9, 4]), np.ones(4, np.int64))


def vectors_of(folder: Path, ids: Any, vectors: Any, encoder: Vocabulary = KNOWN) -> TableVectors:
    path = folder / "items.parquet"
    pq.write_table(pa.table({"item": ids, "content": vectors}), path, row_group_size=2)
    return TableVectors("item", str(path), SETTINGS, encoder, 2)


def test_known_ids_have_their_vectors_and_others_are_counted(tmp_path: Path) -> None:
    values = [[1.0, 2.0], [3.0, 4.0], None, [5.0, 6.0]]
    found = vectors_of(tmp_path, [9, 1, 4, 7], values)
    rows, vectors = (np.concatenate(parts) for parts in zip(*found, strict=True))
    assert rows.tolist() == [4, 2]  # the first value of a vocabulary has row 2
    assert vectors.tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert found.summary.startswith("2 of 4 ids begin with their vector of '")
    assert "the others at random; 1 ids of the file are none of the table's; " in found.summary
    assert found.summary.endswith("root mean square of their numbers: 4.06")


def test_vectors_are_scaled_where_told(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"scale": 0.1})
    vectors_of(tmp_path, [7], [[0.0, 1.0]])
    found = TableVectors("item", str(tmp_path / "items.parquet"), settings, KNOWN, 2)
    [(_, vectors)] = found
    assert vectors.tolist() == [[0.0, np.float32(0.1)]]
    assert "scale" not in SETTINGS.model_dump()


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        ([7, 5, 7], [[0.0, 1.0]] * 3, "column 'item' should hold each id once, received 7 .*row 2"),
        ([7, 7], [[0.0, 1.0]] * 2, "column 'item' should hold each id once, received 7 .*row 1"),
        ([7, 5, None], [[0.0, 1.0]] * 3, "column 'item' should not be null, .*row 2; drop"),
        ([7, 5, 9], [[0.0, 1.0]] * 2 + [[0.0]], "vectors of 2 numbers, received 1 in row 2.*dim"),
        ([7, 5, 9], [[0.0, 1.0]] * 2 + [[0.0, float("nan")]], "finite .* element 1 of row 2"),
        ([1, 2], [[0.0, 1.0]] * 2, r"init_from: none of the 2 ids with a vector in '.*' is one of"),
        (["a"], [[0.0, 1.0]], "column 'item': ids should be int64, as in the training data"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, ids: list[Any], vectors: list[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        list(vectors_of(tmp_path, ids, vectors))


def test_a_missing_column_is_named_with_the_setting(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"vector": "image"})
    vectors_of(tmp_path, [7], [[0.0, 1.0]])
    with pytest.raises(ValueError, match=r"'image' is missing .*schema\.tables\.item\.init_from"):
        TableVectors("item", str(tmp_path / "items.parquet"), settings, KNOWN, 2)
