"""Commands that bring models to servers, and serve them."""

from pathlib import Path
from typing import Any

import click

from mail_torchrec.cli.options import LOCAL_PATH, OUTPUT_DIR


@click.command()
@click.argument("delta", type=LOCAL_PATH)
@click.option(
    "--models",
    type=LOCAL_PATH,
    required=True,
    help="Folder of versions, with the delta's base among them.",
)
@click.option("--name", help="The new version's folder there; by default the delta's own name.")
@click.option(
    "--keep",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Versions to keep of this chain of deltas, the new one included; older ones are deleted.",
)
def apply(delta: Path, models: Path, name: str | None, keep: int) -> None:
    """Make the new version that a delta (`export --delta-of`) leads to, beside its base.

    Its tables are hard links to the base's: changed rows are written where no version has rows, so
    servers go on meanwhile. The version is compared with all checksums and golden requests, then
    appears in the folder; a server that looks there takes it as it takes any. Whatever fails,
    nothing has changed, and the same command may be tried again.

    \b
    mail-torchrec export --run-dir runs/day8 --spare 0.2 --out models/day8
    mail-torchrec export --run-dir runs/day9 --delta-of models/day8 --out deltas/day9
    mail-torchrec apply deltas/day9 --models models
    """  # noqa: D301
    from mail_torchrec.deltas.apply import apply_delta

    click.echo(f"{apply_delta(delta, models, keep=keep, name=name)}: made, checked, and there")


@click.command()
@click.argument("source", type=LOCAL_PATH, metavar="EXPORT_OR_DELTA")
@click.option(
    "--to",
    required=True,
    metavar="URI_OR_FOLDER",
    help="Where servers look for versions: s3://bucket/prefix (gs://, abfs://), or a folder.",
)
def publish(source: Path, to: str) -> None:
    """Publish a full export, or a delta of the published version, for servers to follow.

    Files are copied first and the pointer `current.json` last, so a server sees the whole version
    or nothing of it. A publication that was killed is completed by running it again; files that are
    there already are compared and not copied again.

    \b
    mail-torchrec publish models/day8 --to s3://bucket/ads
    mail-torchrec publish deltas/day9 --to s3://bucket/ads
    mail-torchrec serve --model s3://bucket/ads
    """  # noqa: D301
    from mail_torchrec.publishing.command import publish as run_publish

    click.echo(run_publish(source, to).text())


@click.command()
@click.option(
    "--model",
    required=True,
    help="An exported model, a folder of exported versions, or the folder or URI (s3://bucket/ads) "
    "that `publish --to` writes, which is followed.",
)
@click.option(
    "--cache",
    type=OUTPUT_DIR,
    help="Folder for published versions, from which the server starts where the store is down; by "
    "default a temporary one.",
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
    help="Port of the REST server; 0 takes a free one.",
)
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    default=8081,
    show_default=True,
    help="Port of the gRPC server; 0 takes a free one.",
)
@click.option(
    "--max-bytes",
    type=click.IntRange(1),
    default=4 * 2**20,
    show_default=True,
    help="Most bytes of a request.",
)
@click.option(
    "--max-candidates",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    help="Most candidates of a request.",
)
@click.option(
    "--max-waiting-bytes",
    type=click.IntRange(1),
    default=64 * 2**20,
    show_default=True,
    help="Most bytes of all requests in the server, as they arrive; beyond it 429.",
)
@click.option(
    "--max-requests",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="Most requests in the server; beyond it 429.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Requests that are decoded and scored at once; others wait; by default one a core, at "
    "most four.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Most connections of HTTP, and of gRPC; fewer where `ulimit -n` leaves less.",
)
@click.option(
    "--receive-seconds",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Most seconds that a request may take to arrive.",
)
@click.option(
    "--keep-alive",
    type=click.IntRange(1),
    default=620,
    show_default=True,
    help="Seconds that an idle connection is kept; of gRPC at most 300.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="ONNX Runtime's threads for a request; by default it uses the machine's cores.",
)
@click.option(
    "--poll",
    type=click.FloatRange(0),
    default=5.0,
    show_default=True,
    help="Seconds between scans of the folder for versions; 0: never.",
)
@click.option(
    "--split",
    metavar="VERSION=SHARE",
    help="Serve this share of users (0.1: a tenth) by VERSION (or its folder's name).",
)
@click.option(
    "--split-salt",
    default="split",
    show_default=True,
    help="Another salt gives another set of users to VERSION.",
)
@click.option(
    "--copy-to",
    type=LOCAL_PATH,
    help="Folder for private copies of versions (/dev/shm: memory); then nothing that happens to "
    "the original files reaches requests.",
)
@click.option(
    "--allow-schema-change",
    is_flag=True,
    help="Load a new version although it takes other columns, types or outputs than the one that "
    "serves.",
)
@click.option(
    "--drift",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Compare a sample of the new users of each such time with the golden behaviours of "
    "`export --drift`, for /metrics; 3600: every hour. By default never.",
)
def serve(model: str, split: str | None, split_salt: str, **options: Any) -> None:
    """Serve exported models by the Open Inference Protocol v2, REST and gRPC.

    A request is one tensor `request` (BYTES, one element): JSON of one user and its candidates,
    raw values; or the tensors that the manifest lists. /metrics is for Prometheus, /openapi.json
    describes the REST side. In a folder of versions the newest serves; a version that is added is
    checked against its golden requests and loaded while the others go on serving.

    \b
    mail-torchrec serve --model models/demo
    mail-torchrec serve --model models --split candidate=0.1
    mail-torchrec serve --model s3://bucket/ads --cache cache/ads
    """  # noqa: D301
    from mail_torchrec.inference.traffic_split import TrafficSplit
    from mail_torchrec.serve.command import ServeOptions
    from mail_torchrec.serve.command import serve as run_server

    traffic_split = None if split is None else TrafficSplit.parse(split, split_salt)
    run_server(ServeOptions(model, split=traffic_split, **options))
