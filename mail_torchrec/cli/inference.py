"""Commands that come after training."""

from pathlib import Path
from typing import Literal

import click


@click.command()
@click.option("--run-dir", type=click.Path(path_type=Path), required=True, help="A finished run, of any number of ranks.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write; must not exist.")
@click.option(
    "--tables",
    type=click.Choice(["float32", "float16", "int8"]),
    default="float32",
    show_default=True,
    help="What table elements are stored as; int8 has a scale and an offset a row.",
)
@click.option("--aoti", is_flag=True, help="Also compile a package that needs torch alone (AOTInductor; takes g++).")
@click.option("--data", help="Parquet file or folder to take golden requests from; by default the run's own test data.")
def export(run_dir: Path, out: Path, tables: Literal["float32", "float16", "int8"], aoti: bool, data: str | None) -> None:
    """Turn a finished run into an ONNX model that needs no TorchRec, checked against the trainer's scores.

    It ranks one user's candidates: the user's attributes, histories and context are sent once and worked on once, and the rule for new
    users is inside. What is written:

    \b
    model.onnx, dense.bin, tables/   the graph, dense weights, each table as a raw file that is mapped, not read
    vocabularies/                    raw values -> table rows
    model.pt2, dense.pt              with --aoti: the graph compiled for this kind of CPU, dense weights
    manifest.json                    inputs in order with types and limits, how raw values become inputs, metrics, checksums
    golden.json                      requests of raw values, and the trainer's scores of them

    Tables are read one by one: the peak memory is the largest stored part of a table plus the program itself. Nothing is written where a
    probability differs from the trainer's by more than 1e-5 (float16 tables 1e-3, int8 2e-2).

    \b
    mail-torchrec export --run-dir runs/demo --out models/demo
    python -c "from pathlib import Path; from mail_torchrec.export.scorer import Scorer; print(Scorer(Path('models/demo')).difference())"
    """  # noqa: D301
    from mail_torchrec.export.command import Order
    from mail_torchrec.export.command import export as carry_out
    from mail_torchrec.train.run_dir import RunDir

    manifest = carry_out(Order(RunDir(run_dir), out, tables, data, aoti))
    for name, agreement in manifest.agreement.items():
        click.echo(
            f"{out}: {manifest.name}, version {manifest.version}, {name}; largest difference from the trainer's probabilities "
            f"{agreement.largest_difference:.1g} (at most {agreement.bound:g})"
        )
