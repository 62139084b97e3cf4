"""Columns of a drafted schema: settings of each, and the reason that its comment gives."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from mail_torchrec.data.parquet.arrow import one_chunk
from mail_torchrec.data.parquet.logical_types import LogicalType
from mail_torchrec.data_check.column_profile import ColumnProfile, determination
from mail_torchrec.data_check.roles import Profiles, Roles
from mail_torchrec.data_check.sequences import DraftedSequence, find_sequences, is_rising
from mail_torchrec.data_check.target_means import number_codes, target_mean_auc

_FOLLOWS = 0.8
"""A column is the user's or the item's where its value follows from it at least so far."""
_ROWS = 50_000  # rows that this is measured on
_MAX_AUC = 0.8  # of one column that is neither the user's nor the item's
_MANY = 500_000  # ids of one table, from which on they are hashed
_MEASURES = {"price", "amount", "count", "cnt", "num", "number", "duration", "score", "rate"}
_MEASURES |= {"ratio", "length", "size", "age", "days", "views", "likes", "income", "distance"}
_MEASURES |= {"seconds", "minutes", "quantity", "stock", "rating", "total", "sum", "avg"}
_ORDER: list[str | None]
_ORDER = ["group_key", "label", "conversion", "weight", "new_user", "attribute", "behaviour"]
_ORDER += ["context", "position", "item", None]
_CONTEXT = {"hour", "weekday", "dow", "device", "tab", "page", "slot", "channel", "scene"}


@dataclass(frozen=True)
class DraftedColumn:
    """One line of a drafted schema.

    Args:
        name: in the schema.
        settings: of the column; None for one that is left out.
        reason: what the comment says.
    """

    name: str
    settings: dict[str, Any] | None
    reason: str


@dataclass(frozen=True)
class DraftedSchema:
    """Columns and sequences of a drafted schema, in the order in which they are written.

    Args:
        columns: those in use first.
        sequences: settings of section ``schema.sequences`` by name, with the reason of each.
        hashed: tables of so many ids that their rows are hashed: their number of rows.
    """

    columns: list[DraftedColumn]
    sequences: list[DraftedColumn]
    hashed: dict[str, int]

    @property
    def groups(self) -> set[str]:
        """Groups of the columns in use."""
        used = {str(column.settings["group"]) for column in self.columns if column.settings}
        return used | ({"behaviour"} if self.sequences else set())


def in_order(lines: list[DraftedColumn]) -> list[DraftedColumn]:
    """Sorts columns by their groups, those that are left out last."""
    return sorted(lines, key=lambda line: _ORDER.index((line.settings or {}).get("group")))


def draft_schema(profiles: Profiles, roles: Roles) -> DraftedSchema:
    """Drafts the columns and sequences of a schema.

    Args:
        profiles: of all columns.
        roles: of columns that have one of their own.
    """
    features = {name: column for name, column in profiles.items() if name not in roles.taken}
    codes = {name: column.codes(_ROWS) for name, column in features.items()}
    users = profiles[roles.user].codes(_ROWS)
    by_user = {name: determination(codes_R, users) for name, codes_R in codes.items()}
    by_item: dict[str, float] = {}
    if roles.item is not None:
        items = profiles[roles.item].codes(_ROWS)
        by_item = {name: determination(codes_R, items) for name, codes_R in codes.items()}
    sequences = find_sequences(features, roles.item, by_item)
    in_sequences = {name for sequence in sequences for name in sequence.lists}
    lines = list(_role_lines(profiles, roles))
    for name, column in features.items():
        if name not in in_sequences:
            scores = by_user[name], by_item.get(name, np.nan)
            lines.append(_feature(column, scores, roles, profiles[roles.label]))
    declared: list[DraftedColumn] = []
    for sequence in sequences:
        if sequence.shared or sequence.others:
            declared.append(_declared(profiles, sequence, roles.item))
            lines.extend(_unused_parts(profiles, sequence))
        else:
            lines.extend(_behaviours(profiles, sequence, roles.item))
    return DraftedSchema(in_order(lines), declared, _hashed(profiles, lines))


def _role_lines(profiles: Profiles, roles: Roles) -> Iterator[DraftedColumn]:
    reason = f"the user: {roles.reasons[roles.user]}"
    yield DraftedColumn(roles.user, {"group": "group_key"}, reason)
    reason = f"the label: {roles.reasons[roles.label]}"
    yield DraftedColumn(roles.label, {"group": "label"}, reason)
    binary = [name for name in roles.after_click if profiles[name].is_binary]
    for name in roles.after_click:
        if name in binary[:1]:
            reason = "1 in clicked rows alone: it followed the click; for model.multi_task"
            yield DraftedColumn(name, {"group": "conversion"}, reason)
        else:
            reason = "left out: 0 where not clicked, so known after it; a label of model.tasks?"
            yield DraftedColumn(name, None, reason)
    if roles.weight is not None:
        low, high = profiles[roles.weight].range
        reason = f"its name, and numbers from {low:g} to {high:g}: multiplies losses and metrics"
        yield DraftedColumn(roles.weight, {"group": "weight"}, reason)
    if roles.position is not None:
        reason = "its name: where the item was shown; read in training alone, null elsewhere"
        yield DraftedColumn(roles.position, {"group": "position"}, reason)
    if roles.new_user is not None:
        yield DraftedColumn(roles.new_user, {"group": "new_user"}, "its name, and 0 and 1")


def _feature(
    column: ColumnProfile, scores: tuple[float, float], roles: Roles, label: ColumnProfile
) -> DraftedColumn:
    """Drafts a column that no role and no sequence has.

    Args:
        column: what to draft.
        scores: how far it follows from the user, and from the item.
        roles: of other columns.
        label: clicked or not.
    """
    if (reason := _why_left_out(column, roles)) is not None:
        return DraftedColumn(column.name, None, f"left out: {reason}")
    group, reason = _group(column, *scores, roles)
    if group == "context" and (auc := _own_auc(column, label)) >= _MAX_AUC:
        reason = f"left out: predicts the label alone (AUC {auc:.2f}); known before the click?"
        return DraftedColumn(column.name, None, reason)
    settings: dict[str, Any] = {"group": group}
    values = f"{column.num_distinct:,} values"
    if column.is_list and column.is_vector:
        settings["kind"] = "vector"
        values = f"vectors of {column.lengths_R.max()} numbers"
    elif column.is_list:
        settings |= {"kind": "list"} | _list_settings(column)
        values = f"lists of up to {column.lengths_R.max()} of {values}"
    elif _is_measure(column):
        low, high = column.range
        settings |= {"kind": "numeric"} | ({"transform": "log"} if _is_skewed(column) else {})
        values = f"numbers from {low:g} to {high:g}"
    nulls = f", {column.null_share:.1%} null" if column.null_share else ""
    return DraftedColumn(column.name, settings, f"{reason}; {values}{nulls}")


def _group(column: ColumnProfile, by_user: float, by_item: float, roles: Roles) -> tuple[str, str]:
    if column.name == roles.item:
        return "item", "the target item"
    if column.words & _CONTEXT:
        return "context", "its name"
    scores = {"attribute": by_user, "item": by_item}
    best = max(scores, key=lambda group: np.nan_to_num(scores[group], nan=-1.0))
    whose = {"attribute": "user", "item": "item"}[best]
    if scores[best] >= _FOLLOWS:
        return best, f"follows from the {whose} ({scores[best]:.0%})"
    if np.isnan(by_user) and column.words & {"user", "member", "customer"}:
        return "attribute", "its name; too few rows of one user to see more"
    return "context", "follows neither from the user nor from the item"


def _own_auc(column: ColumnProfile, label: ColumnProfile) -> float:
    """Returns the AUC of a column's values alone."""
    codes_R = column.codes(_ROWS)
    if column.logical is LogicalType.NUMBER and not column.is_list:
        numbers = one_chunk(column.values.slice(0, _ROWS)).fill_null(np.nan).to_numpy()
        codes_R = number_codes(numbers)
    return target_mean_auc(codes_R, label.numbers[:_ROWS] == 1)


