"""Command that shows chains of continued runs, day by day."""

from pathlib import Path

import click

from mail_torchrec.cli.options import LOCAL_PATH, OUTPUT_DIR


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
