"""Rules that the settings of new items must obey, beside those of each section."""

from mail_torchrec.data.items.candidate_item import item_column
from mail_torchrec.data.items.hidden_items import crosses_of
from mail_torchrec.data.items.new_items import has_new_items
from mail_torchrec.data.items.settings import HiddenItemSettings, NewItemSettings
from mail_torchrec.data.schema.schema import Group, Schema


def check_new_items(
    schema: Schema, rule: NewItemSettings | None, hidden: HiddenItemSettings | None
) -> None:
    """Checks the settings of new items against the columns.

    Args:
        schema: columns and tables.
        rule: section ``data.new_items``.
        hidden: section ``data.cold_start.items``.

    Raises:
        ValueError: a column is missing or of the wrong kind, there are two rules or none, ids are
            not counted, or a cross would tell a hidden id.
    """
    if not has_new_items(schema, rule, hidden):
        return
    item = item_column(schema, rule, hidden)
    if rule is not None and rule.item is not None and hidden is not None:
        if hidden.item != rule.item:
            raise ValueError(
                f"data.cold_start.items.item should be that of data.new_items, '{rule.item}', "
                f"received {hidden.item or 'null'}; set it"
            )
    _check_rule(schema, rule, hidden, item)
    if hidden is not None and (crosses := crosses_of(schema, item)):
        raise ValueError(
            f"data.cold_start.items withholds the ids of '{item}', and the cross "
            f"schema.columns.{min(crosses)} would tell them; drop the cross, or hide no items"
        )


def _check_rule(
    schema: Schema, rule: NewItemSettings | None, hidden: HiddenItemSettings | None, item: str
) -> None:
    if rule is None:
        return
    if schema.new_item is not None and rule.has_rule:
        raise ValueError(
            f"data.new_items and schema.columns.{schema.new_item} (group 'new_item') are two rules "
            "for new items; drop one"
        )
    if not rule.has_rule and schema.new_item is None and hidden is None:
        raise ValueError(
            "data.new_items should have a rule: max_count, or age and max_age; received neither"
        )
    table = schema.table_of(item)
    if rule.max_count is not None and not schema.id_policy(table).needs_counts:
        raise ValueError(
            f"data.new_items.max_count needs counts of the ids, and schema.tables.{table} has ids "
            f"'{schema.tables[table].ids}', which count none; choose ids 'vocabulary' or "
            "'managed', or give age and max_age, or a column of group 'new_item'"
        )
    if rule.age is not None and rule.age not in schema.numeric(Group.ITEM):
        numbers = ", ".join(schema.numeric(Group.ITEM)) or "none"
        raise ValueError(
            f"data.new_items.age should be an item column of kind 'numeric' ({numbers}), received "
            f"'{rule.age}'"
        )