def _why_left_out(column: ColumnProfile, roles: Roles) -> str | None:
    """Returns why a column is no feature; None where it may be one."""
    if column.fault is not None:
        return f"its values {column.fault}"
    if not column.num_distinct:
        return "it holds no value"
    if column.is_time:
        return "a time; a model that learns it knows no later one"
    if column.logical is None:
        return f"of type {column.stored}, which no kind reads"
    if column.logical is LogicalType.NUMBER and not column.is_list:
        known_R = column.numbers[column.values.is_valid().to_numpy()]
        if not np.isfinite(known_R).all():
            return "it holds NaN or infinity; write null where a value is unknown"
    is_listed = column.is_list and not column.is_vector
    if is_listed and column.logical is LogicalType.NUMBER:
        return "lists of numbers of several lengths"
    if column.num_distinct == 1 and not column.null_share and not column.is_list:
        return "one value in all sampled rows"
    if column.words & {"weekday", "dow"} and column.num_distinct < 7:
        return f"{column.num_distinct} weekdays, so that others are unknown to the model"
    rows = len(column.values)
    if column.name != roles.item and column.is_id and not column.is_list and rows > 1000:
        if column.num_distinct > 0.9 * rows:
            return "a new value in nearly every row, such as a request's id"
    return None


def _is_measure(column: ColumnProfile) -> bool:
    if column.logical is LogicalType.NUMBER:
        return True
    is_integer = column.logical is LogicalType.INTEGER and not column.is_list
    return is_integer and column.num_distinct > 20 and bool(column.words & _MEASURES)


