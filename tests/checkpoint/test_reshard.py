"""Any number of ranks and any plan restores a checkpoint of any other.

Weights are always exact; optimizer state is exact or refused by name.
"""

import os
from collections.abc import Set
from datetime import timedelta
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from mail_torchrec.checkpoint.folder import Checkpoints
from mail_torchrec.checkpoint.manifest import CheckpointManifest, LogPosition, RankProgress
from mail_torchrec.checkpoint.writer import Snapshot, write_checkpoint
from mail_torchrec.config import Config
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.partition import DataPosition, RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.source import Source
from mail_torchrec.train.assembly import AssembledModel, assemble, table_keys
from mail_torchrec.train.state import model_state, optimizer_state, restore, run_state
from tests.support.ranks import run_ranks
from tests.support.small_rows import SCHEMA, config_tree, write_rows

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

RANKS = (4, 3, 2, 1)  # TorchRec compares the ranks once a process: the first time with all of them
# Two column shards, or four.
PLANS: dict[str, dict[str, Any]] = {
    "table_wise": {"sharding_types": ["table_wise"]},
    "row_wise": {"sharding_types": ["row_wise"]},
    "column_wise": {"sharding_types": ["column_wise"], "min_partition": 8},
}
Resharding = tuple[int, str, int, str]
"""Ranks and plan that saved, ranks and plan that read."""

EVERY: set[Resharding] = {
    (*saved, *read) for saved in product(RANKS, PLANS) for read in product(RANKS, PLANS)
}


def pairwise() -> set[Resharding]:
    """16 of the 144 that have each pair of ranks and plans, by an orthogonal array over GF(4)."""
    plans, doubled = [*PLANS, "column_wise"], (0, 2, 3, 1)
    return {
        (RANKS[a], plans[a ^ b], RANKS[b], plans[a ^ doubled[b]])
        for a, b in product(range(4), repeat=2)
    }


TABLES = {"age", "city", "hour", "tags", "actions", "item"}


def build(
    root: str, plan: str, optimizer: str, seed: int
) -> tuple[AssembledModel, dict[str, str], Any]:
    """A small model, its tables and this rank's batches; another seed begins with other weights."""
    model = {
        "tower": "base_dnn",
        "tower_options": {"hidden_dims": [4], "dropout": 0.0},
        "zero_shot": None,
    }
    train = {"seed": seed, "tables": {"name": optimizer}}
    tree = config_tree(
        Path(root), schema=SCHEMA | {"dim": 16}, model=model, train=train, sharding=PLANS[plan]
    )
    config = Config.model_validate(tree)
    source = Source(config.data.path("train"), config.schema_)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    assembled = assemble(config, encoders, torch.device("cpu"))
    rank_info = RankInfo(dist.get_rank(), dist.get_world_size())
    reader = Reader(
        source,
        config.schema_,
        encoders,
        assembled.feature_tables,
        config.data,
        rank_info=rank_info,
        batch_size=20,
        shuffle=True,
        seed=seed,
    )
    return assembled, table_keys(config, assembled.feature_tables, encoders), iter(reader)


def whole(state: dict[str, Any]) -> dict[str, Tensor]:
    """The state of all ranks put together from its shards, without DCP."""
    # As arrays, which are pickled much faster than tensors.
    mine = {}
    for key, value in state.items():
        if isinstance(value, ShardedTensor):
            mine[key] = (
                [
                    (shard.metadata.shard_offsets, shard.tensor.numpy(force=True))
                    for shard in value.local_shards()
                ],
                value.metadata().size,
            )
        else:
            mine[key] = [([0] * value.dim(), value.numpy(force=True))], value.shape
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    found: dict[str, Tensor] = {}
    for part in parts:
        for key, (shards, size) in part.items():
            for offsets, array in shards:
                target = found.setdefault(key, torch.full(size, float("nan"), dtype=torch.float64))
                target[
                    tuple(
                        slice(start, start + length)
                        for start, length in zip(offsets, array.shape, strict=True)
                    )
                ] = torch.from_numpy(array).double()
    assert not any(tensor.isnan().any() for tensor in found.values())
    return found


def learned(assembled: AssembledModel) -> dict[str, Tensor]:
    return whole(model_state(assembled) | optimizer_state(assembled))


def columns(assembled: AssembledModel) -> dict[str, int]:
    """Table -> its column shards."""
    modules = assembled.plan.plan.values()  # type: ignore[union-attr]
    return {
        table: len({shard.shard_offsets[1] for shard in parameter.sharding_spec.shards})
        for module in modules
        for table, parameter in module.items()
    }


