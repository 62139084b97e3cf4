"""Values that an evaluation would refuse are told before the training, in the last row too."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.config import Config
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.every_kind import every_kind, write_data

LAST = 69
"""Row of the test rows; it is the 20th of the second row group."""
BAD: dict[str, tuple[Any, str]] = {
    "clicked": (None, "column 'clicked' should be 0 or 1, received null in row 19"),
    "weight": (-1.0, "column 'weight' should hold weights, .* received -1 in row 19"),
    "paid": (2, r"column 'paid' \(a task's label\) should be 0, 1 or null, received 2 in row 19"),
    "income": (float("inf"), "column 'income' should .* received inf in row 19"),
    "relevance": ([1.0] * 7, "column 'relevance' should be as long as 'tags' in every row"),
    "content": ([1.0], "column 'content' should hold vectors of .* numbers, received 1 in row 19"),
    "actions": ([1] * 77, "row 19: .*77"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of every kind."""
    root = tmp_path_factory.mktemp("bad")
    write_data(root)
    return root


def with_last(table: pa.Table, name: str, value: Any) -> pa.Table:
    values = table[name].to_pylist()
    values[LAST] = value
    kind = pa.list_(pa.float32()) if name == "content" else table[name].type
    return table.set_column(table.column_names.index(name), name, pa.array(values, kind))


@pytest.mark.parametrize("column", BAD)
def test_a_bad_value_of_the_last_test_row_ends_the_run_before_it_trains(
    root: Path, tmp_path: Path, column: str
) -> None:
    value, message = BAD[column]
    table = pq.read_table(root / "test" / "b.parquet")
    pq.write_table(with_last(table, column, value), root / f"{column}.parquet", row_group_size=50)
    tree = every_kind(root, data={"test": f"{column}.parquet"})
    with pytest.raises(ValueError, match=f"{column}.parquet, row group 1.*{message}"):
        train(Config.model_validate(tree), RunDir(tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
