"""A row group costs the memory of its pieces, and counts of ids that of few of them."""

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.data import fitting
from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.collectives import rank
from mail_torchrec.vocabularies.reading import read_over_ranks
from tests.support.ranks import run_ranks

SCHEMA = {
    "columns": {
        "user": {"group": "group_key"},
        "clicked": {"group": "label"},
        "income": {"group": "attribute", "kind": "numeric"},
        "age": {"group": "attribute"},
        "history": {"group": "behaviour", "kind": "list", "table": "item"},
        "hour": {"group": "context"},
        "item": {"group": "item"},
    }
}
NUM_ROWS, LENGTH = 300_000, 20


def fit(path: str) -> tuple[int, int]:
    """Returns the peak of memory of the fitting, and on rank 0 the number of items."""
    fitting._MANY_ROWS = 2**16
    schema = Schema.model_validate(SCHEMA)
    source = Source(path, schema)
    tracemalloc.start()
    fitter = read_over_ranks(source, schema, ColdStartSettings())
    peak = tracemalloc.get_traced_memory()[1] + pa.default_memory_pool().max_memory()
    num_rows = 0 if rank() else fitter.encoders(None).num_rows["item"]
    return peak, num_rows


@pytest.mark.distributed
def test_ranks_share_a_row_group_and_none_holds_it(tmp_path: Path) -> None:
    """One row group of 300,000 rows, of two ranks that read half of it each."""
    numbers = np.arange(NUM_ROWS)
    offsets = pa.array(np.arange(NUM_ROWS + 1, dtype=np.int32) * LENGTH)
    items = pa.array(np.arange(NUM_ROWS * LENGTH) % 1000)
    columns = {"user": numbers, "clicked": numbers % 2, "income": numbers / 7, "age": numbers % 9}
    columns |= {"hour": numbers % 24, "item": numbers % 1000}
    table = pa.table(columns | {"history": pa.ListArray.from_arrays(offsets, items)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=NUM_ROWS)
    found = run_ranks(2, fit, tmp_path / "ranks", str(tmp_path / "a.parquet"))
    assert [num_items for _, num_items in found] == [1002, 0]
    assert max(peak for peak, _ in found) < table.nbytes / 2
