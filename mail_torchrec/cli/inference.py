"""Commands that export a trained model, for any server and for Triton."""

from pathlib import Path
from typing import Any, Literal

import click

from mail_torchrec.cli.options import ALLOW_TOWER, LOCAL_PATH, OUTPUT_DIR


@click.command()
@click.option(
    "--run-dir",
    type=LOCAL_PATH,
    required=True,
    help="A finished run, of any number of ranks.",
)
@click.option("--out", type=OUTPUT_DIR, required=True, help="Folder to write; must not exist.")
@click.option(
    "--tables",
    type=click.Choice(["float32", "float16", "int8"]),
    default="float32",
    show_default=True,
    help="Type of the tables' elements; int8 has a scale and an offset a row; a delta takes its "
    "base's.",
)
@click.option(
    "--spare",
    type=click.FloatRange(0),
    metavar="SHARE",
    help="Leave spare rows in each table's files (0.2: a fifth of its rows), for deltas.",
)
@click.option(
    "--delta-of",
    type=LOCAL_PATH,
    metavar="VERSION",
    help="Write what has changed since this version alone: an export with --spare, or a delta.",
)
@click.option(
    "--calibrate",
    type=click.Choice(["platt", "isotonic"]),
    help="Calibrate the click probabilities, on rows the run was neither trained nor tested on.",
)
@click.option(
    "--calibration-data",
    help="Parquet file or folder of these rows; by default the run's data.validation.",
)
@click.option(
    "--drift",
    type=click.IntRange(20, 5000),
    metavar="USERS",
    help="Keep virtual and real behaviours of so many new and old users, which `serve --drift` "
    "compares those of served users with.",
)
@click.option(
    "--aoti",
    is_flag=True,
    help="Also compile a package that needs torch alone (AOTInductor; needs g++).",
)
@click.option(
    "--data",
    help="Parquet file or folder to take golden requests from; by default the run's own test data.",
)
@ALLOW_TOWER
def export(
    run_dir: Path, out: Path, tables: Literal["float32", "float16", "int8"], **options: Any
) -> None:
    """Export a finished run as an ONNX model without TorchRec, checked against the trainer.

    It ranks one user's candidates: the user's attributes, histories and context are sent once and
    computed once, and the rule for new users is inside. What is written:

    \b
    model.onnx, dense.bin  the graph and its dense weights
    tables/                each table as a raw file that is mapped, not read
    vocabularies/          raw values to table rows
    model.pt2, dense.pt    with --aoti: the graph compiled for this kind of CPU, dense weights
    manifest.json          inputs and outputs in order with types and limits, encoding of raw
                           values, metrics, checksums
    golden.json            requests of raw values, and the trainer's scores of them
    golden_behaviours.float32  with --drift: virtual and real behaviours of sampled users

    Tables are read one by one: the peak memory is the largest stored shard of a table plus the
    program itself. Nothing is written where a probability differs from the trainer's by more than
    1e-5 (float16 tables 1e-3, int8 2e-2).

    \b
    mail-torchrec export --run-dir runs/demo --out models/demo
    mail-torchrec export --run-dir runs/day9 --delta-of models/day8 --out deltas/day9
    python -c "from pathlib import Path; from mail_torchrec.inference.scorer import Scorer;
    print(Scorer(Path('models/demo')).max_difference())"
    """  # noqa: D301
    from mail_torchrec.export.command import ExportOptions
    from mail_torchrec.export.command import export as run_export
    from mail_torchrec.train.run_dir import RunDir

    manifest = run_export(ExportOptions(RunDir(run_dir), out, tables, **options))
    for name, parity in manifest.parity.items():
        click.echo(
            f"{out}: {manifest.name}, version {manifest.version}, {name}; largest difference from "
            f"the trainer's probabilities {parity.max_difference:.1g} (at most "
            f"{parity.tolerance:g})"
        )
    for line in manifest.drift.lines() if manifest.drift else ():
        click.echo(line)


@click.command()
@click.option("--model", type=LOCAL_PATH, required=True, help="An exported model.")
@click.option(
    "--out",
    type=OUTPUT_DIR,
    required=True,
    help="The model repository; created where there is none.",
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
    help="Version of the model; Triton serves the greatest.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Most users that Triton joins in one call.",
)
@click.option(
    "--max-candidates",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    help="Most candidates of a request; of the Python backend.",
)
@click.option(
    "--allow-schema-change",
    is_flag=True,
    help="Add a version although it takes other columns, types or outputs than the one before.",
)
def triton(**options: Any) -> None:
    """Write a model repository for NVIDIA's Triton Inference Server from an exported model.

    Checked against the golden requests as it is written. Files are hard links where they can be, so
    the exported folder must not change.

    \b
    OUT/NAME/config.pbtxt  the model's description for Triton
    OUT/NAME/VERSION/      onnxruntime: the graph with batch-first inputs, its tables
                           python: model.py, the exported model, the modules that score it

    \b
    mail-torchrec triton --model models/demo --out repository --backend python
    """  # noqa: D301
    from mail_torchrec.triton.repository import RepositoryOptions, write_repository

    folder = write_repository(RepositoryOptions(**options))
    click.echo(
        f"{folder}: golden scores as the trainer's; copy the folder above it to the server's "
        "repository"
    )
