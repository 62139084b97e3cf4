"""Stored rows and columns of tables."""

import pytest

from mail_torchrec.data.schema.feature_tables import build_feature_tables
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.embeddings.tables import table_sizes
from tests.support.small_rows import SCHEMA


@pytest.mark.parametrize("world_size", range(1, 33))
def test_stored_tables_have_rows_for_32_ranks(world_size: int) -> None:
    schema = Schema.model_validate(SCHEMA)
    sizes = table_sizes(
        schema, build_feature_tables(schema, needs_match=True), dict.fromkeys(schema.table_names, 3)
    )
    for rows, _ in sizes.values():
        assert -(-rows // world_size) * (world_size - 1) < rows


def test_unpooled_tables_are_stored_at_one_width() -> None:
    tables = SCHEMA["tables"] | {"actions": {"dim": 3}, "hour": {"dim": 4}}
    schema = Schema.model_validate(SCHEMA | {"actions": "concat", "tables": tables})
    for needs_first_order, widths in ((False, (8, 4)), (True, (12, 8))):
        feature_tables = build_feature_tables(
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
            build_feature_tables(schema, needs_match=True),
            dict.fromkeys(schema.table_names, 9),
        ).values()
    } == {8}
