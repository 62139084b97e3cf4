"""Commands that make data."""

from pathlib import Path

import click

from mail_torchrec.cli.options import OVERRIDES


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to write; its train/ and test/ must not exist yet.",
)
@OVERRIDES
def synthesize(out: Path, overrides: tuple[str, ...]) -> None:
    """Write a synthetic world whose truth is known: attributes decide interests through a non-linear map."""
    from mail_torchrec.config import parse_settings
    from mail_torchrec.synthetic.writer import WorldSettings, write_world

    write_world(parse_settings(WorldSettings, list(overrides)), out)


@click.command()
@click.argument("dataset", type=click.Choice(["alimama", "kuairand", "movielens"]))
@click.option(
    "--raw",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder with the files as published, unpacked.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to write; must be empty, or begun by this command.",
)
@click.option(
    "--engine",
    type=click.Choice(["duckdb", "pyspark"]),
    default="duckdb",
    show_default=True,
    help="What runs the queries.",
)
@click.option(
    "--history",
    default=100,
    show_default=True,
    help="The newest so many events before an impression are its history.",
)
@click.option(
    "--test-days", default=1, show_default=True, help="The last so many days are the test rows."
)
@click.option(
    "--memory-limit",
    default="8GB",
    show_default=True,
    help="Of the whole process (of Spark's driver), in MB or GB.",
)
@click.option("--threads", type=int, help="By default one a CPU core.")
@click.option(
    "--buckets",
    type=int,
    help="Groups of users, prepared one after the other. By default one for each 256 MB of files.",
)
@click.option(
    "--max-malformed",
    default=0.01,
    show_default=True,
    help="The greatest share of malformed lines in a file.",
)
def prepare(dataset: str, raw: Path, out: Path, **settings: object) -> None:
    """Make impression rows with histories, a schema and a configuration from raw logs.

    \b
    alimama    raw_sample.csv ad_feature.csv user_profile.csv behavior_log.csv    tianchi.aliyun.com/dataset/56
    kuairand   KuaiRand-Pure: its two log_standard_*.csv, user and video features   kuairand.com
    movielens  MovieLens-1M: users.dat movies.dat ratings.dat                       grouplens.org

    The last day is the test data. A history is the newest events strictly before its impression,
    oldest first: no row sees its own future. Malformed lines are left out, counted and reported.
    Stopped half way, the same command goes on from there.

    \b
    mail-torchrec prepare alimama --raw DOWNLOADED --out prepared/alimama
    mail-torchrec train --config prepared/alimama/config.yaml --run-dir runs/alimama
    """  # noqa: D301
    from mail_torchrec.prepare.settings import prepare_settings

    checked = prepare_settings(settings)
    from mail_torchrec.prepare.run import prepare as run
    from mail_torchrec.prepare.run import summary

    click.echo(summary(run(dataset, checked, raw, out), out))
