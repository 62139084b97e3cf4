"""Enumerated sharding options: TorchRec's estimates, and the optimizer's state beside them."""

from typing import Any

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

from mail_torchrec.embeddings.constraints import parameter_constraints
from mail_torchrec.embeddings.enumerator import enumerate_sharding_options
from mail_torchrec.embeddings.hardware import hardware_preset
from mail_torchrec.embeddings.settings import (
    OptimizerName,
    ShardingSettings,
    TableConstraints,
    TableOptimizerSettings,
)
from mail_torchrec.embeddings.sharding import build_sharders
from mail_torchrec.embeddings.sharding_options import ShardingOption
from mail_torchrec.embeddings.storage import optimizer_state_bytes
from mail_torchrec.embeddings.workload import Workload

SIZES = {"small": (1024, 8), "wide": (5000, 64), "seen": (100_003, 32)}
SETTINGS = ShardingSettings(
    sharding_types=[
        "table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid_shard"
    ],
    compute_kernels=["fused", "fused_uvm", "fused_uvm_caching"],
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


def both() -> list[Any]:
    return list(build_sharders(TableOptimizerSettings(), (0.9, 0.999), torch.device("cuda")))


def options(optimizer: OptimizerName, ranks: int = 4) -> dict[str, list[ShardingOption]]:
    topology = hardware_preset("h100", ["local_world_size=2"]).topology(ranks)
    given = parameter_constraints(SETTINGS, workload(optimizer), ranks, 2)
    return enumerate_sharding_options(collections(), both(), given, topology, 128, optimizer)


def test_one_estimate_a_size_equals_torchrecs_of_every_shard() -> None:
    topology, given = (
        hardware_preset("h100", ["local_world_size=2"]).topology(4),
        parameter_constraints(SETTINGS, workload("sgd"), 4, 2),
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
        for option in stock.enumerate(collections(), both())
    }
    found = [option for of_table in options("sgd").values() for option in of_table]
    assert len(found) == len(expected) > 20
    for option in found:
        stock_option = expected[option.table, option.sharding_type, option.compute_kernel]
        shards = stock_option.shards
        assert option.module_path == stock_option.path
        assert option.sizes_S2.tolist() == [shard.size for shard in shards]
        assert option.offsets_S2.tolist() == [shard.offset for shard in shards]
        assert option.memory_S["hbm"].tolist() == [shard.storage.hbm for shard in shards]
        assert option.memory_S["host"].tolist() == [shard.storage.ddr for shard in shards]
        assert option.time_S.tolist() == pytest.approx(
            [shard.perf.total + shard.perf.input_dist_comms for shard in shards]
        )


@pytest.mark.parametrize(
    "optimizer", ["adagrad", "rowwise_adagrad", "adam", "partial_rowwise_adam"]
)
def test_the_optimizers_state_lies_where_the_weights_lie(optimizer: OptimizerName) -> None:
    a_row = {"adagrad": 64, "rowwise_adagrad": 1, "adam": 128, "partial_rowwise_adam": 65}[
        optimizer
    ]
    without, found = (
        {(c.sharding_type, c.compute_kernel): c for c in options(name)["wide"]}
        for name in ("sgd", optimizer)
    )
    for key, option in found.items():
        more = {
            kind: float((option.memory_S[kind] - without[key].memory_S[kind]).sum())
            for kind in ("hbm", "host")
        }
        # Each of the 4 groups of columns has its own state of a row.
        again = 3 if len(set(option.offsets_S2[:, 1])) == 4 and "row" in optimizer else 0
        where = "hbm" if option.compute_kernel == "fused" else "host"
        assert more == {"hbm": 0.0, "host": 0.0} | {where: 4.0 * 5000 * (a_row + again)}


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
    assert optimizer_state_bytes(optimizer, 37, 16) == sum(
        value.numel() * value.element_size() for value in state
    )


def test_a_table_without_a_sharding_option_is_named() -> None:
    seen = TableConstraints(sharding_types=["grid_shard"])
    settings = SETTINGS.model_copy(update={"constraints": {"seen": seen}})
    given = parameter_constraints(settings, workload("sgd"), 8, 8)
    with pytest.raises(
        ValueError, match=r"no sharding option is left for a table: .* constraints for seen"
    ):
        enumerate_sharding_options(
            collections(), both(), given, hardware_preset("h100").topology(8), 128, "sgd"
        )
