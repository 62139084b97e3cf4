"""Column of the candidate item, whose ids are new or not."""

from mail_torchrec.data.items.settings import HiddenItemSettings, NewItemSettings
from mail_torchrec.data.schema.schema import Group, Schema


def candidate_item(schema: Schema) -> str | None:
    """Returns the column of the candidate item: a behaviour's target, else the first item column.

    None where the schema has no column of group ``item`` with one id a row; buckets are no ids.
    """
    return next(iter(_item_ids(schema)), None)


def item_column(
    schema: Schema, rule: NewItemSettings | None, hidden: HiddenItemSettings | None
) -> str:
    """Returns the column of the candidate item, whose ids are new or not.

    Args:
        schema: columns.
        rule: section ``data.new_items``.
        hidden: section ``data.cold_start.items``.

    Raises:
        ValueError: there is none, or the sections do not name one item column of one id.
    """
    given = {section.item for section in (rule, hidden) if section is not None} - {None}
    known = _item_ids(schema)
    if len(given) > 1 or given - {*known}:
        found = ", ".join(sorted(map(str, given)))
        raise ValueError(
            "data.new_items.item and data.cold_start.items.item should name one item column of one "
            f"id a row ({', '.join(known) or 'none'}), received {found}"
        )
    if not known:
        raise ValueError(
            "new items need a column of group 'item' with one id a row, found none; add it to "
            "schema.columns, or drop data.new_items and data.cold_start.items"
        )
    return next(iter(given), None) or known[0]


def _item_ids(schema: Schema) -> list[str]:
    """Lists the item columns of one id a row, targets of behaviours first."""
    ids = [name for name in schema.fields(Group.ITEM) if name in schema.scalars]
    return [name for name in ids if name not in schema.bucketed]
