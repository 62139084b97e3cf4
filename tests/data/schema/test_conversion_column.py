"""The conversion column from file to batch."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.chunk import Chunk, ChunkEncoder
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.schema.feature_tables import build_feature_tables
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.settings import DataSettings
from mail_torchrec.data.source import Source
from tests.support import plain
from tests.support.plain import TYPES, row, write

SCHEMA = Schema.model_validate(
    plain.TREE | {"columns": plain.TREE["columns"] | {"bought": {"group": "conversion"}}}
)


def write_bought(folder: Path, pairs: list[tuple[float, float]], kind: pa.DataType) -> Source:
    """Rows of (click, conversion)."""
    rows = [row(i, clicked=int(click), bought=bought) for i, (click, bought) in enumerate(pairs)]
    write(folder / "a.parquet", rows, types=TYPES.append(pa.field("bought", kind)))
    return Source(str(folder), SCHEMA)


def chunk_of(source: Source) -> Chunk:
    encoder = ChunkEncoder(
        SCHEMA, fit_encoders(source, SCHEMA, ColdStartSettings()), ColdStartSettings(), 0
    )
    return encoder(source.read(source.row_groups[0]), "a")


def batches_of(
    source: Source, schema: Schema, world_size: int
) -> tuple[list[Batch], dict[str, int]]:
    """All ranks' batches, and their counts."""
    encoders, feature_tables = (
        fit_encoders(source, schema, ColdStartSettings()),
        build_feature_tables(schema, needs_match=False),
    )
    options: dict[str, Any] = {"batch_size": 3, "shuffle": False, "seed": 0}
    readers = [
        Reader(
            source,
            schema,
            encoders,
            feature_tables,
            DataSettings(),
            rank_info=RankInfo(rank, world_size),
            **options,
        )
        for rank in range(world_size)
    ]
    batches = [batch for reader in readers for batch in reader]
    counts = torch.stack([batch.counts for batch in batches]).sum(0).tolist()
    return batches, dict(zip(readers[0].count_names, counts, strict=True))


def test_it_is_read_as_it_stands_with_or_without_a_click(tmp_path: Path) -> None:
    chunk = chunk_of(write_bought(tmp_path, [(0, 0), (0, 1), (1, 0), (1, 1)], pa.float32()))
    assert chunk.labels_R.tolist() == [False, False, True, True]
    assert chunk.conversions_R.tolist() == [False, True, False, True]


def test_a_value_beside_0_and_1_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"a: column 'bought' should be 0 or 1, received 0\.5 in row 1 of its row group; drop",
    ):
        chunk_of(write_bought(tmp_path, [(1, 1), (1, 0.5)], pa.float32()))


def test_text_is_refused_when_the_files_are_opened(tmp_path: Path) -> None:
    write(
        tmp_path / "a.parquet",
        [row(bought="yes")],
        types=TYPES.append(pa.field("bought", pa.string())),
    )
    with pytest.raises(
        ValueError, match=r"column 'bought' should be a boolean or number of 0 and 1, found string"
    ):
        Source(str(tmp_path), SCHEMA)


def test_it_counts_with_a_click_alone_and_rows_without_are_counted(tmp_path: Path) -> None:
    """5 rows on 2 ranks: one is repeated with weight 0, and counted once."""
    source = write_bought(tmp_path, [(0, 0), (0, 1), (1, 0), (1, 1), (0, 1)], pa.int8())
    batches, counts = batches_of(source, SCHEMA, world_size=2)
    kept = [
        (batch.labels_B[i].item(), batch.conversions_B[i].item())
        for batch in batches
        for i in batch.weights_B.nonzero()
    ]
    assert sorted(kept) == [(0, 0), (0, 0), (0, 0), (1, 0), (1, 1)]
    assert counts["unclicked/bought"] == 2


def test_without_the_column_there_are_no_conversions(tmp_path: Path) -> None:
    (batch,), counts = batches_of(
        write_bought(tmp_path, [(1, 1), (0, 1)], pa.int8()), plain.schema(), world_size=1
    )
    assert batch.conversions_B.tolist() == [0.0, 0.0]
    assert not any("unclicked" in name for name in counts)
