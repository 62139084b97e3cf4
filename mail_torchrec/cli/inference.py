"""Commands that come after training."""

from pathlib import Path
from typing import Any, Literal

import click


@click.command()
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    required=True,
    help="A finished run, of any number of ranks.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder to write; must not exist."
)
@click.option(
    "--tables",
    type=click.Choice(["float32", "float16", "int8"]),
    default="float32",
    show_default=True,
    help="What table elements are stored as; int8 has a scale and an offset a row.",
)
@click.option(
    "--aoti",
    is_flag=True,
    help="Also compile a package that needs torch alone (AOTInductor; takes g++).",
)
@click.option(
    "--data",
    help="Parquet file or folder to take golden requests from; by default the run's own test data.",
)
def export(
    run_dir: Path,
    out: Path,
    tables: Literal["float32", "float16", "int8"],
    aoti: bool,
    data: str | None,
) -> None:
    """Turn a finished run into an ONNX model that needs no TorchRec, checked against the trainer's scores.

    It ranks one user's candidates: the user's attributes, histories and context are sent once and
    worked on once, and the rule for new users is inside. What is written:

    \b
    model.onnx, dense.bin, tables/   the graph, dense weights, each table as a raw file that is mapped, not read
    vocabularies/                    raw values -> table rows
    model.pt2, dense.pt              with --aoti: the graph compiled for this kind of CPU, dense weights
    manifest.json                    inputs in order with types and limits, how raw values become inputs, metrics, checksums
    golden.json                      requests of raw values, and the trainer's scores of them

    Tables are read one by one: the peak memory is the largest stored part of a table plus the
    program itself. Nothing is written where a probability differs from the trainer's by more than
    1e-5 (float16 tables 1e-3, int8 2e-2).

    \b
    mail-torchrec export --run-dir runs/demo --out models/demo
    python -c "from pathlib import Path; from mail_torchrec.inference.scorer import Scorer;
    print(Scorer(Path('models/demo')).difference())"
    """  # noqa: D301
    from mail_torchrec.export.command import Order
    from mail_torchrec.export.command import export as carry_out
    from mail_torchrec.train.run_dir import RunDir

    manifest = carry_out(Order(RunDir(run_dir), out, tables, data, aoti))
    for name, agreement in manifest.agreement.items():
        click.echo(
            f"{out}: {manifest.name}, version {manifest.version}, {name}; largest difference from "
            "the trainer's probabilities "
            f"{agreement.largest_difference:.1g} (at most {agreement.bound:g})"
        )


@click.command()
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    required=True,
    help="An exported model, or a folder of exported versions.",
)
@click.option(
    "--name", help="The model's name for clients; by default the newest version's run name."
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; there is no TLS and no login.",
)
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="0 takes a free one.",
)
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    default=8081,
    show_default=True,
    help="0 takes a free one.",
)
@click.option(
    "--max-bytes",
    type=click.IntRange(1),
    default=4 * 2**20,
    show_default=True,
    help="Of a request.",
)
@click.option(
    "--max-candidates",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    help="Of a request.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Of ONNX Runtime; by default it uses the machine's cores.",
)
@click.option(
    "--poll",
    type=click.FloatRange(0),
    default=5.0,
    show_default=True,
    help="Seconds between looks for versions; 0: never.",
)
@click.option(
    "--split",
    metavar="VERSION=SHARE",
    help="Serve this share of users (0.1: a tenth) by VERSION (or its folder's name).",
)
@click.option(
    "--split-salt", default="split", show_default=True, help="Another salt deals users anew."
)
def serve(model: Path, split: str | None, split_salt: str, **settings: Any) -> None:
    """Serve exported models by the Open Inference Protocol v2, REST and gRPC.

    A request is one tensor `request` (BYTES, one element): JSON of one user and candidates, raw
    values; or the tensors that the manifest lists. /metrics is for Prometheus, /openapi.json
    describes the REST side. In a folder of versions the newest serves; one that is put there is
    checked against its golden requests and taken in while the others go on.

    \b
    mail-torchrec serve --model models/demo
    mail-torchrec serve --model models --split candidate=0.1
    """  # noqa: D301
    from mail_torchrec.inference.traffic_split import Split
    from mail_torchrec.serve.command import Service
    from mail_torchrec.serve.command import serve as carry_out

    carry_out(
        Service(model, split=None if split is None else Split.parse(split, split_salt), **settings)
    )