def _is_skewed(column: ColumnProfile) -> bool:
    numbers = one_chunk(column.values).drop_null().cast("float64").to_numpy()
    middle, high = np.percentile(numbers, [50, 99])
    return bool(numbers.min() >= 0 and high > 3 * max(middle, 1e-9))


def _list_settings(column: ColumnProfile) -> dict[str, Any]:
    longest = int(-(-column.lengths_R.max() // 10) * 10)  # other rows may have a longer one
    settings: dict[str, Any] = {"max_length": min(100, max(10, longest))}
    return settings if column.padding is None else settings | {"padding": column.padding}


def _declared(profiles: Profiles, sequence: DraftedSequence, item: str | None) -> DraftedColumn:
    """Drafts a section of ``schema.sequences``."""
    items = profiles[sequence.items]
    parts: dict[str, Any] = {"item": {"column": sequence.items, "table": item}}
    parts |= {table: {"column": part, "table": table} for table, part in sequence.shared.items()}
    if sequence.action is not None:
        parts["action"] = {"column": sequence.action, "joined": False}
    name = _shared_words(sequence.lists) or sequence.items
    reason = f"equally long in every row: {', '.join(sequence.lists)}; {_longest(items)}"
    return DraftedColumn(name, parts | _list_settings(items), reason)


def _shared_words(names: list[str]) -> str:
    """Returns the words that all names begin with, joined by ``_``."""
    words = zip(*(name.split("_") for name in names), strict=False)
    return "_".join(group[0] for group in takewhile(lambda group: len(set(group)) == 1, words))


def _unused_parts(profiles: Profiles, sequence: DraftedSequence) -> Iterator[DraftedColumn]:
    for name in sequence.others:
        reason = f"left out: aligned with {sequence.items}, no item column has its values"
        if profiles[name].is_time and is_rising(profiles[name]):
            reason = f"left out: times of {sequence.items}, which rise: it is oldest first; with "
            reason += "age_of, ages may be a part, in a table of buckets"
        yield DraftedColumn(name, None, reason)


def _behaviours(
    profiles: Profiles, sequence: DraftedSequence, item: str | None
) -> Iterator[DraftedColumn]:
    """Drafts a history of items, with actions at most, as behaviour columns."""
    items = profiles[sequence.items]
    settings = {"group": "behaviour", "kind": "list"}
    of_items = _list_settings(items)
    reason = f"holds ids of {item}; {_longest(items)}"
    yield DraftedColumn(sequence.items, settings | of_items | {"table": item}, reason)
    if sequence.action is not None:
        count = profiles[sequence.action].num_distinct
        reason = f"as long as {sequence.items} in every row, {count} values"
        settings |= {"action_of": sequence.items, "max_length": of_items["max_length"]}
        yield DraftedColumn(sequence.action, settings, reason)


def _longest(items: ColumnProfile) -> str:
    if items.padding is not None:
        return f"all of {items.lengths_R.max()} entries, filled up with {items.padding!r}"
    empty = float((items.lengths_R == 0).mean())
    return f"up to {items.lengths_R.max()} entries, none in {empty:.1%} of the rows"


def _hashed(profiles: Profiles, lines: list[DraftedColumn]) -> dict[str, int]:
    """Finds tables of more ids than a vocabulary should hold, and sizes for them."""
    features = ("attribute", "context", "item")
    used = [line.name for line in lines if (line.settings or {}).get("group") in features]
    counts = {name: profiles[name].num_distinct for name in used if profiles[name].is_id}
    return {name: 1 << (4 * count).bit_length() for name, count in counts.items() if count > _MANY}
