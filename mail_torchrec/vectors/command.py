"""The ``mail-torchrec vectors`` command: an exported model to a folder of vectors."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from mail_torchrec.data.schema.schema import Group, Schema
from mail_torchrec.utils.atomic_dir import atomic_dir
from mail_torchrec.utils.progress import progress_bar
from mail_torchrec.vectors.embedder import Embedder
from mail_torchrec.vectors.index import IndexSettings, build_index, load_faiss
from mail_torchrec.vectors.recall import measure_recall
from mail_torchrec.vectors.vector_files import VectorWriter, ids_of, read_ids, read_tables

ITEMS, USERS, INDEX, SUMMARY = "items.parquet", "users.parquet", "items.faiss", "vectors.json"
_ITEM_BATCH = 16_384
_USER_BATCH = 1_024


@dataclass(frozen=True)
class VectorOptions:
    """Options of the vectors to write."""

    model: Path
    """Folder of the exported model."""
    out: Path
    """Folder to write; must not exist."""
    users: str | None = None
    """Parquet with one user a row: the group key, attributes, histories."""
    items: str | None = None
    """Parquet with the item column: the items to take; None takes all that the model knows."""
    sequence: str | None = None
    """Behaviour sequence whose vectors are written; None takes the only one that has some."""
    index: IndexSettings | None = field(default_factory=IndexSettings)
    """Index of the items; None writes no index."""
    recall_at: tuple[int, ...] = (10, 100)
    """Values of k to measure the recall at."""
    recall_users: int = 1000
    """Most users to measure the recall with."""
    threads: int | None = None
    """Number of ONNX Runtime's threads; None leaves it to the runtime."""


def write_vectors(options: VectorOptions) -> dict[str, Any]:
    """Writes the folder, whole or not at all.

    Returns:
        Content of ``vectors.json``.

    Raises:
        ValueError: a model without vectors, unusable files, an index that cannot be built, or
            ``out`` exists.
    """
    if options.index is not None:
        load_faiss()
    with atomic_dir(options.out) as folder:
        embedder = Embedder(options.model, options.sequence, options.threads)
        report: dict[str, Any] = {
            "model": embedder.manifest.name,
            "version": embedder.version,
            "sequence": embedder.sequence,
            "dim": embedder.dim,
            "product": "the inner product of a user's and an item's vector is the relevance",
            "items": _write_items(embedder, options, folder / ITEMS),
        }
        if options.users is not None:
            report["users"] = _write_users(embedder, options.users, folder / USERS)
        if options.index is not None:
            report |= _write_index(options.index, options, report["items"]["rows"], folder)
        (folder / SUMMARY).write_text(json.dumps(report, indent=2) + "\n")
    return report


def summary(report: Mapping[str, Any], out: Path) -> list[str]:
    """Summarises the content of ``vectors.json`` in lines of text.

    Args:
        report: result of :func:`write_vectors`.
        out: folder that was written.
    """
    lines = [
        f"{out}: {report['model']}, version {report['version']}, {report['sequence']}, dimension "
        f"{report['dim']}"
    ]
    lines += [_file_line(kind, report[kind]) for kind in ("items", "users") if kind in report]
    if (index := report.get("index")) is not None:
        kind = " with ".join(text for text in (index["factory"], index["parameters"]) if text)
        lines.append(f"index {kind}: {index['bytes'] / 1e6:.1f} MB in {index['seconds']:.1f} s")
        lines.append(
            "its recall is not measured: there are no --users"
            if "recall" not in report
            else _recall_line(report["recall"])
        )
    return lines


def _file_line(kind: str, counts: Mapping[str, Any]) -> str:
    unknown = ""
    if counts.get("unknown"):
        unknown = f"; {counts['unknown']:,} that the model does not know are left out"
    return f"{kind}: {counts['rows']:,} vectors in {counts['seconds']:.1f} s{unknown}"


def _recall_line(found: Mapping[str, Any]) -> str:
    shares = ", ".join(f"{share:.1%} of the {k} best" for k, share in found["recall"].items())
    return (
        f"it finds {shares}, mean of {found['users']:,} users ({found['index_ms']:.3f} ms a user; "
        f"{found['exact_ms']:.3f} ms by looking at every item)"
    )


def _write_items(embedder: Embedder, options: VectorOptions, path: Path) -> dict[str, Any]:
    start, num_unknown = perf_counter(), 0
    if options.items is None:
        ids, rows_N = embedder.vocabulary()
    else:
        if embedder.item_column in embedder.schema.derived:
            raise ValueError(
                f"--items: '{embedder.item_column}' is derived, so no file holds it; leave --items "
                "out to take all values that the model knows"
            )
        column = embedder.schema.file_column(embedder.item_column)
        given = read_ids(options.items, column, embedder.manifest.value_types[column])
        ids, rows_N = embedder.known_items(given)
        num_unknown = len(given) - len(ids)
    if not len(ids):
        raise ValueError(
            f"there should be items that the model knows, received {num_unknown} that it does not"
        )
    batches = range(0, len(ids), _ITEM_BATCH)
    with VectorWriter(path, embedder.version) as writer:
        for first in progress_bar(batches, desc="items", unit="batch"):
            batch = slice(first, first + _ITEM_BATCH)
            writer.write(ids[batch], embedder.items(rows_N[batch]))
    return {"rows": writer.num_rows, "unknown": num_unknown, "seconds": perf_counter() - start}


def _write_users(embedder: Embedder, users: str, path: Path) -> dict[str, Any]:
    start = perf_counter()
    key = embedder.schema.file_column(embedder.schema.group_key)
    batches = read_tables(users, _user_columns(embedder.schema), _USER_BATCH)
    with VectorWriter(path, embedder.version) as writer:
        for file, table in progress_bar(batches, desc="users", unit="batch"):
            if key not in table.column_names:
                raise ValueError(f"{file}: column '{key}', whose row it is, is missing")
            ids = ids_of(table, key, embedder.manifest.value_types[key], file)
            writer.write(ids, embedder.users(table, file))
    if not writer.num_rows:
        raise ValueError(f"'{users}' should hold users, received no rows")
    return {"rows": writer.num_rows, "seconds": perf_counter() - start}


def _user_columns(schema: Schema) -> list[str]:
    """Lists the file columns that user vectors depend on, and the group key."""
    names = schema.names(Group.GROUP_KEY, Group.ATTRIBUTE, Group.BEHAVIOUR, Group.NEW_USER)
    return list(dict.fromkeys(raw for name in names for raw in schema.raw_columns(name)))


def _write_index(
    settings: IndexSettings, options: VectorOptions, num_items: int, folder: Path
) -> dict[str, Any]:
    """Writes the index, and measures its recall where there are user vectors."""
    start = perf_counter()
    settings = settings.resolve(num_items)
    index = build_index(folder / ITEMS, settings, folder / INDEX)
    report: dict[str, Any] = {
        "index": {
            "factory": settings.factory,
            "parameters": settings.parameters,
            "metric": "inner product",
            "seconds": perf_counter() - start,
            "bytes": (folder / INDEX).stat().st_size,
        }
    }
    if options.users is not None:
        found = measure_recall(
            index, folder / ITEMS, folder / USERS, options.recall_at, options.recall_users
        )
        report["recall"] = asdict(found)
    return report