@click.command()
@click.option("--model", type=click.Path(path_type=Path), required=True, help="An exported model.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The model repository; made where there is none.",
)
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime", "python"]),
    default="onnxruntime",
    show_default=True,
    help=(
        "onnxruntime takes encoded tensors and needs nothing but Triton; python takes raw values, "
        "as `serve` does."
    ),
)
@click.option("--name", help="The model's name for clients; by default the run's.")
@click.option(
    "--version",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Of the model; Triton serves the greatest.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Users that Triton may join in one call.",
)
@click.option(
    "--max-candidates",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    help="Of a request; of the Python backend.",
)
def triton(**order: Any) -> None:
    """Lay out an exported model as a model repository of NVIDIA's Triton Inference Server.

    Checked against the golden requests as it is written. Files are hard links where they can be, so
    the exported folder must not change.

    \b
    OUT/NAME/config.pbtxt            what Triton is told
    OUT/NAME/VERSION/                onnxruntime: the graph with users first, its tables
                                     python: model.py, the exported model, the code that it was
                                         exported with

    \b
    mail-torchrec triton --model models/demo --out repository --backend python
    """  # noqa: D301
    from mail_torchrec.triton.repository import Order, lay_out

    click.echo(
        f"{lay_out(Order(**order))}: golden scores as the trainer's; copy the folder above it to "
        "the server's repository"
    )


@click.command()
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    required=True,
    help="What `export` wrote, of a tower with vectors (dmr).",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder to write; must not exist."
)
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
@click.option("--sequence", help="Whose vectors, where several sequences have some.")
@click.option(
    "--index",
    "factory",
    help='In FAISS\'s words, such as "IVF4096,SQ8" or HNSW32; none: no index. By default by the number of items.',
)
@click.option(
    "--parameters",
    default="",
    help="Of that index, in FAISS's words as well, such as nprobe=64; they are kept in its file.",
)
@click.option(
    "--recall-at",
    default="10,100",
    show_default=True,
    help="How many items a user to measure the recall of.",
)
@click.option(
    "--recall-users",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="At most so many, evenly chosen.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Of ONNX Runtime and FAISS; by default they use the machine's cores.",
)
def vectors(
    model: Path, out: Path, users: str | None, items: str | None, sequence: str | None, factory: str | None, parameters: str,
    recall_at: str, recall_users: int, threads: int | None,
) -> None:  # fmt: skip
    """Write user and item vectors, for the retrieval before the ranking, and an index of the items.

    The inner product of a user's and an item's vector is the tower's idea of the liking (DMR: its
    user-to-item relevance). New users' vectors come by the zero-shot tower. What is written:

    \b
    items.parquet    id (raw, as in training), vector (fixed-size list of float32), version of the model
    users.parquet    likewise, with --users, in the order of its rows
    items.faiss      the index by inner product; its number i is row i of items.parquet
    vectors.json     sizes, times, and with --users the recall: the share of the exact best k items that the index finds

    Vectors are never in memory as a whole; an index is. Below 2,000 items it is Flat (exact), else
    "IVF...,Flat" with 2 sqrt(items) cells: 4 bytes a dimension and 8 more an item; "IVF4096,SQ8"
    takes 1 byte a dimension. While it is built it takes two to three times that.

    \b
    mail-torchrec vectors --model models/demo --users users.parquet --out vectors/demo
    """  # noqa: D301
    from mail_torchrec.vectors.command import Wanted, summary, write_vectors
    from mail_torchrec.vectors.index import IndexSettings

    try:
        at = tuple(int(k) for k in recall_at.split(","))
    except ValueError:
        at = ()
    if not at or min(at) < 1:
        raise ValueError(
            f"--recall-at should be numbers from 1 on, such as 10,100, received '{recall_at}'"
        )
    index = None if factory == "none" else IndexSettings(factory, parameters, threads)
    told = write_vectors(
        Wanted(model, out, users, items, sequence, index, at, recall_users, threads)
    )
    for line in summary(told, out):
        click.echo(line)