def all_worlds(root: str, folder: str, optimizer: str, reshardings: Set[Resharding]) -> list[str]:
    """Saves from every number of ranks and plan, reads the given pairs; lists the refusals."""
    me = dist.get_rank()
    dist.destroy_process_group()
    refused: list[str] = []
    for task in (save_all, load_all):
        for num_ranks in RANKS:
            if me < num_ranks:
                os.environ["LOCAL_WORLD_SIZE"] = str(num_ranks)
                rendezvous = f"file://{folder}/{task.__name__}{num_ranks}"
                dist.init_process_group(
                    "gloo",
                    init_method=rendezvous,
                    rank=me,
                    world_size=num_ranks,
                    timeout=timedelta(minutes=5),
                )
                refused += task(root, Path(folder), optimizer, num_ranks, reshardings)
                dist.destroy_process_group()
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/end", rank=me, world_size=max(RANKS)
    )
    dist.barrier()
    return refused


def save_all(
    root: str, folder: Path, optimizer: str, num_ranks: int, reshardings: Set[Resharding]
) -> list[str]:
    for plan in PLANS:
        assembled, _, batches = build(root, plan, optimizer, seed=num_ranks)
        for _ in range(2):
            assembled.pipeline.progress(batches)
        manifest = CheckpointManifest(
            step=2,
            position=DataPosition(epoch=0),
            progress=LogPosition(steps_since_report=0, log_bytes=0),
            ranks=[RankProgress()],
            written="",
            config_name="",
            versions={},
            num_rows=0,
            data=(),
            vocabularies={},
        )
        group = dist.new_group(backend="gloo")
        place = Checkpoints(folder / f"{num_ranks}-{plan}")
        snapshot = Snapshot(
            2, run_state(assembled), RankProgress(), lambda _, made=manifest: made, {}
        )
        write_checkpoint(place, snapshot, keep=1, group=group)
        found = learned(assembled)
        if dist.get_rank() == 0:
            torch.save((found, columns(assembled)), folder / f"{num_ranks}-{plan}.pt")
    return []


def load_all(
    root: str, folder: Path, optimizer: str, num_ranks: int, reshardings: Set[Resharding]
) -> list[str]:
    refused = []
    for plan in PLANS:
        assembled, tables, batches = build(root, plan, optimizer, seed=9)
        fresh = learned(assembled)
        for ranks_there, plan_there, ranks_here, plan_here in sorted(reshardings):
            if (ranks_here, plan_here) != (num_ranks, plan):
                continue
            source = folder / f"{ranks_there}-{plan_there}.pt"
            expected, columns_there = torch.load(source, weights_only=True)
            [checkpoint] = Checkpoints(source.with_suffix("")).published()
            here = columns(assembled)
            torn = (
                {table for table in TABLES if columns_there[table] != here[table]}
                if optimizer == "rowwise_adagrad"
                else set()
            )
            if torn:
                with pytest.raises(ValueError, match="does not fit") as error:
                    restore(assembled, checkpoint, 2, tables, set())
                refused.append(f"{source.stem} -> {num_ranks}-{plan}: {error.value}")
                for table in torn:
                    assert (
                        f"{table}.momentum1" in str(error.value)
                        and table in str(error.value).partition("restart_state=[")[2]
                    )
            restore(assembled, checkpoint, 2, tables, torn)
            found = learned(assembled)
            assert found.keys() == fresh.keys()
            for key, value in found.items():
                restarted = any(key.endswith(f".{table}.momentum1") for table in torn)
                if not restarted:
                    assert torch.equal(value, expected[key]), (source.stem, num_ranks, plan, key)
            assert not torn or expected.keys() == found.keys()
        assembled.pipeline.progress(batches)  # what was read can be trained on
    return refused


def test_the_pairwise_cover_has_every_pair() -> None:
    for one, other in combinations(range(4), 2):
        pairs = [{(found[one], found[other]) for found in cover} for cover in (pairwise(), EVERY)]
        assert pairs[0] == pairs[1]


@pytest.mark.parametrize(
    ("optimizer", "reshardings"),
    [
        pytest.param("adagrad", pairwise(), id="adagrad"),
        pytest.param("rowwise_adagrad", pairwise(), id="rowwise_adagrad"),
        pytest.param("adagrad", EVERY, id="adagrad-all", marks=pytest.mark.long),
    ],
)
def test_from_any_ranks_and_plan_to_any_other(
    tmp_path: Path, optimizer: str, reshardings: Set[Resharding]
) -> None:
    """Every pair of ranks and plans of both optimizers; CI does all of the one that keeps all."""
    write_rows(tmp_path / "rows/train/a.parquet", 200, seed=1)
    (tmp_path / "out").mkdir()
    refused = run_ranks(
        max(RANKS),
        all_worlds,
        tmp_path / "ranks",
        str(tmp_path / "rows"),
        str(tmp_path / "out"),
        optimizer,
        reshardings,
    )[0]
    if optimizer == "adagrad":
        assert not refused
    else:  # one number a row and column shard: from and to column-wise only
        assert len(refused) >= 8 and all("column_wise" in line for line in refused)
        assert "checkpoint.restart_state=[" in refused[0] and "sharding.constraints" in refused[0]
