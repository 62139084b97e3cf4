"""Commands that make data: synthesize, prepare."""

from pathlib import Path

import click

from mail_torchrec.cli.options import LOCAL_PATH, OUTPUT_DIR, OVERRIDES


@click.command()
@click.option(
    "--out",
    type=OUTPUT_DIR,
    required=True,
    help="Folder to write; its train/ and test/ must not exist yet.",
)
@OVERRIDES
def synthesize(out: Path, overrides: tuple[str, ...]) -> None:
    """Write a synthetic click log whose ground truth is known.

    Attributes decide interests through a non-linear map, histories reveal interests, clicks are few
    and noisy. KEY=VALUE changes a setting of the world, such as seed=7 users=30000; the README of
    mail_torchrec/synthetic lists them.

    \b
    mail-torchrec synthesize --out worlds/demo
    mail-torchrec train --config launch/configs/synthetic.yaml --run-dir runs/demo \\
      data.root=worlds/demo
    """  # noqa: D301
    from mail_torchrec.config import parse_settings
    from mail_torchrec.synthetic.writer import WorldSettings, write_world

    write_world(parse_settings(WorldSettings, list(overrides)), out)


@click.command()
@click.argument("dataset", type=click.Choice(["alimama", "kuairand", "movielens"]))
@click.option(
    "--raw",
    type=LOCAL_PATH,
    required=True,
    help="Folder with the files as published, unpacked.",
)
@click.option(
    "--out",
    type=OUTPUT_DIR,
    required=True,
    help="Folder to write; must be empty, or begun by this command.",
)
@click.option(
    "--engine",
    type=click.Choice(["duckdb", "pyspark"]),
    default="duckdb",
    show_default=True,
    help="Engine that runs the queries.",
)
@click.option(
    "--history",
    default=100,
    show_default=True,
    help="Maximum length of a history: the newest so many events before an impression.",
)
@click.option(
    "--test-days", default=1, show_default=True, help="Days of test rows, the last ones of the log."
)
@click.option(
    "--memory-limit",
    default="8GB",
    show_default=True,
    help="Memory of the whole process (of Spark's driver), in MB or GB.",
)
@click.option("--threads", type=int, help="Threads of the engine. By default one a CPU core.")
@click.option(
    "--buckets",
    type=int,
    help="Groups of users, prepared one after the other. By default one for each 256 MB of files.",
)
@click.option(
    "--max-malformed",
    default=0.01,
    show_default=True,
    help="Maximum share of malformed lines in a file.",
)
@click.option(
    "--time-range",
    metavar="FROM,TO",
    help="First and last day that a line's time may lie in, such as 2017-04-22,2017-05-13; lines "
    "of other times are malformed. By default the days of the published log.",
)
def prepare(dataset: str, raw: Path, out: Path, **settings: object) -> None:
    """Make impression rows with histories, a schema and a configuration from raw logs.

    \b
    alimama    tianchi.aliyun.com/dataset/56: raw_sample.csv, ad_feature.csv, user_profile.csv,
               behavior_log.csv
    kuairand   kuairand.com, KuaiRand-Pure: two log_standard_*.csv, user and video features
    movielens  grouplens.org, MovieLens-1M: users.dat, movies.dat, ratings.dat

    The last day is the test data. A history is the newest events strictly before its impression,
    oldest first: no row sees its own future. Malformed lines are left out, counted and reported.
    Stopped half way, the same command goes on from there.

    \b
    mail-torchrec prepare alimama --raw DOWNLOADED --out prepared/alimama
    mail-torchrec train --config prepared/alimama/config.yaml --run-dir runs/alimama
    """  # noqa: D301
    from mail_torchrec.prepare.settings import prepare_settings

    checked = prepare_settings(settings)
    # Imported after the check: these modules import the engine's packages.
    from mail_torchrec.prepare.pipeline import prepare as run
    from mail_torchrec.prepare.publish import summary

    click.echo(summary(run(dataset, checked, raw, out), out))
