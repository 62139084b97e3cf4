"""Commands that score rows with finished runs: evaluate, predict, importance, days."""

import json
import os
from pathlib import Path

import click

from mail_torchrec.cli.options import ALLOW_TOWER, LOCAL_PATH, OUTPUT_DIR, OVERRIDES


@click.command()
@click.option("--run-dir", type=LOCAL_PATH, required=True, help="A finished run.")
@click.option(
    "--data",
    help="Parquet file or folder (or URI) to evaluate on; by default the run's own test data.",
)
@click.option(
    "--predictions",
    type=OUTPUT_DIR,
    help="Folder to write (Parquet): probabilities, label, user and cohort of every row.",
)
@click.option("--overwrite", is_flag=True, help="Replace predictions that are there.")
@ALLOW_TOWER
@OVERRIDES
def evaluate(
    run_dir: Path,
    data: str | None,
    predictions: Path | None,
    overwrite: bool,
    overrides: tuple[str, ...],
) -> None:
    """Evaluate a finished run: AUC and GAUC for new, old and all rows, as JSON on standard output.

    Overrides change the run's configuration for this evaluation alone: data.cold_start.hide_share=0
    (test_share=0 where the run has that) scores every user with the whole history,
    data.cold_start.keep=5 gives each hidden one the newest five behaviours back.

    \b
    mail-torchrec evaluate --run-dir runs/kr --data FOLDER/test --predictions FOLDER
    """  # noqa: D301
    from mail_torchrec.predict.evaluate import evaluate_run
    from mail_torchrec.train.run_dir import RunDir

    metrics = evaluate_run(RunDir(run_dir), data, list(overrides), predictions, overwrite=overwrite)
    if _is_first_rank():
        click.echo(json.dumps(metrics, indent=2))


@click.command()
@click.option("--run-dir", type=LOCAL_PATH, required=True, help="A finished run.")
@click.option("--data", required=True, help="Parquet file or folder (or URI) to score.")
@click.option("--out", type=OUTPUT_DIR, required=True, help="Folder to write (Parquet).")
@click.option(
    "--keep",
    multiple=True,
    metavar="COLUMN[,COLUMN...]",
    help="Columns of the files to copy, beside those of group 'passthrough'.",
)
@click.option("--overwrite", is_flag=True, help="Replace predictions that are there.")
@ALLOW_TOWER
@OVERRIDES
def predict(
    run_dir: Path,
    data: str,
    out: Path,
    keep: tuple[str, ...],
    overwrite: bool,
    overrides: tuple[str, ...],
) -> None:
    """Write the probabilities of the rows of files, each with file, row number and kept columns.

    The rows need no label, conversion and group key. Every user is scored with the whole history,
    as a server does, whatever the run's data.cold_start.

    \b
    mail-torchrec predict --run-dir runs/kr --data FOLDER/day --out scores --keep user_id,item_id
    torchrun --nproc-per-node 2 -m mail_torchrec predict --run-dir DIR --data PATH --out FOLDER
    """  # noqa: D301
    from mail_torchrec.predict.predict import predict as run
    from mail_torchrec.train.run_dir import RunDir

    columns = list(dict.fromkeys(",".join(keep).split(","))) if keep else []
    num_rows = run(RunDir(run_dir), data, out, list(overrides), columns, overwrite=overwrite)
    if _is_first_rank():
        click.echo(f"{num_rows:,} rows in {out}")


@click.command()
@click.option("--run-dir", type=LOCAL_PATH, required=True, help="A finished run.")
@click.option("--data", help="Labelled Parquet (file, folder or URI); by default the test data.")
@click.option(
    "--out", type=OUTPUT_DIR, help="Folder for the result as importance.md, .json and .png."
)
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Permutations of each feature; each scores all rows once.",
)
@ALLOW_TOWER
@OVERRIDES
def importance(
    run_dir: Path, data: str | None, out: Path | None, repeats: int, overrides: tuple[str, ...]
) -> None:
    """Show which features matter: the loss of AUC and GAUC when one is permuted among the rows.

    A sequence is permuted together with its actions, every other column alone; new and old users'
    rows each among themselves. Columns that say the same can stand in for each other: then each
    seems less important than both are.

    \b
    mail-torchrec importance --run-dir runs/kr --out runs/importance
    """  # noqa: D301
    from mail_torchrec.predict.importance import importance as run
    from mail_torchrec.predict.importance_report import importance_markdown, write_importance
    from mail_torchrec.train.run_dir import RunDir

    report = run(RunDir(run_dir), data, list(overrides), repeats)
    if _is_first_rank():
        click.echo(importance_markdown(report))
        if out is not None:
            click.echo("\n".join(map(str, write_importance(report, out))))


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


@click.command()
@click.argument("run_dirs", nargs=-1, required=True, type=LOCAL_PATH)
@click.option(
    "--out",
    type=OUTPUT_DIR,
    help="Folder for the days as days.md, .json, .html and .png.",
)
def days(run_dirs: tuple[Path, ...], out: Path | None) -> None:
    """Print a chain of continued runs as one table: metrics, rows and seconds by day.

    Each run that is named is followed back to the first one. Each day is scored by the model of the
    days before it, before that is trained on it.

    \b
    mail-torchrec days runs/day9
    mail-torchrec days runs/day9 --out runs/days
    """  # noqa: D301
    from mail_torchrec.daily.chain import read_chains
    from mail_torchrec.daily.days_report import as_markdown, write_days

    chains = read_chains(run_dirs)
    click.echo(as_markdown(chains), nl=False)
    if out is not None:
        click.echo("\n".join(map(str, write_days(chains, out))))
