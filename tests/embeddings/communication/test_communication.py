"""Vectors and gradients travel between ranks rounded to a format, and everything else as it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mail_torchrec.config import Config
from mail_torchrec.distributed.vector_exchange import wait_for_vectors
from mail_torchrec.embeddings.communication.settings import CommunicationSettings
from mail_torchrec.embeddings.initial_weights import local_shards
from mail_torchrec.embeddings.settings import ShardingSettings, TableOptimizerSettings
from mail_torchrec.embeddings.sharding import build_sharders, shard
from mail_torchrec.embeddings.sharding_plan import PlacedShard, build_parameter_sharding
from mail_torchrec.utils.spans import span
from tests.distributed.test_equal_ranks import PLANS as EQUAL_PLANS
from tests.distributed.test_equal_ranks import train_on_ranks
from tests.support.ranks import run_ranks
from tests.support.small_rows import config_tree
from tests.support.weighted_rows import write_weighted_rows
from tools.bench_communication import ExchangedBytes

FORMATS = ("fp32", "fp16", "bf16")
SHARDS = {
    "table_wise": [PlacedShard(1, [0, 0], [8, 8])],
    "row_wise": [PlacedShard(0, [0, 0], [4, 8]), PlacedShard(1, [4, 0], [4, 8])],
    "column_wise": [PlacedShard(0, [0, 0], [8, 4]), PlacedShard(1, [0, 4], [8, 4])],
}
IDS = [[0, 5], [3, 6]]
BATCH_SIZE, LEARNING_RATE = 1000, 2.0**14
SCALE = 512.0
"""The greatest power of two that is at most the batch size."""


class Small(nn.Module):
    """A pooled table, an unpooled one and a layer."""

    def __init__(self, device: str) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"num_embeddings": 8, "embedding_dim": 8, "name": "table"}
        bag = EmbeddingBagConfig(**sizes, feature_names=["id"])
        on = torch.device(device)
        self.pooled = EmbeddingBagCollection(tables=[bag], device=on)
        self.unpooled = EmbeddingCollection(
            tables=[EmbeddingConfig(**sizes, feature_names=["id"])], device=on
        )
        self.dense = nn.Linear(8, 1, bias=False)

    def forward(self, ids: KeyedJaggedTensor, x_B8: torch.Tensor) -> Any:
        pooled = wait_for_vectors(self.pooled(ids)).values()
        unpooled = wait_for_vectors(self.unpooled(ids))["id"].values()
        return pooled, unpooled, self.dense(x_B8)


def values(seed: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (8, 8)).astype(np.float32)


def gradients(rank: int, seed: int) -> np.ndarray:
    """As those of a mean over many rows, one much smaller than what fp16 holds by itself."""
    found = values(10 * seed + rank, 1e-4)[:2]
    found[0, 0], found[1, 6] = 1e-7, -3e-8
    return found


def step(plan: str, communication: CommunicationSettings | None) -> dict[str, Any]:
    """One step of this rank: vectors, bytes, and the weights behind it."""
    optimizer = TableOptimizerSettings(name="sgd", learning_rate=LEARNING_RATE)
    device = torch.device("cpu")
    placed = build_parameter_sharding(plan, "fused", SHARDS[plan], device="cpu", local_world_size=2)
    names = ("pooled", "unpooled")
    tables = {name: EmbeddingModuleShardingPlan({"table": placed}) for name in names}
    sharding = ShardingSettings(communication=communication)
    sharders = build_sharders(optimizer, (0.9, 0.999), device, sharding, BATCH_SIZE)
    torch.manual_seed(0)
    model = shard(
        Small("meta"),
        ShardingPlan(dict(tables)),
        sharders,
        device,
        dense_in_bfloat16=sharding.averages_in_bfloat16,
    )
    for seed, name in enumerate(names):
        for part, (row, column) in table_parts(model, name):
            full = torch.from_numpy(values(seed))
            part.copy_(full[row : row + part.shape[0], column : column + part.shape[1]])
    rank = dist.get_rank()
    ids = KeyedJaggedTensor(["id"], torch.tensor(IDS[rank]), lengths=torch.ones(2).int())
    with ExchangedBytes() as counted, span("training"), span("step", 1):
        pooled, unpooled, y_B1 = model(ids, torch.from_numpy(values(20 + rank)))
        loss = y_B1.sum()
        for seed, vectors in enumerate((pooled, unpooled)):
            loss = loss + (vectors * torch.from_numpy(gradients(rank, seed))).sum()
        with span("backward"):
            loss.backward()
    [dense] = [value for name, value in model.named_parameters() if "dense" in name]
    return {
        "vectors": [pooled.detach().numpy(), unpooled.detach().numpy()],
        "tables": [
            [(part.numpy().copy(), at) for part, at in table_parts(model, name)] for name in names
        ],
        "dense": dense.grad.numpy(),
        "bytes": dict(counted.totals),
    }


def table_parts(model: nn.Module, name: str) -> Iterator[tuple[torch.Tensor, Any]]:
    for key, value in model.state_dict().items():
        if key.startswith(f"{name}."):
            yield from local_shards(value)


def steps_in_all_formats() -> dict[Any, Any]:
    found = {
        (plan, precision): step(
            plan,
            CommunicationSettings(
                forward=precision,  # type: ignore[arg-type]
                backward=precision,  # type: ignore[arg-type]
                dense_gradients="bf16" if precision == "bf16" else "fp32",
            ),
        )
        for plan in SHARDS
        for precision in FORMATS
    }
    return found | {(plan, None): step(plan, None) for plan in SHARDS}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_ranks(2, steps_in_all_formats, tmp_path_factory.mktemp("ranks"))


def rounded(x: np.ndarray, precision: str) -> np.ndarray:
    """To the nearest number of a format, ties to even."""
    if precision == "fp16":
        return x.astype(np.float16).astype(np.float32)
    if precision == "bf16":
        bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return bits.astype(np.uint32).view(np.float32)
    return x


@pytest.mark.distributed
@pytest.mark.parametrize("precision", FORMATS)
def test_vectors_arrive_rounded_and_rows_learn_from_rounded_gradients(
    found: Any, precision: str
) -> None:
    scale = SCALE if precision == "fp16" else 1.0
    for plan in SHARDS:
        for kind in range(2):
            weights = values(kind)
            expected = weights.copy()
            for rank, of_rank in enumerate(found):
                vectors = of_rank[plan, precision]["vectors"][kind]
                np.testing.assert_array_equal(vectors, rounded(weights[IDS[rank]], precision))
                learnt = rounded(gradients(rank, kind) * scale, precision) / scale
                expected[IDS[rank]] -= LEARNING_RATE * learnt / 2  # the mean of the ranks' losses
            for of_rank in found:
                for part, (row, column) in of_rank[plan, precision]["tables"][kind]:
                    wanted = expected[row : row + part.shape[0], column : column + part.shape[1]]
                    np.testing.assert_allclose(part, wanted, rtol=2e-6, atol=2e-7)


@pytest.mark.distributed
def test_gradients_of_layers_are_averaged_in_bfloat16(found: Any) -> None:
    sums = [values(20 + rank).sum(axis=0) for rank in range(2)]
    halves = [rounded(one / 2, "bf16") for one in sums]
    for of_rank in found:
        np.testing.assert_allclose(of_rank["row_wise", None]["dense"][0], sum(sums) / 2, rtol=1e-5)
        in_bfloat16 = of_rank["row_wise", "bf16"]["dense"][0]
        np.testing.assert_allclose(in_bfloat16, rounded(sum(halves), "bf16"), rtol=8e-3)
        assert np.array_equal(in_bfloat16, rounded(in_bfloat16, "bf16"))


@pytest.mark.distributed
def test_two_byte_formats_halve_what_is_sent_and_fp32_is_as_without_codecs(found: Any) -> None:
    for plan in SHARDS:
        for part in ("vectors", "gradients of vectors"):
            sent = {
                precision: sum(of_rank[plan, precision]["bytes"].get(part, 0) for of_rank in found)
                for precision in (*FORMATS, None)
            }
            assert sent["fp16"] == sent["bf16"] == sent["fp32"] / 2 == sent[None] / 2 > 0, plan
            if plan == "table_wise":  # two rows of rank 0, of both tables of rank 1
                assert sent[None] == 2 * 2 * 8 * 4
        for of_rank in found:
            for one, other in zip(
                of_rank[plan, "fp32"]["tables"], of_rank[plan, None]["tables"], strict=True
            ):
                for (part_, at), (same, same_at) in zip(one, other, strict=True):
                    assert at == same_at and np.array_equal(part_, same)
    dense = [of_rank["row_wise", name]["bytes"]["gradients of towers"] for of_rank in found
             for name in (None, "bf16")]  # fmt: skip
    assert dense == [8 * 4, 8 * 2] * 2


def train_in_two_formats(root: str, folder: str) -> list[Any]:
    """Trains in float32, then as ``sharding.communication`` says."""
    plan, model = EQUAL_PLANS["row_wise"], config_tree(Path())["model"]
    model |= {"tower": "base_dnn", "tower_options": {"hidden_dims": [16, 8], "dropout": 0.0}}
    formats = {"forward": "bf16", "backward": "fp16", "dense_gradients": "bf16"}
    found = []
    for name, communication in (("exact", None), ("rounded", formats)):
        sharding = plan | {"communication": communication}
        found.append(train_on_ranks(root, sharding, model, f"{folder}/{name}")["losses"])
    return found


@pytest.mark.distributed
def test_a_run_in_other_formats_learns_as_in_float32(tmp_path: Path) -> None:
    write_weighted_rows(tmp_path / "rows/train/a.parquet", 200, seed=1)
    [(exact, changed), _] = run_ranks(
        2, train_in_two_formats, tmp_path / "ranks", str(tmp_path / "rows"), str(tmp_path)
    )
    assert exact != changed
    for one, other in zip(exact, changed, strict=True):
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=2e-2, abs=2e-3), name


@pytest.mark.parametrize(
    ("communication", "fault"),
    [
        ({"forward": "int8"}, "int8 codec fails for row-wise shards"),
        ({"backward": "FP8"}, "FP8 codec fails"),
        ({"forward": "mx4"}, "mx4 codec"),
        ({"dense_gradients": "fp16"}, "should be 'fp32' or 'bf16'"),
        ({"forward": "half"}, "should be 'fp32', 'fp16' or 'bf16'"),
    ],
)
def test_other_formats_are_refused_by_name(communication: dict[str, str], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        ShardingSettings.model_validate({"communication": communication})


def test_tables_that_are_not_sharded_have_no_formats(tmp_path: Path) -> None:
    sharding = {"enabled": False, "communication": {"forward": "fp16"}}
    with pytest.raises(ValueError, match=r"sharding\.communication should be left"):
        Config.model_validate(config_tree(tmp_path, sharding=sharding))
