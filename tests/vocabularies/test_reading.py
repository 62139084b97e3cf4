"""All ranks together fit the encoders that one rank fits, to the bit."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.data import fitting, source
from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.fitting import RowObserver
from mail_torchrec.data.ids import counts
from mail_torchrec.data.list_shapes import ListShapes
from mail_torchrec.data.new_users import NewUserCounter
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.settings import DataSettings
from mail_torchrec.data.source import Source
from mail_torchrec.data.weights.weight_sum import WeightSum
from mail_torchrec.distributed.collectives import rank
from mail_torchrec.vocabularies import exchange
from mail_torchrec.vocabularies.reading import read_over_ranks
from tests.support.every_kind import SCHEMA_OF_ALL, write_every_kind
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.distributed

TREE: dict[str, Any] = SCHEMA_OF_ALL | {
    "columns": SCHEMA_OF_ALL["columns"] | {"padded": {"group": "context", "kind": "list"}},
    "tables": SCHEMA_OF_ALL["tables"]
    | {
        "age": {"min_count": 45},
        "shelf": {"ids": "managed", "rows": 20, "fallback_rows": 4},
        "tags": {"rows": 4},
    },
}
"""Every id policy, numbers and vectors."""
NUM_ROWS = 240
FEW_BYTES, MANY_BYTES = 500, 2**27


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows in small row groups and in one."""
    folder = tmp_path_factory.mktemp("rows")
    write_every_kind(folder / "rows.parquet", NUM_ROWS, seed=1)
    table = pq.read_table(folder / "rows.parquet")
    table = table.append_column("padded", pa.array([[i % 17, i % 3, 0] for i in range(NUM_ROWS)]))
    for name, size in (("small", 31), ("one", NUM_ROWS)):
        (folder / name).mkdir()
        pq.write_table(table, folder / name / "a.parquet", row_group_size=size)
    return folder


def fit(path: str, out: str, num_bytes: int) -> Any:
    """Fits and saves the encoders; returns what the observers saw, or the error."""
    source.PIECE_ROWS, fitting._HELD_BYTES = 7, num_bytes
    counts._MERGED_BYTES = exchange._ROUND_BYTES = num_bytes
    schema, settings = Schema.model_validate(TREE), DataSettings(new_user_max_behaviours=2)
    users, shapes, weights = NewUserCounter(settings), ListShapes(schema), WeightSum(schema)
    cold_start = ColdStartSettings(hide_share=0.3)
    try:
        observers: list[RowObserver] = [users, shapes, weights]
        fitter = read_over_ranks(Source(path, schema), schema, cold_start, observers)
    except ValueError as error:
        return str(error)
    if not rank():
        fitter.encoders(None).save(Path(out))
    return users.num_new, users.num_rows, shapes.warnings(), weights._sum


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def of_one_rank(root: Path) -> dict[str, Any]:
    """Files and observations of one rank, whose counts stay in memory."""
    results: dict[str, Any] = {}
    for name in ("small", "one"):
        [seen] = run_ranks(
            1, fit, root / f"{name}1", str(root / name), str(root / f"{name}1/out"), MANY_BYTES
        )
        results[name] = files(root / f"{name}1/out"), seen
    return results


@pytest.mark.parametrize(
    ("ranks", "rows", "num_bytes"),
    [(2, "small", MANY_BYTES), (3, "one", FEW_BYTES), (1, "one", FEW_BYTES)],
)
def test_ranks_fit_what_one_rank_fits_to_the_bit(
    root: Path, of_one_rank: dict[str, Any], tmp_path: Path, ranks: int, rows: str, num_bytes: int
) -> None:
    """With row groups for all ranks, and with one, on disk, in many rounds."""
    seen, *_ = run_ranks(ranks, fit, tmp_path, str(root / rows), str(tmp_path / "out"), num_bytes)
    expected, seen_by_one = of_one_rank[rows]
    assert files(tmp_path / "out") == expected
    assert {"shelf.parquet", "age.parquet", "income_bucket.edges.json"} <= expected.keys()
    assert seen[:3] == seen_by_one[:3] and "lists end with 0" in seen[2][0]
    assert seen[3] == pytest.approx(seen_by_one[3])


def _with(root: Path, folder: Path, column: str, row: int, value: Any) -> str:
    """Writes the rows of one row group with another value in one of them."""
    table = pq.read_table(root / "one" / "a.parquet")
    values = table[column].to_pylist()
    values[row] = value
    place = table.column_names.index(column)
    table = table.set_column(place, column, pa.array(values, table.schema.field(column).type))
    pq.write_table(table, folder / "a.parquet")
    return str(folder / "a.parquet")


def test_a_bad_number_is_named_on_every_rank_with_its_row(root: Path, tmp_path: Path) -> None:
    path = _with(root, tmp_path, "weight", 200, -1.0)
    found = run_ranks(2, fit, tmp_path / "ranks", path, str(tmp_path / "out"), MANY_BYTES)
    assert found[0] == found[1]
    assert found[0].startswith(f"{path}, row group 0: column 'weight' should hold")
    assert "received -1 in row 200 of its row group" in found[0]


def test_vectors_of_two_lengths_are_named_with_both_places(root: Path, tmp_path: Path) -> None:
    """Each rank sees vectors of one length alone."""
    table = pq.read_table(root / "one" / "a.parquet")
    half = NUM_ROWS // 2
    longer = [None if v is None else [*v, 1.0] for v in table["weather"].to_pylist()[half:]]
    place = table.column_names.index("weather")
    second = table.slice(half).set_column(place, "weather", pa.array(longer))
    for name, rows in (("a", table.slice(0, half)), ("b", second)):
        pq.write_table(rows, tmp_path / f"{name}.parquet")
    out = tmp_path.with_name("ranks")
    found = run_ranks(2, fit, out, str(tmp_path), str(out / "out"), MANY_BYTES)
    assert found[0] == found[1]
    assert found[0].startswith(
        f"{tmp_path}/b.parquet, row group 0: column 'weather' should hold vectors of 2 numbers, "
        f"as in {tmp_path}/a.parquet, row group 0, received 3; give all rows vectors of one length"
    )
