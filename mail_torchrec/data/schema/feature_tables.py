"""Features of a batch and the embedding tables that each looks up.

The reader writes these features, and the table collections read them. TorchRec calls them the
``feature_names`` of an embedding table.
"""

from dataclasses import dataclass

from mail_torchrec.data.schema.schema import Schema


@dataclass(frozen=True)
class MatchFeatures:
    """Features of a sequence's lookups in the output-side item table V' (DMR, Lyu et al. 2020)."""

    target: str
    """Target item."""
    last: str
    """Newest behaviour of each user, the positive of the match loss."""
    negatives: str
    """Sampled negatives of the match loss."""


@dataclass(frozen=True)
class FeatureTables:
    """Tables by feature of the pooled and the unpooled collection, in the order of the batch."""

    pooled: dict[str, str]
    """Tables by feature of the EmbeddingBagCollection: one vector a row."""
    unpooled: dict[str, str]
    """Tables by feature of the EmbeddingCollection: one vector an id."""
    match: dict[str, MatchFeatures]
    """Features of the output-side table by sequence; empty where the tower has no match loss."""
    first_order: frozenset[str] = frozenset()
    """Tables whose rows are one column wider than their vectors, for the id's first-order weight
    (wide part of a factorization machine)."""


def output_table(table: str) -> str:
    """Returns the name of the output-side table V' of an item table."""
    return f"{table}_output"


def build_feature_tables(
    schema: Schema, *, needs_match: bool, needs_first_order: bool = False
) -> FeatureTables:
    """Builds the features of a schema's batches.

    Args:
        schema: columns and tables.
        needs_match: give every item table that behaviours look up an output-side table.
        needs_first_order: give every table of attribute, context or item fields a first-order
            weight an id.

    Raises:
        ValueError: no table is pooled, or the name of a table that the match loss adds is taken.
    """
    if not schema.pooled:
        raise ValueError(
            "schema.columns: at least one column should look up a table that holds no behaviours, "
            "found none"
        )
    pooled = {name: schema.table_of(name) for name in schema.pooled}
    unpooled = {name: schema.table_of(name) for name in schema.unpooled}
    match = {name: _match_features(schema, name) for name in schema.sequences if needs_match}
    for sequence, features in match.items():
        table = _new_output_table(schema, sequence)
        unpooled |= dict.fromkeys((features.target, features.last, features.negatives), table)
    fields = [*schema.pooled, *schema.unpooled_scalars] if needs_first_order else []
    first_order = frozenset(schema.table_of(name) for name in fields)
    return FeatureTables(pooled, unpooled, match, first_order)


def _match_features(schema: Schema, sequence: str) -> MatchFeatures:
    """Names the match features of a sequence; columns have no dot in their names."""
    return MatchFeatures(
        target=f"{schema.target_of(schema.match_column(sequence))}.output",
        last=f"{sequence}.last",
        negatives=f"{sequence}.negatives",
    )


def _new_output_table(schema: Schema, sequence: str) -> str:
    """Names the output-side table of a sequence's item table, which must be new to the schema."""
    items = schema.table_of(schema.match_column(sequence))
    table = output_table(items)
    if table in schema.table_names:
        raise ValueError(
            f"schema: the match loss adds a table '{table}' beside '{items}', and "
            "the schema has one of that name; give its columns another 'table'"
        )
    return table
