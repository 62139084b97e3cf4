"""Command that writes user and item vectors for retrieval."""

from pathlib import Path

import click

from mail_torchrec.cli.options import LOCAL_PATH, OUTPUT_DIR


@click.command()
@click.option(
    "--model",
    type=LOCAL_PATH,
    required=True,
    help="An exported model whose tower has vectors (dmr).",
)
@click.option("--out", type=OUTPUT_DIR, required=True, help="Folder to write; must not exist.")
@click.option(
    "--users",
    help=(
        "Parquet with a user a row: group key, attributes, histories, by their names in training. "
        "Also measures recall."
    ),
)
@click.option(
    "--items",
    help="Parquet with the item column: the items to take. By default all of the vocabulary.",
)
@click.option(
    "--sequence", help="Behaviour sequence whose vectors to write, where several have some."
)
@click.option(
    "--index",
    "factory",
    help=(
        'FAISS\'s index factory string, such as "IVF4096,SQ8" or HNSW32; none: no index. By '
        "default by the number of items."
    ),
)
@click.option(
    "--parameters",
    default="",
    help="FAISS's parameters of that index, such as nprobe=64; they are stored in its file.",
)
@click.option(
    "--recall-at",
    default="10,100",
    show_default=True,
    help="Numbers of items a user to measure the recall at.",
)
@click.option(
    "--recall-users",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Most users to measure the recall with, at even distances.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Threads of ONNX Runtime and FAISS; by default they use the machine's cores.",
)
def vectors(
    model: Path,
    out: Path,
    users: str | None,
    items: str | None,
    sequence: str | None,
    factory: str | None,
    parameters: str,
    recall_at: str,
    recall_users: int,
    threads: int | None,
) -> None:
    """Write user and item vectors for the retrieval stage, and an index of the items.

    The inner product of a user's and an item's vector is the tower's relevance (DMR: its
    user-to-item relevance). New users' vectors come from the zero-shot tower. What is written:

    \b
    items.parquet  id (raw, as in training), vector (fixed-size list of float32), model version
    users.parquet  likewise, with --users, in the order of its rows
    items.faiss    the index by inner product; its number i is row i of items.parquet
    vectors.json   sizes, times, and with --users the recall: the share of the exact best k items
                   that the index finds

    Vectors are never in memory as a whole; an index is. Below 2,000 items it is Flat (exact), else
    "IVF...,Flat" with 2 sqrt(items) cells: 4 bytes a dimension and 8 more an item; "IVF4096,SQ8"
    takes 1 byte a dimension. While it is built it takes two to three times that.

    \b
    mail-torchrec vectors --model models/demo --users users.parquet --out vectors/demo
    """  # noqa: D301
    from mail_torchrec.vectors.command import VectorOptions, summary, write_vectors
    from mail_torchrec.vectors.index import IndexSettings

    index = None if factory == "none" else IndexSettings(factory, parameters, threads)
    at = _parse_recall_at(recall_at)
    options = VectorOptions(model, out, users, items, sequence, index, at, recall_users, threads)
    for line in summary(write_vectors(options), out):
        click.echo(line)


def _parse_recall_at(text: str) -> tuple[int, ...]:
    try:
        at = tuple(int(k) for k in text.split(","))
    except ValueError:
        at = ()
    if not at or min(at) < 1:
        raise ValueError(
            f"--recall-at should be numbers from 1 on, such as 10,100, received '{text}'"
        )
    return at
