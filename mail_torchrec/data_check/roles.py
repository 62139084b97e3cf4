"""Roles that columns of unknown files look like: label, user, target item, weights, times.

A role is taken from values first and from names second, and each comes with its reason. Shapes:
``R`` rows of the sample.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from mail_torchrec.data.parquet.logical_types import LogicalType
from mail_torchrec.data_check.column_profile import ColumnProfile

Profiles = Mapping[str, ColumnProfile]

_LABEL = ("clicked", "click", "clk", "label", "target", "response")
_USER = ("user", "uid", "userid", "member", "customer", "visitor", "account", "buyer", "viewer")
_ITEM: tuple[str, ...]
_ITEM = ("item", "iid", "itemid", "video", "product", "sku", "ad", "adgroup", "movie", "article")
_ITEM += ("goods", "song", "news", "doc", "document", "creative", "listing", "offer", "poi")
_WEIGHT = {"weight", "weights", "ipw"}  # not propensities, whose inverses are weights
_POSITION = {"position", "pos", "rank", "slot"}
_NEW_USER = {"new_user", "is_new", "is_new_user", "new", "cold", "is_cold"}


@dataclass(frozen=True)
class Roles:
    """Columns with a role of their own, by names in the files; None: no column looks like it."""

    label: str
    user: str
    item: str | None
    """The target item: the item column whose ids histories hold."""
    after_click: list[str]
    """Columns that hold something beside 0 in clicked rows alone."""
    weight: str | None
    position: str | None
    new_user: str | None
    reasons: dict[str, str]
    """Why each column has its role."""

    @property
    def taken(self) -> set[str]:
        """All columns with a role, but the item."""
        single = self.label, self.user, self.weight, self.position, self.new_user
        return {name for name in (*single, *self.after_click) if name is not None}


def find_roles(profiles: Profiles, chosen: Mapping[str, str]) -> Roles:
    """Finds the columns with a role.

    Args:
        profiles: of all columns.
        chosen: columns that the user named, by ``label``, ``user`` and ``item``.

    Raises:
        ValueError: a named column is not there, or no column looks like the label or the user.
    """
    for option, name in chosen.items():
        if name not in profiles:
            raise ValueError(f"--{option} {name}: no such column; there are {', '.join(profiles)}")
    reasons: dict[str, str] = {}
    label = _checked_label(profiles, chosen) or _label(profiles, reasons)
    user = chosen.get("user") or _user(profiles, reasons)
    for option in ("user", "item"):
        if option in chosen:
            _check_key(option, profiles[chosen[option]], label)
    for option, name in (("label", label), ("user", user)):
        reasons.setdefault(name, f"named by --{option}")
    others = {name: column for name, column in profiles.items() if name not in (label, user)}
    after_click = [name for name, column in others.items() if _is_after(column, profiles[label])]
    others = {name: column for name, column in others.items() if name not in after_click}
    item = chosen.get("item") or _item(others)
    numbers = [column for column in others.values() if _is_positive(column)]
    weight = _named(numbers, _WEIGHT)
    slots = [column for column in others.values() if column.is_id and column.num_distinct <= 1000]
    position = _named(slots, _POSITION)
    flags = [column for column in others.values() if column.is_binary]
    new_user = next((column.name for column in flags if column.name.lower() in _NEW_USER), None)
    return Roles(label, user, item, after_click, weight, position, new_user, reasons)


def _checked_label(profiles: Profiles, chosen: Mapping[str, str]) -> str | None:
    name = chosen.get("label")
    if name is not None and not profiles[name].is_binary:
        binary = [column for column in profiles.values() if column.is_binary]
        raise ValueError(
            f"--label {name}: should be a column of 0 and 1; there are {_names(binary)}"
        )
    return name


def _check_key(option: str, column: ColumnProfile, label: str) -> None:
    if column.name == label:
        raise ValueError(f"--{option} {column.name}: that is the label; name another column")
    if column.is_list or not column.is_id:
        raise ValueError(
            f"--{option} {column.name}: should be a column of ids (integers or strings), one a "
            f"row, received {column.stored}"
        )


def _label(profiles: Profiles, reasons: dict[str, str]) -> str:
    binary = [column for column in profiles.values() if column.is_binary]
    for word in _LABEL:
        if (name := _named(binary, {word})) is not None:
            reasons[name] = f"0 and 1, and a name with '{word}'"
            return name
    if len(binary) == 1:
        reasons[binary[0].name] = "the only column of 0 and 1"
        return binary[0].name
    found = ", ".join(column.name for column in binary) or "none"
    raise ValueError(
        f"no column looks like the label (clicked or not); columns of 0 and 1: {found}; name it "
        "with --label COLUMN"
    )


def _user(profiles: Profiles, reasons: dict[str, str]) -> str:
    ids = [column for column in profiles.values() if column.is_id and not column.is_list]
    named = [column for column in ids if column.words & set(_USER) and not column.is_binary]
    if not named:
        raise ValueError(
            "no column looks like the user's key; name it with --user COLUMN, whose rows are one "
            f"user's where its values agree; columns of ids: {_names(ids)}"
        )
    best = max(named, key=lambda column: column.num_distinct)
    reasons[best.name] = "its name, and of such columns the most values"
    return best.name


def _item(profiles: Profiles) -> str | None:
    """Finds the target item: by the ids that it shares with lists, else by its name."""
    scalars = [column for column in profiles.values() if column.is_id and not column.is_list]
    lists = [column for column in profiles.values() if column.is_list and column.is_id]
    found: dict[str, float] = {}
    for scalar in scalars:
        shared = [
            overlap(column, scalar) * min(scalar.num_distinct, column.num_distinct)
            for column in lists
        ]
        found[scalar.name] = max(shared, default=0.0)
    best = max(found, key=lambda name: found[name], default=None)
    if best is not None and found[best] >= 5:
        return best
    named = [column for column in scalars if column.words & set(_ITEM) and not column.is_binary]
    ids = [column for column in named if column.words & {"id", "iid", "itemid"}] or named
    return max(ids, key=lambda column: column.num_distinct).name if ids else None


def overlap(lists: ColumnProfile, scalar: ColumnProfile) -> float:
    """Returns the share of the distinct values of both columns that both have (Jaccard)."""
    if lists.logical is not scalar.logical or lists.logical is None:
        return 0.0
    shared = pc.sum(pc.is_in(lists.distinct, value_set=scalar.distinct)).as_py() or 0
    return float(shared / max(1, lists.num_distinct + scalar.num_distinct - shared))


def _is_after(column: ColumnProfile, label: ColumnProfile) -> bool:
    """Returns whether a column of numbers is 0 or null where not clicked, but for few rows."""
    kinds = (LogicalType.INTEGER, LogicalType.NUMBER, LogicalType.BOOLEAN)
    if column.is_list or column.logical not in kinds:
        return False
    clicked_R = label.numbers == 1
    is_set_R = np.nan_to_num(column.numbers) != 0
    in_others = int((is_set_R & ~clicked_R).sum())
    return bool(clicked_R.mean() < 0.9 and is_set_R.any()) and in_others <= 0.01 * is_set_R.sum()


def _is_positive(column: ColumnProfile) -> bool:
    numbers = column.logical in (LogicalType.INTEGER, LogicalType.NUMBER)
    low = column.range[0]
    return numbers and not column.is_list and low is not None and low >= 0


def _named(columns: Iterable[ColumnProfile], words: set[str]) -> str | None:
    return next((column.name for column in columns if column.words & words), None)


def _names(columns: Iterable[ColumnProfile]) -> str:
    return ", ".join(column.name for column in columns) or "none"
