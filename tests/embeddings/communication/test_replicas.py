"""Copies of the tables over groups of ranks (2D parallelism): gloo ranks stand for GPUs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mail_torchrec.checkpoint.storage import write_tensors
from mail_torchrec.checkpoint.touched import read_touched
from mail_torchrec.embeddings.communication.replicas import (
    ShardingGroup,
    replica_group,
    sharding_group,
)
from mail_torchrec.embeddings.constraints import check_constraints
from mail_torchrec.embeddings.hardware import PRESETS
from mail_torchrec.embeddings.initial_weights import local_shards
from mail_torchrec.embeddings.settings import ShardingSettings, TableOptimizerSettings
from mail_torchrec.embeddings.sharding import build_sharders, shard
from mail_torchrec.embeddings.sharding_plan import build_parameter_sharding
from mail_torchrec.embeddings.workload import Workload
from mail_torchrec.train.assembly import AssembledModel
from mail_torchrec.train.state import restore, run_state
from tests.distributed.test_equal_ranks import MODELS, load, train_on_ranks
from tests.embeddings.communication.test_communication import SHARDS, Small, values
from tests.embeddings.touched.test_touched import build, steps, together
from tests.support.ranks import run_ranks
from tests.support.replicas_on_cpu import allow_replicas_on_cpu
from tests.support.weighted_rows import write_weighted_rows

ROWS, COLUMNS = {"sharding_types": ["row_wise"]}, {"sharding_types": ["column_wise"]}
MIXED: dict[str, Any] = {
    "sharding_types": ["table_wise"],
    "min_partition": 4,
    "constraints": {"item": ROWS, "hour": COLUMNS},
}
SGD = {"tables": {"name": "sgd", "learning_rate": 0.1}}


def all_claims(root: str, out: str) -> dict[str, Any]:
    """What one job of two groups of two ranks shows."""
    allow_replicas_on_cpu()
    sharding = MIXED | {"replicas": 2}
    weights = f"{out}/weights"
    trained = train_on_ranks(root, sharding, MODELS["mail_base_dnn"], weights, SGD)
    restored_and_recorded(root, sharding, Path(out) / "checkpoint")
    for plan in SHARDS:
        averaged_adagrad(plan)
    return trained


def restored_and_recorded(root: str, sharding: dict[str, Any], folder: Path) -> None:
    """A restored run goes on as the one that never stopped, and all looked-up rows are flagged."""
    assembled, batches = build(Path(root), sharding)
    looked_up = together(steps(assembled, batches[:2]))
    write_tensors(run_state(assembled), folder, dist.group.WORLD)
    for table, flags in read_touched(folder).items():
        assert np.array_equal(flags, looked_up[table].numpy()), table
    other, _ = build(Path(root), sharding)
    assert other.touched is not None
    restore(other, folder, 2, dict(other.touched.table_names), set())
    for one in (assembled, other):
        one.pipeline.progress(iter(batches[2:3]))
    copies = dict(own_shards(other))
    for key, value in own_shards(assembled):
        assert torch.equal(value, copies[key]), key
        of_replicas = [torch.empty_like(value) for _ in range(2)]
        dist.all_gather(of_replicas, value.contiguous(), replica_group(assembled.model))
        assert torch.equal(*of_replicas), key
    assert any(key.startswith("optimizer.fused") for key in copies)


def own_shards(assembled: AssembledModel) -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in run_state(assembled).items():
        if isinstance(value, ShardedTensor) and not key.startswith("touched."):
            for part, offsets in local_shards(value):
                yield f"{key}{offsets}", part.detach()


def placed(plan: str) -> EmbeddingModuleShardingPlan:
    shards = build_parameter_sharding(plan, "fused", SHARDS[plan], device="cpu", local_world_size=2)
    return EmbeddingModuleShardingPlan({"table": shards})


def averaged_adagrad(plan: str) -> None:
    """Each rank looks up a row of its own and one that all do: closed forms of both."""
    device, rank = torch.device("cpu"), dist.get_rank()
    optimizer = TableOptimizerSettings(name="adagrad", learning_rate=0.5, eps=1e-12)
    sharders = build_sharders(optimizer, (0.9, 0.999), device)
    of_both = ShardingPlan({name: placed(plan) for name in ("pooled", "unpooled")})
    model = shard(Small("meta"), of_both, sharders, device, replicas=2)
    assert of_both.plan == {name: placed(plan) for name in of_both.plan}  # it is not rewritten
    before = torch.from_numpy(values(0))
    for key, value in model.state_dict().items():
        if key != "dense.weight":
            for part, (row, column) in local_shards(value):
                part.copy_(before[row : row + len(part), column : column + part.shape[1]])
    ids = KeyedJaggedTensor(["id"], torch.tensor([rank, 7]), lengths=torch.ones(2).int())
    batch = ids, torch.ones(2, 8)

    pooled, unpooled, dense = model(*batch)
    (pooled.sum() + unpooled.sum() + dense.sum()).backward()
    model.sync()
    # A group's gradient is the mean over its ranks. Of a row that one rank looks up, one copy is
    # moved by the whole learning rate (as Adagrad's first step is), the other stays.
    expected, squares = values(0).astype(np.float64), np.zeros((8, 8))
    expected[:4] -= 0.5 / 2
    squares[:4] = 0.5**2 / 2
    expected[7] -= 0.5
    squares[7] = 1.0
    states = model.fused_optimizer.state_dict()["state"]
    assert states or plan == "table_wise"  # where some ranks hold nothing
    for key, value in model.state_dict().items():
        if key == "dense.weight":
            continue
        pairs = [(value, expected), *((found, squares) for found in states.get(key, {}).values())]
        for found, wanted in pairs:
            for part, (row, column) in local_shards(found):
                inside = wanted[row : row + len(part), column : column + part.shape[1]]
                assert np.abs(part.detach().numpy() - inside).max() < 1e-6, (plan, key)


@pytest.mark.distributed
@pytest.mark.long
def test_two_copies_over_four_ranks_train_as_one_rank_and_are_saved_and_restored_exactly(
    tmp_path: Path,
) -> None:
    """SGD's mean of copies is its step by the mean gradient; Adagrad's is not."""
    write_weighted_rows(tmp_path / "rows" / "train" / "a.parquet", 200, seed=1)
    root, model = str(tmp_path / "rows"), MODELS["mail_base_dnn"]
    [expected] = run_ranks(
        1, train_on_ranks, tmp_path / "one", root, MIXED, model, str(tmp_path / "of_one"), SGD
    )
    results = run_ranks(4, all_claims, tmp_path / "four", root, str(tmp_path))
    assert results[0]["kinds"] == {"table_wise", "row_wise", "column_wise"}
    for step, losses in enumerate(expected["losses"]):
        for name, value in losses.items():
            mean = np.mean([result["losses"][step][name] for result in results])
            assert mean == pytest.approx(value, rel=1e-4, abs=1e-6), (step, name)
    found, of_one = load(tmp_path / "weights"), load(tmp_path / "of_one")
    assert found.keys() == of_one.keys()
    for key, value in of_one.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=6e-4, msg=key)


@pytest.mark.parametrize(
    ("ranks", "on_host", "replicas", "expected"),
    [
        (16, 8, None, ShardingGroup(16, 8)),
        (16, 8, 2, ShardingGroup(8, 4)),
        (16, 8, 8, ShardingGroup(2, 1)),
        (32, 4, 8, ShardingGroup(4, 1)),
        (4, 8, 4, ShardingGroup(1, 1)),
    ],
)
def test_a_group_has_every_so_manyth_rank(
    ranks: int, on_host: int, replicas: int | None, expected: ShardingGroup
) -> None:
    assert sharding_group(replicas, ranks, on_host, "cuda") == expected


@pytest.mark.parametrize(
    ("ranks", "on_host", "device", "what"),
    [
        (16, 8, "cpu", "CUDA alone"),
        (8, 8, "cuda", "should divide the ranks of the job, 8, received 3"),
        (12, 4, "cuda", "should divide the ranks of a host, 4, or be a multiple"),
    ],
)
def test_ranks_that_do_not_divide_into_groups_are_refused(
    ranks: int, on_host: int, device: str, what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        sharding_group(3, ranks, on_host, device)


@pytest.mark.parametrize(
    ("changes", "optimizer", "what"),
    [
        ({}, "adam", "train.tables.name=adam"),
        ({}, "partial_rowwise_adam", "train.tables.name=partial_rowwise_adam"),
        ({"compute_kernels": ["fused", "fused_uvm_caching"]}, "sgd", "fused_uvm_caching"),
        ({"constraints": {"item": {"compute_kernels": ["fused_uvm"]}}}, "sgd", "fused_uvm"),
        ({"sharding_types": ["row_wise", "grid_shard"]}, "adagrad", "grid_shard"),
    ],
)
def test_what_copies_cannot_have_is_refused_by_name(
    changes: dict[str, Any], optimizer: str, what: str
) -> None:
    settings = ShardingSettings.model_validate({"replicas": 2} | changes)
    workload = Workload({"item": (5000, 8)}, {"item": [1.0]}, 32, optimizer)  # type: ignore
    with pytest.raises(ValueError, match=rf"sharding.replicas=2: .*{what}"):
        check_constraints(settings, workload, PRESETS["h100"], 4)
