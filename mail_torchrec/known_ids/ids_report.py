"""Reports of the ids of tables: how full each is, who is in, who came and who left."""

from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.ids.admission import NEVER
from mail_torchrec.data.ids.managed import ManagedIds
from mail_torchrec.data.ids.policy import IdEncoder
from mail_torchrec.data.parquet.arrow import Ints
from mail_torchrec.reporting.markdown import markdown_table

_EPOCH = date(1970, 1, 1)
Record = dict[str, Any]
_OF_UPDATE = ("admitted", "evicted", "expired", "rare", "refused")
_SHOW = ("table", "ids", "rows", "of ids", "owned", "full", "day", *_OF_UPDATE)
_DIFF = ("table", "ids", "before", "after", "stayed", "joined", "left", "other row")


def fullness(encoder: IdEncoder) -> Record:
    """Describes how full a table is, and what its last update did."""
    own_rows = encoder.num_rows - encoder.first_own_row
    found: Record = {
        "ids": encoder.manifest_entry("", "").ids,
        "rows": encoder.num_rows,
        "rows_of_ids": own_rows,
    }
    if encoder.values is None:
        return found
    found |= {"owned": len(encoder.values), "full": len(encoder.values) / max(own_rows, 1)}
    if isinstance(encoder, ManagedIds):
        found |= encoder.last_update.model_dump(mode="json")
        found["never_owned"] = own_rows - len(encoder.values) - _freed(encoder)
    return found


def _freed(encoder: ManagedIds) -> int:
    """Counts the rows that had an owner and have none."""
    is_freed_R = encoder.owned.generations_R > 0
    is_freed_R[encoder.owned.rows_V] = False
    return int(np.count_nonzero(is_freed_R))


def members(encoder: IdEncoder, limit: int) -> list[Record]:
    """Lists the most frequent ids with rows of their own.

    Args:
        encoder: of a table that knows its ids.
        limit: maximum number of ids.
    """
    assert encoder.values is not None and encoder.counts_V is not None
    order = np.argsort(-encoder.counts_V, kind="stable")[:limit]
    return [_member(encoder, int(place)) for place in order]


def _member(encoder: IdEncoder, place: int) -> Record:
    assert encoder.values is not None and encoder.counts_V is not None
    row = int(encoder.rows_V[place])
    found = {
        "value": encoder.values[place].as_py(),
        "row": row,
        "count": round(float(encoder.counts_V[place]), 2),
    }
    if isinstance(encoder, ManagedIds):
        day = int(encoder.owned.days_V[place])
        found["last_seen"] = None if day == NEVER else str(_EPOCH + timedelta(days=day))
        found["generation"] = int(encoder.owned.generations_R[row - encoder.first_own_row])
    return found


def difference(before: IdEncoder, after: IdEncoder) -> Record:
    """Counts the ids that stayed, came and left between two tables that know their ids.

    Raises:
        ValueError: the ids are of different types.
    """
    joined, left = _not_in(after, before), _not_in(before, after)
    assert before.values is not None and after.values is not None
    stayed = np.setdiff1d(np.arange(len(before.values)), left)
    moved = 0
    if len(stayed):
        rows_N = after.encode(before.values.take(pa.array(stayed)))
        moved = int(np.count_nonzero(rows_N != before.rows_V[stayed]))
    return {
        "ids": after.manifest_entry("", "").ids,
        "before": len(before.values),
        "after": len(after.values),
        "stayed": len(stayed),
        "joined": len(joined),
        "left": len(left),
        "other_row": moved,
    }


def changes(before: IdEncoder, after: IdEncoder, limit: int) -> dict[str, list[Record]]:
    """Lists the most frequent ids that came and that left."""
    found = {}
    for name, one, other in (("joined", after, before), ("left", before, after)):
        places = _not_in(one, other)
        assert one.counts_V is not None
        order = places[np.argsort(-one.counts_V[places], kind="stable")[:limit]]
        found[name] = [_member(one, int(place)) for place in order]
    return found


def _not_in(encoder: IdEncoder, other: IdEncoder) -> Ints:
    """Returns the places of ids that another table does not know."""
    values, others = encoder.values, other.values
    assert values is not None and others is not None
    if not len(values) or not len(others):
        return np.arange(len(values))
    if values.type != others.type:
        raise ValueError(
            f"the ids of both should be of one type, received {others.type} and {values.type}; "
            "name runs on the same columns"
        )
    is_in = pc.is_in(values, value_set=others).to_numpy(zero_copy_only=False)
    return np.flatnonzero(~is_in)


def show_text(tables: Mapping[str, Record]) -> str:
    """Formats what :func:`fullness` found as a Markdown table."""
    return markdown_table(_SHOW, [[name, *_show_cells(found)] for name, found in tables.items()])


def diff_text(tables: Mapping[str, Record]) -> str:
    """Formats what :func:`difference` found as a Markdown table."""
    lines = [[name, *map(_number, found.values())] for name, found in tables.items()]
    return markdown_table(_DIFF, lines)


def ids_text(records: list[Record]) -> str:
    """Formats ids as a Markdown table."""
    if not records:
        return "none\n"
    return markdown_table(
        [*records[0]], [[str(value) for value in one.values()] for one in records]
    )


def _show_cells(found: Record) -> Iterator[str]:
    yield found["ids"]
    for name in ("rows", "rows_of_ids", "owned"):
        yield _number(found.get(name))
    yield f"{found['full']:.1%}" if "full" in found else ""
    yield found.get("day") or ""
    yield from (_number(found.get(name)) for name in _OF_UPDATE)


def _number(value: int | str | None) -> str:
    return f"{value:,}" if isinstance(value, int) else value or ""
