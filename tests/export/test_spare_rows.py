"""Tables with spare rows: the graph finds each row at its position, whatever lies elsewhere."""

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mail_torchrec.export.onnx_graph import write_onnx
from mail_torchrec.export.spare_rows import add_spare_rows, capacity_of, spare_info
from mail_torchrec.export.table_files import (
    GatherTable,
    TableFile,
    TableFiles,
    TableType,
    convert_table,
)
from mail_torchrec.inference.tables.table_info import TableInfo
from mail_torchrec.inference.tables.table_rows import content_checksum, stored_positions

ROWS, DIM = 6, 3
TOLERANCES = {"float32": 0.0, "float16": 2e-3, "int8": 1.2e-2}
NAMES = ("one", "other")


class Lookups(nn.Module):
    """Looks one id up in each of two tables."""

    def __init__(self, tables: dict[str, TableFiles]) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: GatherTable(files) for name, files in tables.items()})

    def forward(self, one_BT: torch.Tensor, other_B: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.tables["one"](one_BT), self.tables["other"](other_B)


def values() -> NDArray[np.float32]:
    """Elements of a table and, last, its first-order weights."""
    return np.random.default_rng(0).normal(size=(ROWS, DIM + 1)).astype(np.float32)


def written(folder: Path, table_type: TableType) -> dict[str, TableFiles]:
    """Two equal tables: the exporter would merge small constants that are equal."""
    tables = {}
    for name in NAMES:
        stored = TableFile(folder / "spare_tables" / f"{name}.float32", "float32", (ROWS, DIM + 1))
        stored.create()
        stored.write_shard(torch.from_numpy(values()), 0, 0)
        tables[name] = convert_table(stored, DIM, table_type)
    return tables


def move_rows(files: TableFiles, order: NDArray[np.int64]) -> None:
    """Moves the rows to spare places, and fills the old ones with something else."""
    assert files.positions is not None
    for file in files.by_name.values():
        rows = file.rows(0, file.shape[0], "r+")
        rows[order] = rows[:ROWS].copy()
        rows[:ROWS] = 77
        del rows
    files.positions.path.write_bytes(stored_positions(order, file.shape[0]))


@pytest.mark.parametrize("table_type", ["float32", "float16", "int8"])
def test_each_row_is_found_at_its_position(tmp_path: Path, table_type: TableType) -> None:
    tables = written(tmp_path, table_type)
    before = {name: file.path.read_bytes() for name, file in tables["other"].by_name.items()}
    capacity = capacity_of(ROWS, 0.5)
    tables = add_spare_rows(tables, dict.fromkeys(NAMES, capacity), tmp_path)
    ids = torch.tensor([[4, 0], [1, 5], [2, 3]]), torch.tensor([3, 3, 1])
    program = torch.export.export(Lookups(tables), ids)
    buffers = {
        f"tables.{name}.{part}": file
        for name, files in tables.items()
        for part, file in files.buffers.items()
    }
    write_onnx(program, ["a", "b"], ["x", "y"], buffers, tmp_path / "model.onnx")
    move_rows(tables["other"], np.array([900, 31, 1024, 8, 6, 500]))
    runtime = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    found = runtime.run(None, {"a": ids[0].numpy(), "b": ids[1].numpy()})
    for rows, expected in zip(found, (values()[ids[0]], values()[ids[1]]), strict=True):
        np.testing.assert_allclose(rows, expected, rtol=0, atol=TOLERANCES[table_type])

    info = TableInfo(
        ids="hash",
        rows=ROWS,
        dim=DIM,
        files={p: str(f.path.relative_to(tmp_path)) for p, f in tables["other"].by_name.items()},
        spare=spare_info(tables["other"], tmp_path),
    )
    for part, content in before.items():  # the checksum is that of the rows in order
        expected_sum = len(content), hashlib.sha256(content).hexdigest()
        assert content_checksum(tmp_path, info, part) == expected_sum


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0" * 4, "should have 4100 bytes, found 4"),
        (np.full(1025, 1025, "<i4").tobytes(), "numbers from 0 to 1,024"),
        (np.full(1025, -1, "<i4").tobytes(), "numbers from 0 to 1,024"),
        (None, "should hold 'positions/one.int32': it is missing"),
    ],
)
def test_damaged_positions_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    tables = written(tmp_path, "float32")
    files = add_spare_rows(tables, dict.fromkeys(NAMES, 1025), tmp_path)["one"]
    assert files.positions is not None
    info = TableInfo(
        ids="hash",
        rows=ROWS,
        dim=DIM,
        files={"weight": "spare_tables/one.float32"},
        spare=spare_info(files, tmp_path),
    )
    if content is None:
        files.positions.path.unlink()
    else:
        files.positions.path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        content_checksum(tmp_path, info, "weight")
