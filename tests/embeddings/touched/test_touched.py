"""Touched rows: all that changed, on any ranks and plan, and what is read again of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mail_torchrec.checkpoint.storage import write_tensors
from mail_torchrec.checkpoint.touched import load_touched, read_touched
from mail_torchrec.config import Config
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.source import Source
from mail_torchrec.embeddings.touched.rows import TOUCHED
from mail_torchrec.optim.moving_rows import mark_moving_rows
from mail_torchrec.train.assembly import AssembledModel, assemble
from mail_torchrec.train.state import model_state, optimizer_state, run_state
from tests.checkpoint.test_reshard import whole
from tests.support.ranks import run_ranks
from tests.support.small_rows import config_tree, write_rows

ROWS, COLUMNS = {"sharding_types": ["row_wise"]}, {"sharding_types": ["column_wise"]}
TABLE_WISE = {"sharding_types": ["table_wise"], "min_partition": 4}
PLANS: dict[str, dict[str, Any]] = {
    "one": TABLE_WISE | {"constraints": {"item": ROWS, "item_output": COLUMNS, "hour": COLUMNS}},
    "another": TABLE_WISE | {"constraints": {"item": COLUMNS, "item_output": ROWS, "tags": ROWS}},
}
"""The other tables are table-wise."""
Flags = dict[str, Tensor]


def build(root: Path, sharding: dict[str, Any], **train: Any) -> tuple[AssembledModel, list[Batch]]:
    """A model with an output table that records, and this rank's batches of 5 rows."""
    tree = config_tree(root, train=train, sharding=sharding)
    tree["model"] = {
        "tower": "dmr",
        "tower_options": {"num_negatives": 2, "hidden_dims": [4]},
        "zero_shot": None,
    }
    config = Config.model_validate(tree)
    source = Source(config.data.path("train"), config.schema_)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    assembled = assemble(config, encoders, torch.device("cpu"), records_touched=True)
    ranks = RankInfo(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else None
    reader = Reader(
        source,
        config.schema_,
        encoders,
        assembled.feature_tables,
        config.data,
        rank_info=ranks or RankInfo(0, 1),
        batch_size=5,
        shuffle=True,
        seed=1,
    )
    return assembled, list(reader)


def steps(assembled: AssembledModel, batches: list[Batch]) -> Flags:
    """Trains on batches; the rows that their ids name, by table."""
    of_features = assembled.feature_tables.pooled | assembled.feature_tables.unpooled
    found = {table: torch.zeros(1024, dtype=torch.bool) for table in of_features.values()}
    for batch in batches:
        for features in (batch.pooled, batch.unpooled):
            for name in features.keys():
                found[of_features[name]][features[name].values()] = True
    left = iter(batches)
    for _ in batches:
        assembled.pipeline.progress(left)
    return found


def learned(assembled: AssembledModel) -> dict[str, Tensor]:
    state = model_state(assembled) | optimizer_state(assembled)
    return whole(state) if dist.is_initialized() else {k: v.clone() for k, v in state.items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor], table: str) -> Tensor:
    """Rows [R] of a table whose weights or state differ."""
    found = torch.zeros(1024, dtype=torch.bool)
    for key, value in after.items():
        if f".{table}." in key and len(value.shape) and len(value) == 1024:
            found |= (value != before[key]).view(1024, -1).any(dim=1)
    return found


def recorded(assembled: AssembledModel) -> Flags:
    """Flags of all ranks together."""
    assert assembled.touched is not None
    state = assembled.touched.state
    found = whole(state) if dist.is_initialized() else state
    return {key.removeprefix(TOUCHED): value.bool() for key, value in found.items()}


def together(flags: Flags) -> Flags:
    for value in flags.values():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return flags


def every_plan(root: str, out: str) -> None:
    """Records under each plan what was looked up, saves it, and reads it under the other one."""
    models = {name: build(Path(root), sharding) for name, sharding in PLANS.items()}
    for (name, (assembled, batches)), (other, _) in zip(
        models.items(), reversed(models.values()), strict=True
    ):
        before, looked_up = learned(assembled), together(steps(assembled, batches[:2]))
        with torch.no_grad(), assembled.evaluating():
            assembled.pipeline.progress(iter(batches[2:3]))
        found, after = recorded(assembled), learned(assembled)
        assert found.keys() == looked_up.keys()
        for table, flags in found.items():
            assert torch.equal(flags, looked_up[table]), (name, table)
            moved = changed(before, after, table)
            assert moved.any() and not (moved & ~flags).any(), (name, table)
        assert not found["item"].all()
        folder = Path(out) / name
        write_tensors(run_state(assembled), folder, dist.group.WORLD)
        read = read_touched(folder)
        assert all(np.array_equal(read[table], flags) for table, flags in found.items())
        assert other.touched is not None
        load_touched(other.touched, folder)
        assert all(torch.equal(x, found[table]) for table, x in recorded(other).items())
        other.touched.mark("item_output", np.array([1000, 3]))
        assert recorded(other)["item_output"][[3, 1000]].all()
        for flags in other.touched.state.values():
            for shard in flags.local_shards():
                shard.tensor.zero_()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rows")
    write_rows(root / "train/a.parquet", 60, seed=1)
    return root


@pytest.mark.distributed
@pytest.mark.slow
def test_on_two_ranks_each_plan_records_what_was_looked_up_and_reads_that_of_another(
    tmp_path: Path, root: Path
) -> None:
    """No evaluation's lookups, no others, and no changed row is missing."""
    run_ranks(2, every_plan, tmp_path / "ranks", str(root), str(tmp_path))


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
def test_of_whole_tables_no_changed_row_is_missing(root: Path, optimizer: str) -> None:
    """Adam moves the rows of earlier steps too, without looking them up."""
    assembled, batches = build(root, {"enabled": False}, tables={"name": optimizer})
    assert assembled.touched is not None
    steps(assembled, batches[:1])
    for flags in assembled.touched.state.values():
        flags.zero_()
    mark_moving_rows(assembled.optimizer, assembled.touched)
    before, looked_up = learned(assembled), steps(assembled, batches[1:2])
    after = learned(assembled)
    for table, flags in recorded(assembled).items():
        moved = changed(before, after, table)
        assert moved.any() and not (moved & ~flags).any(), table
        assert torch.equal(flags, looked_up[table]) or optimizer == "adam", table


def test_decay_of_whole_tables_touches_all_rows_and_frozen_tables_have_none(root: Path) -> None:
    decay = {"name": "adam", "weight_decay": 0.1}
    assembled, batches = build(
        root, {"enabled": False}, tables=decay, freeze=["tables.item", "tables.hour"]
    )
    assert assembled.touched is not None
    mark_moving_rows(assembled.optimizer, assembled.touched)
    steps(assembled, batches[:1])
    found = {table for table, flags in recorded(assembled).items() if flags.all()}
    none = {table for table, flags in recorded(assembled).items() if not flags.any()}
    assert found | none == recorded(assembled).keys() and none >= {"item", "hour"}


def test_a_checkpoint_without_records_counts_all_rows_as_touched_and_tells_none(
    root: Path, tmp_path: Path
) -> None:
    assembled, _ = build(root, {"enabled": False}, tables={"name": "sgd"})
    assert assembled.touched is not None
    write_tensors(model_state(assembled), tmp_path / "without")
    with pytest.raises(ValueError, match=r"does not say.*checkpoint\.touched_rows=true"):
        read_touched(tmp_path / "without")
    load_touched(assembled.touched, tmp_path / "without")
    assert all(flags.all() for flags in recorded(assembled).values())
