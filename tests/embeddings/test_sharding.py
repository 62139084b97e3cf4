"""What is asked of a sharding plan before it is used."""

import pytest
import torch
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from mail_torchrec.data.schema.feature_tables import plan_feature_tables
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.embeddings.planner import check_no_empty_shard
from mail_torchrec.embeddings.sharding import TableOptimizerSettings, sharders
from mail_torchrec.embeddings.tables import table_sizes
from tests.support.small_rows import SCHEMA

CPU = torch.device("cpu")


def row_wise_plan(num_rows: int, world_size: int) -> ShardingPlan:
    config = EmbeddingBagConfig(
        num_embeddings=num_rows, embedding_dim=8, name="tags", feature_names=["tags"]
    )
    tables = EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world_size, compute_device="cpu", local_world_size=world_size),
        constraints={"tags": ParameterConstraints(sharding_types=["row_wise"])},
    )
    return planner.plan(tables, sharders(TableOptimizerSettings(), (0.9, 0.999), CPU))


def test_an_empty_row_wise_shard_is_refused_on_cpu() -> None:
    with pytest.raises(
        ValueError,
        match=r"every rank needs a row of a row_wise table, and 'tags' has too few for 3 ranks; use fewer ranks",
    ):
        check_no_empty_shard(row_wise_plan(4, 3))  # shards of 2, 2 and 0 rows
    check_no_empty_shard(row_wise_plan(5, 3))


@pytest.mark.parametrize("world_size", range(1, 33))
def test_stored_tables_have_rows_for_32_ranks(world_size: int) -> None:
    schema = Schema.model_validate(SCHEMA)
    sizes = table_sizes(
        schema, plan_feature_tables(schema, needs_match=True), dict.fromkeys(schema.table_names, 3)
    )
    for rows, _ in sizes.values():
        assert -(-rows // world_size) * (world_size - 1) < rows


def test_unpooled_tables_are_stored_at_one_width() -> None:
    tables = SCHEMA["tables"] | {"actions": {"dim": 3}, "hour": {"dim": 4}}
    schema = Schema.model_validate(SCHEMA | {"actions": "concat", "tables": tables})
    for needs_first_order, widths in ((False, (8, 4)), (True, (12, 8))):
        feature_tables = plan_feature_tables(
            schema, needs_match=True, needs_first_order=needs_first_order
        )
        columns = {
            name: dim
            for name, (_, dim) in table_sizes(
                schema, feature_tables, dict.fromkeys(schema.table_names, 9)
            ).items()
        }
        assert (columns["item"], columns["hour"]) == widths
        assert columns["actions"] == columns["item_output"] == columns["item"]


def test_table_columns_are_stored_in_fours() -> None:
    schema = Schema.model_validate(SCHEMA | {"dim": 5})
    assert {
        dim
        for _, dim in table_sizes(
            schema,
            plan_feature_tables(schema, needs_match=True),
            dict.fromkeys(schema.table_names, 9),
        ).values()
    } == {8}
