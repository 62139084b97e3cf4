"""Policy ``hash``: the row of an id is its hash modulo the rows."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from mail_torchrec.data.ids.hash import HashedIds
from mail_torchrec.data.ids.hashing import hash64
from tests.data.ids.test_vocabulary import INTEGERS


@given(INTEGERS, st.integers(3, 50))
def test_hashed_ids_are_the_hash_modulo_the_rows(ids: list[int | None], num_rows: int) -> None:
    array = pa.array(ids, pa.int64())
    words = hash64(array, "table").tolist()
    found = HashedIds("table", num_rows).encode(array).tolist()
    assert found == [
        1 if x is None else 2 + word % (num_rows - 2) for x, word in zip(ids, words, strict=True)
    ]


def test_two_hashed_tables_collide_differently() -> None:
    ids = pa.array(range(1000))
    one, other = (HashedIds(table, 100).encode(ids) for table in ("one", "other"))
    assert np.mean(one == other) < 0.05
