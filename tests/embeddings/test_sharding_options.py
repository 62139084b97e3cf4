"""Estimates of shards: TorchRec's own, and the optimizer's state beside them."""

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import nn
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.shard_estimators import (
    EmbeddingPerfEstimator,
    EmbeddingStorageEstimator,
)
from torchrec.distributed.types import PipelineType
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from mail_torchrec.embeddings.hardware import hardware
from mail_torchrec.embeddings.planner import ShardingSettings, Workload, constraints
from mail_torchrec.embeddings.sharding import TableOptimizerSettings, sharders
from mail_torchrec.embeddings.sharding_options import (
    Choice,
    OptimizerName,
    enumerate_choices,
    state_bytes,
)

SIZES = {"small": (1024, 8), "wide": (5000, 64), "seen": (100_003, 32)}
SETTINGS = ShardingSettings(
    types=["table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid_shard"],
    kernels=["fused", "fused_uvm", "fused_uvm_caching"],
    min_partition=16,
    cache_load_factor=0.1,
)  # fmt: skip


def collections() -> nn.Module:
    meta = torch.device("meta")
    bags = [
        EmbeddingBagConfig(
            num_embeddings=SIZES[t][0], embedding_dim=SIZES[t][1], name=t, feature_names=[t]
        )
        for t in ("small", "wide")
    ]
    seen = EmbeddingConfig(
        num_embeddings=SIZES["seen"][0],
        embedding_dim=SIZES["seen"][1],
        name="seen",
        feature_names=["a", "b"],
    )
    return nn.ModuleDict(
        {
            "pooled": EmbeddingBagCollection(tables=bags, device=meta),
            "unpooled": EmbeddingCollection(tables=[seen], device=meta),
        }
    )


def workload(optimizer: OptimizerName) -> Workload:
    return Workload(SIZES, {"small": [1.0], "wide": [3.0], "seen": [20.0, 1.0]}, 128, optimizer)


def both() -> list[object]:
    return list(sharders(TableOptimizerSettings(), (0.9, 0.999), torch.device("cuda")))


def choices(optimizer: OptimizerName, ranks: int = 4) -> dict[str, list[Choice]]:
    topology = hardware("h100", ["ranks_a_host=2"]).topology(ranks)
    given = constraints(SETTINGS, workload(optimizer), ranks, 2)
    return enumerate_choices(collections(), both(), given, topology, 128, optimizer)  # type: ignore[arg-type]


def test_one_estimate_a_size_equals_torchrecs_of_every_shard() -> None:
    topology, given = (
        hardware("h100", ["ranks_a_host=2"]).topology(4),
        constraints(SETTINGS, workload("sgd"), 4, 2),
    )
    storage = EmbeddingStorageEstimator(
        topology,
        given,
        pipeline_type=PipelineType.TRAIN_SPARSE_DIST,
        run_embedding_at_peak_memory=True,
    )
    stock = EmbeddingEnumerator(
        topology, 128, given, [EmbeddingPerfEstimator(topology, given), storage]
    )
    expected = {
        (option.name, option.sharding_type, option.compute_kernel): option
        for option in stock.enumerate(collections(), both())  # type: ignore[arg-type]
    }
    found = [choice for options in choices("sgd").values() for choice in options]
    assert len(found) == len(expected) > 20
    for choice in found:
        option = expected[choice.table, choice.sharding_type, choice.kernel]
        assert choice.module == option.path
        assert choice.sizes_S2.tolist() == [shard.size for shard in option.shards]
        assert choice.offsets_S2.tolist() == [shard.offset for shard in option.shards]
        assert choice.memory_S["hbm"].tolist() == [shard.storage.hbm for shard in option.shards]
        assert choice.memory_S["host"].tolist() == [shard.storage.ddr for shard in option.shards]
        assert choice.time_S.tolist() == pytest.approx(
            [shard.perf.total + shard.perf.input_dist_comms for shard in option.shards]
        )


@pytest.mark.parametrize(
    "optimizer", ["adagrad", "rowwise_adagrad", "adam", "partial_rowwise_adam"]
)
def test_the_optimizers_state_lies_where_the_weights_lie(optimizer: OptimizerName) -> None:
    a_row = {"adagrad": 64, "rowwise_adagrad": 1, "adam": 128, "partial_rowwise_adam": 65}[
        optimizer
    ]
    without, found = (
        {(c.sharding_type, c.kernel): c for c in choices(name)["wide"]}
        for name in ("sgd", optimizer)
    )
    for key, choice in found.items():
        more = {
            kind: float((choice.memory_S[kind] - without[key].memory_S[kind]).sum())
            for kind in ("hbm", "host", "ssd")
        }
        # What there is a row, each of the 4 groups of columns has for itself.
        again = 3 if len(set(choice.offsets_S2[:, 1])) == 4 and "row" in optimizer else 0
        where = "hbm" if choice.kernel == "fused" else "host"
        assert more == {"hbm": 0.0, "host": 0.0, "ssd": 0.0} | {where: 4.0 * 5000 * (a_row + again)}


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
def test_state_bytes_are_fbgemms(optimizer: OptimizerName) -> None:
    kinds = {
        "sgd": EmbOptimType.EXACT_SGD,
        "adagrad": EmbOptimType.EXACT_ADAGRAD,
        "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    }
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(37, 16, EmbeddingLocation.HOST, ComputeDevice.CPU)], optimizer=kinds[optimizer]
    )
    state = [value for values in tables.split_optimizer_states() for value in values]
    assert state_bytes(optimizer, 37, 16) == sum(
        value.numel() * value.element_size() for value in state
    )


def test_a_table_without_a_choice_is_named() -> None:
    given = constraints(
        SETTINGS.model_copy(update={"tables": {"seen": ["grid_shard"]}}), workload("sgd"), 8, 8
    )
    with pytest.raises(ValueError, match=r"no choice is left for a table: .* constraints for seen"):
        enumerate_choices(collections(), both(), given, hardware("h100").topology(8), 128, "sgd")  # type: ignore[arg-type]
