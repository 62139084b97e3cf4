"""Row-wise shards without rows are avoided or refused.

Ranks without a part of a table, or without any table, train as one rank does.
"""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from mail_torchrec.embeddings.empty_shards import (
    check_no_empty_shard,
    exclude_empty_shards,
    has_empty_shard,
)
from mail_torchrec.embeddings.settings import TableOptimizerSettings
from mail_torchrec.embeddings.sharding import build_sharders
from tests.distributed.test_equal_ranks import load, train_on_ranks
from tests.support.ranks import run_ranks
from tests.support.small_rows import SCHEMA, config_tree, write_rows

FEW = ("user", "clicked", "age", "history", "item")
"""Two tables: the ages and the items."""


@pytest.mark.parametrize(("rows", "ranks", "is_empty"), [
    (4, 3, True), (5, 3, False), (6, 3, False), (1, 2, True), (1, 1, False),
    (1024, 33, True), (1024, 32, False),
])  # fmt: skip
def test_a_shard_is_empty_where_the_blocks_before_it_hold_all_rows(
    rows: int, ranks: int, is_empty: bool
) -> None:
    block = -(-rows // ranks)
    assert (
        has_empty_shard(rows, ranks)
        == is_empty
        == (0 in [min(block, max(0, rows - rank * block)) for rank in range(ranks)])
    )


def test_only_types_that_give_each_rank_a_row_are_left() -> None:
    every = ["row_wise", "column_wise", "table_row_wise", "grid_shard"]
    assert exclude_empty_shards(every, 4, 6, 2) == ["column_wise", "table_row_wise", "grid_shard"]
    assert exclude_empty_shards(every, 1, 6, 2) == ["column_wise"]
    assert exclude_empty_shards(every, 100, 6, 2) == every
    assert exclude_empty_shards(["row_wise"], 4, 3, 3) == ["table_wise"]


def row_wise_plan(num_rows: int, world_size: int) -> ShardingPlan:
    config = EmbeddingBagConfig(
        num_embeddings=num_rows, embedding_dim=8, name="tags", feature_names=["tags"]
    )
    tables = EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world_size, compute_device="cpu", local_world_size=world_size),
        constraints={"tags": ParameterConstraints(sharding_types=["row_wise"])},
    )
    sharders = build_sharders(TableOptimizerSettings(), (0.9, 0.999), torch.device("cpu"))
    return planner.plan(tables, sharders)


def test_an_empty_row_wise_shard_is_refused_on_cpu() -> None:
    with pytest.raises(
        ValueError,
        match="every rank needs a row of a row_wise table, and 'tags' has too few for 3 ranks; "
        "use fewer ranks",
    ):
        check_no_empty_shard(row_wise_plan(4, 3))  # shards of 2, 2 and 0 rows
    check_no_empty_shard(row_wise_plan(5, 3))


def train_with_small_tables(
    root: str, sharding: dict[str, Any], model: dict[str, Any], weights: str
) -> dict[str, Any]:
    """Tables are stored with the rows that their columns have, no more."""
    with patch("mail_torchrec.embeddings.tables._LEAST_ROWS", 1):
        return train_on_ranks(root, sharding, model, weights)


def train_with_few_tables(
    root: str, sharding: dict[str, Any], model: dict[str, Any], weights: str
) -> dict[str, Any]:
    schema = SCHEMA | {
        "columns": {name: SCHEMA["columns"][name] for name in FEW},
        "tables": {"item": {"init_range": 0.3}},
    }
    with patch("tests.distributed.test_equal_ranks.SCHEMA", schema):
        return train_on_ranks(root, sharding, model, weights)


@pytest.mark.distributed
@pytest.mark.parametrize(("function", "sharding_types", "kinds"), [
    (train_with_small_tables, ["row_wise"], {"row_wise", "table_wise"}),  # 4 actions on 3 ranks
    (train_with_few_tables, ["table_wise"], {"table_wise"}),  # 2 tables on 3 ranks
])  # fmt: skip
def test_ranks_without_rows_of_a_table_train_as_one_rank_does(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    function: Any,
    sharding_types: list[str],
    kinds: set[str],
) -> None:
    write_rows(tmp_path / "train" / "a.parquet", 200, seed=1)
    model = config_tree(tmp_path)["model"] | {
        "tower": "base_dnn",
        "tower_options": {"hidden_dims": [16, 8], "dropout": 0.0},
    }
    found: dict[int, Any] = {}
    for ranks in (1, 3):
        weights = tmp_path / f"weights-{ranks}"
        found[ranks] = (
            run_ranks(
                ranks,
                function,
                tmp_path / str(ranks),
                str(tmp_path),
                {"sharding_types": sharding_types},
                model,
                str(weights),
            ),
            load(weights),
        )
    (expected, *_), expected_weights = found[1]
    results, weights = found[3]
    assert results[0]["kinds"] == kinds
    assert ("too small for 3 ranks to have a row each: table_wise" in capfd.readouterr().err) == (
        len(kinds) == 2
    )
    for step, losses in enumerate(expected["losses"]):
        for name, value in losses.items():
            assert np.mean([result["losses"][step][name] for result in results]) == pytest.approx(
                value, rel=1e-4, abs=1e-6
            ), (step, name)
    assert weights.keys() == expected_weights.keys()
    for key, value in expected_weights.items():
        torch.testing.assert_close(
            weights[key], value, rtol=1e-4, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}"
        )
