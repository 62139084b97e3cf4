"""Which keys are looked up in which tables: what the reader writes and the table collections read."""

from dataclasses import dataclass

from mail_torchrec.data.schema.schema import Schema


@dataclass(frozen=True)
class MatchKeys:
    """The keys of one sequence's lookups in the output-side item table V' (DMR's match loss and relevance)."""

    target: str
    last: str
    negatives: str


@dataclass(frozen=True)
class FeatureTables:
    """Key -> table, of the pooled and of the unpooled collection; keys in the order of the batch."""

    pooled: dict[str, str]
    unpooled: dict[str, str]
    match: dict[str, MatchKeys]
    """Sequence -> its keys in the output-side table; empty where the tower has no match loss."""
    first_order: frozenset[str] = frozenset()
    """Tables whose rows are one column wider than their vectors: the id's first-order weight stands
    there."""


def output_table(table: str) -> str:
    """The name of the output-side twin of an item table."""
    return f"{table}_output"


def plan_feature_tables(
    schema: Schema, *, needs_match: bool, needs_first_order: bool = False
) -> FeatureTables:
    """The lookups of a schema.

    Args:
        schema: columns and tables.
        needs_match: every item table that behaviours use gets an output-side twin.
        needs_first_order: every table of attribute, context or item fields holds a first-order
            weight an id.

    Raises:
        ValueError: no table is pooled, or a name that the match loss adds is taken.
    """
    if not schema.pooled:
        raise ValueError(
            "schema.columns: at least one column should look up a table that holds no behaviours, "
            "found none"
        )
    unpooled = {name: schema.table_of(name) for name in schema.unpooled}
    match: dict[str, MatchKeys] = {}
    for sequence in schema.sequences if needs_match else []:
        keys = MatchKeys(
            f"{schema.target_of(sequence)}_output", f"{sequence}_last", f"{sequence}_negatives"
        )
        match[sequence] = keys
        twin = output_table(schema.table_of(sequence))
        if clash := {twin} & set(schema.table_names) or {
            keys.target,
            keys.last,
            keys.negatives,
        } & set(schema.columns):
            raise ValueError(
                "schema: the match loss adds tables and keys of its own, and the schema has "
                f"{sorted(clash)}; rename it there"
            )
        unpooled |= {keys.target: twin, keys.last: twin, keys.negatives: twin}
    fields = [*schema.pooled, *schema.unpooled_scalars] if needs_first_order else []
    pooled = {name: schema.table_of(name) for name in schema.pooled}
    return FeatureTables(
        pooled, unpooled, match, frozenset(schema.table_of(name) for name in fields)
    )
