"""Rules that declared sequences must obey, beside those of their columns."""

from mail_torchrec.data.schema.schema_columns import SchemaColumns
from mail_torchrec.data.schema.sequences import SequenceSettings


def check_sequences(schema: SchemaColumns) -> None:
    """Checks the sequences of section ``schema.sequences``.

    Raises:
        ValueError: a rule is broken; the message names the sequence and the remedy.
    """
    for name, settings in schema.declared_sequences.items():
        _check_joined(name, settings)
        _check_candidate(schema, name)
        _check_match(schema, name, settings)


def _check_joined(name: str, settings: SequenceSettings) -> None:
    first, part = next(iter(settings.parts.items()))
    if not part.joined:
        raise ValueError(
            f"schema.sequences.{name}.{first}: the first part should be joined, received joined "
            "false; name another part first"
        )


def _check_candidate(schema: SchemaColumns, name: str) -> None:
    """Checks that at most one item column stands for each part in the candidate's vector."""
    for column in schema.joined_parts(name):
        if len(targets := schema.targets_of(column)) > 1:
            raise ValueError(
                f"schema.sequences.{name}: at most one item column may share table "
                f"'{schema.table_of(column)}' with a part (it stands for the part in the "
                f"candidate's vector), found {targets}; set the 'table' of the others"
            )


def _check_match(schema: SchemaColumns, name: str, settings: SequenceSettings) -> None:
    if settings.match is None:
        return
    if settings.match not in settings.parts:
        raise ValueError(
            f"schema.sequences.{name}.match: should name a part ({', '.join(settings.parts)}), "
            f"received '{settings.match}'"
        )
    column = schema.match_column(name)
    if schema.part_target(column) is None:
        raise ValueError(
            f"schema.sequences.{name}.match: exactly one item column must share table "
            f"'{schema.table_of(column)}' with part '{settings.match}', found none; add it, or "
            "match another part"
        )
