"""From an exported model to a folder of vectors."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm import tqdm

from mail_torchrec.data.parquet.arrow import plain_ids
from mail_torchrec.data.schema.schema import Group
from mail_torchrec.utils.atomic_dir import new_folder
from mail_torchrec.utils.logging import bar_interval
from mail_torchrec.vectors.embedder import Embedder
from mail_torchrec.vectors.index import IndexSettings, build_index, check_library, measure_recall
from mail_torchrec.vectors.vector_files import VectorWriter, read_ids, read_tables

ITEMS, USERS, INDEX, TOLD = "items.parquet", "users.parquet", "items.faiss", "vectors.json"
_ITEMS_AT_A_TIME = 16_384
_USERS_AT_A_TIME = 1_024


@dataclass(frozen=True)
class Wanted:
    """What is to be written."""

    model: Path
    out: Path
    users: str | None = None
    """Parquet with a user a row: the group key, attributes, histories."""
    items: str | None = None
    """Parquet with the item column: the items to take; None takes all that the model knows."""
    sequence: str | None = None
    index: IndexSettings | None = field(default_factory=IndexSettings)
    recall_at: tuple[int, ...] = (10, 100)
    recall_users: int = 1000
    threads: int | None = None


def write_vectors(wanted: Wanted) -> dict[str, Any]:
    """Writes the folder, whole or not at all, and returns what ``vectors.json`` tells.

    Raises:
        ValueError: a model without such vectors, bad files, an index that cannot be made, or
            ``out`` exists.
    """
    if wanted.index is not None:
        check_library()
    with new_folder(wanted.out) as folder:
        embedder = Embedder(wanted.model, wanted.sequence, wanted.threads)
        told: dict[str, Any] = {
            "model": embedder.manifest.name,
            "version": embedder.version,
            "sequence": embedder.sequence,
        }
        told |= {
            "dim": embedder.dim,
            "product": (
                "the inner product of a user's and an item's vector is the tower's idea of the "
                "liking"
            ),
        }
        told["items"] = _write_items(embedder, wanted, folder / ITEMS)
        if wanted.users is not None:
            told["users"] = _write_users(embedder, wanted.users, folder / USERS)
        if wanted.index is not None:
            start = perf_counter()
            settings = wanted.index.filled_in(told["items"]["rows"])
            index = build_index(folder / ITEMS, settings, folder / INDEX)
            told["index"] = {
                "factory": settings.factory,
                "parameters": settings.parameters,
                "metric": "inner product",
            }
            told["index"] |= {
                "seconds": perf_counter() - start,
                "bytes": (folder / INDEX).stat().st_size,
            }
            if wanted.users is not None:
                recall = measure_recall(
                    index, folder / ITEMS, folder / USERS, wanted.recall_at, wanted.recall_users
                )
                told["recall"] = asdict(recall)
        (folder / TOLD).write_text(json.dumps(told, indent=2) + "\n")
    return told


def summary(told: Mapping[str, Any], out: Path) -> list[str]:
    """What was written, in words."""
    lines = [
        f"{out}: {told['model']}, version {told['version']}, {told['sequence']}, dimension "
        f"{told['dim']}"
    ]
    for kind in ("items", "users"):
        if (part := told.get(kind)) is not None:
            unknown = (
                f"; {part['unknown']:,} that the model does not know are left out"
                if part.get("unknown")
                else ""
            )
            lines.append(f"{kind}: {part['rows']:,} vectors in {part['seconds']:.1f} s{unknown}")
    if (index := told.get("index")) is not None:
        kind = " with ".join(text for text in (index["factory"], index["parameters"]) if text)
        lines.append(f"index {kind}: {index['bytes'] / 1e6:.1f} MB in {index['seconds']:.1f} s")
        lines.append(
            "its recall is not measured: there are no --users"
            if "recall" not in told
            else _recall(told["recall"])
        )
    return lines


def _recall(found: Mapping[str, Any]) -> str:
    shares = ", ".join(f"{share:.1%} of the {k} best" for k, share in found["recall"].items())
    return (
        f"it finds {shares}, mean of {found['users']:,} users ({found['index_ms']:.3f} ms a user; "
        f"{found['exact_ms']:.3f} ms by looking at "
        "every item)"
    )


def _write_items(embedder: Embedder, wanted: Wanted, path: Path) -> dict[str, Any]:
    start, left_out = perf_counter(), 0
    if wanted.items is None:
        ids, rows_N = embedder.vocabulary()
    else:
        given = read_ids(wanted.items, embedder.schema.file_column(embedder.item_column))
        ids, rows_N = embedder.known(given)
        left_out = len(given) - len(ids)
    if not len(ids):
        raise ValueError(
            f"there should be items that the model knows, received {left_out} that it does not"
        )
    with VectorWriter(path, embedder.version) as writer:
        pieces = range(0, len(ids), _ITEMS_AT_A_TIME)
        for first in tqdm(
            pieces, desc="items", unit="batch", leave=False, mininterval=bar_interval()
        ):
            piece = slice(first, first + _ITEMS_AT_A_TIME)
            writer.write(ids[piece], embedder.items(rows_N[piece]))
    return {"rows": writer.num_rows, "unknown": left_out, "seconds": perf_counter() - start}


def _write_users(embedder: Embedder, users: str, path: Path) -> dict[str, Any]:
    start, schema = perf_counter(), embedder.schema
    key = schema.file_column(schema.group_key)
    names = schema.names(Group.GROUP_KEY, Group.ATTRIBUTE, Group.BEHAVIOUR, Group.NEW_USER)
    columns = list(dict.fromkeys(schema.file_column(name) for name in names))
    with VectorWriter(path, embedder.version) as writer:
        bar = tqdm(
            read_tables(users, columns, _USERS_AT_A_TIME),
            desc="users",
            unit="batch",
            leave=False,
            mininterval=bar_interval(),
        )
        for file, table in bar:
            if key not in table.column_names:
                raise ValueError(f"{file}: column '{key}', whose row it is, is missing")
            writer.write(plain_ids(table[key], file=file, name=key), embedder.users(table, file))
    if not writer.num_rows:
        raise ValueError(f"'{users}' should hold users, received no rows")
    return {"rows": writer.num_rows, "seconds": perf_counter() - start}
