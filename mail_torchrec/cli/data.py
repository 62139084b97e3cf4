"""Commands that make data, or look at it: synthesize, prepare, init, check, diagnose."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from mail_torchrec.cli.options import CONFIG, LOCAL_PATH, OUTPUT_DIR, OUTPUT_FILE, OVERRIDES


@click.command()
@click.option(
    "--out",
    type=OUTPUT_DIR,
    required=True,
    help="Folder to write; its train/, test/ and days must not exist yet.",
)
@click.option(
    "--days",
    type=click.IntRange(1),
    help="Write so many days, a folder each, on which users and items come and go and tastes "
    "drift, in place of train/ and test/.",
)
@OVERRIDES
def synthesize(out: Path, days: int | None, overrides: tuple[str, ...]) -> None:
    """Write a synthetic click log whose ground truth is known.

    Attributes decide interests through a non-linear map, histories reveal interests, clicks are few
    and noisy. KEY=VALUE changes a setting of the world, such as seed=7 users=30000; the README of
    mail_torchrec/synthetic lists them.

    \b
    mail-torchrec synthesize --out worlds/demo
    mail-torchrec train --config launch/configs/synthetic.yaml --run-dir runs/demo \\
      data.root=worlds/demo
    mail-torchrec synthesize --out worlds/days --days 9
    """  # noqa: D301
    from mail_torchrec.config import parse_settings

    if days is None:
        from mail_torchrec.synthetic.writer import WorldSettings, write_world

        write_world(parse_settings(WorldSettings, list(overrides)), out)
        return
    from mail_torchrec.synthetic.daily_writer import DailyWorldSettings, write_days

    if any(override.startswith("days=") for override in overrides):
        raise click.UsageError("--days is the number of days; leave out days=...")
    write_days(parse_settings(DailyWorldSettings, [*overrides, f"days={days}"]), out)


ENGINE_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(["duckdb", "pyspark"]),
        default="duckdb",
        show_default=True,
        help="Engine that runs the queries.",
    ),
    click.option(
        "--memory-limit",
        default="8GB",
        show_default=True,
        help="Memory of the whole process (of Spark's driver), in MB or GB.",
    ),
    click.option("--threads", type=int, help="Threads of the engine. By default one a CPU core."),
    click.option(
        "--buckets",
        type=int,
        help="Groups of users, prepared one after the other. By default one for each 256 MB of "
        "files (events: 64 MB).",
    ),
    click.option(
        "--out",
        type=OUTPUT_DIR,
        required=True,
        help="Folder to write; must be empty, or begun by this command.",
    ),
)
DATASET_OPTIONS = (
    click.option(
        "--raw",
        type=LOCAL_PATH,
        required=True,
        help="Folder with the files as published, unpacked.",
    ),
    *ENGINE_OPTIONS,
    click.option(
        "--history",
        default=100,
        show_default=True,
        help="Maximum length of a history: the newest so many events before an impression.",
    ),
    click.option(
        "--test-days",
        default=1,
        show_default=True,
        help="Days of test rows, the last ones of the log.",
    ),
    click.option(
        "--max-malformed",
        default=0.01,
        show_default=True,
        help="Maximum share of malformed lines in a file.",
    ),
    click.option(
        "--time-range",
        metavar="FROM,TO",
        help="First and last day that a line's time may lie in, such as 2017-04-22,2017-05-13; "
        "lines of other times are malformed. By default the days of the published log.",
    ),
)
DATASETS = {
    "alimama": "tianchi.aliyun.com/dataset/56: raw_sample.csv, ad_feature.csv, user_profile.csv, "
    "behavior_log.csv",
    "kuairand": "kuairand.com, KuaiRand-Pure: two log_standard_*.csv, user and video features",
    "movielens": "grouplens.org, MovieLens-1M: users.dat, movies.dat, ratings.dat",
}


@click.group()
def prepare() -> None:
    """Make impression rows with histories from raw logs.

    A history is the newest events strictly before its impression, oldest first: no row sees its own
    future. Stopped half way, the same command goes on from there.

    \b
    mail-torchrec prepare events --config events.yaml --out prepared/shop
    mail-torchrec prepare alimama --raw DOWNLOADED --out prepared/alimama
    mail-torchrec train --config prepared/alimama/config.yaml --run-dir runs/alimama
    """  # noqa: D301


@click.command()
@click.option(
    "--config",
    "config_path",
    type=LOCAL_PATH,
    required=True,
    help="YAML file that names the tables; mail_torchrec/prepare/events/README.md has one.",
)
def events(config_path: Path, out: Path, **options: object) -> None:
    """Join event logs and catalogues point in time into impression rows.

    Impressions, any number of event logs and catalogues are Parquet or CSV files. The rows lie in
    one folder a day.

    \b
    mail-torchrec prepare events --config events.yaml --out prepared/shop
    """  # noqa: D301
    from mail_torchrec.prepare.events.settings import load_events
    from mail_torchrec.prepare.settings import prepare_settings

    checked, settings = prepare_settings(options), load_events(config_path)
    # Imported after the check: these modules import the engine's packages.
    from mail_torchrec.prepare.events.pipeline import prepare_events
    from mail_torchrec.prepare.events.summary import summary

    click.echo(summary(prepare_events(settings, checked, out), out))


def _dataset_command(dataset: str) -> click.Command:
    """Makes the command that prepares a published data set."""

    def run(raw: Path, out: Path, **options: object) -> None:
        from mail_torchrec.prepare.settings import prepare_settings

        checked = prepare_settings(options)
        # Imported after the check: these modules import the engine's packages.
        from mail_torchrec.prepare.pipeline import prepare as run_dataset
        from mail_torchrec.prepare.publish import summary

        click.echo(summary(run_dataset(dataset, checked, raw, out), out))

    run.__doc__ = f"""Make rows, a schema and a configuration of {DATASETS[dataset]}.

    The last day is the test data. Malformed lines are left out, counted and reported.
    """
    return click.command(dataset)(_with_options(run, DATASET_OPTIONS))


def _with_options(function: Any, options: Iterable[Callable[[Any], Any]]) -> Any:
    for option in reversed(tuple(options)):
        function = option(function)
    return function


for _dataset in DATASETS:
    prepare.add_command(_dataset_command(_dataset))
prepare.add_command(_with_options(events, ENGINE_OPTIONS))


@click.command()
@click.option(
    "--data", required=True, help="Folder, file or URI of Parquet files whose rows are to train on."
)
@click.option("--label", help="Column of the label. By default the one that looks like it.")
@click.option("--user", help="Column of the user's key. By default the one that looks like it.")
@click.option("--item", help="Column of the target item. By default the one that looks like it.")
@click.option(
    "--rows",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    help="Most training rows to read, spread over all files.",
)
@click.option(
    "--out",
    type=OUTPUT_FILE,
    help="File to write, which must not exist yet. By default standard output.",
)
def init(data: str, rows: int, out: Path | None, **columns: str | None) -> None:
    """Draft a configuration from Parquet files, with a comment a line.

    Columns are guessed from their values first and their names second: read every line, and which
    columns were left out and why. The last day, or a file or folder named test, is the test data.

    \b
    mail-torchrec init --data prepared/shop/rows --out shop.yaml
    mail-torchrec check --config shop.yaml
    """  # noqa: D301
    from mail_torchrec.data_check.drafted_config import draft_config

    if out is not None and out.exists():
        raise ValueError(f"--out {out} exists, perhaps with your changes; name another, or move it")
    chosen = {role: column for role, column in columns.items() if column is not None}
    text = draft_config(data, chosen, rows)
    if out is None:
        click.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
        click.echo(f"{out}: read it, then run mail-torchrec check --config {out}")


@click.command()
@CONFIG
@click.option(
    "--rows",
    type=click.IntRange(1),
    default=1_000_000,
    show_default=True,
    help="Most rows of training, and of test, to read, in whole row groups.",
)
@click.option("--out", type=OUTPUT_FILE, help="Report to write too, .json or .md.")
@OVERRIDES
def check(config_path: Path, rows: int, out: Path | None, overrides: tuple[str, ...]) -> None:
    """Look at the data of a configuration without training; exits with 1 where it finds an error.

    Rows, label rates, nulls, ids of test that training lacks, lists cut, bad values, and what may
    mislead: columns or histories that know the click, padding, test rows that are not later.

    \b
    mail-torchrec check --config shop.yaml --out shop-check.md
    """  # noqa: D301
    from mail_torchrec.config import load_config
    from mail_torchrec.data_check.check import check_data, check_report_name, write_report

    if out is not None:
        check_report_name(out)
    report = check_data(load_config(config_path, list(overrides)), rows)
    click.echo(report.text())
    if out is not None:
        write_report(report, out)
    if report.has_errors:
        raise click.exceptions.Exit(1)


_ROWS = "Most rows of training, and of test, that the trees see."


@click.command()
@CONFIG
@click.option("--rows", type=click.IntRange(1_000), default=200_000, show_default=True, help=_ROWS)
@click.option(
    "--out",
    type=OUTPUT_DIR,
    default="diagnosis",
    show_default=True,
    help="Folder of diagnosis.html, a page with pictures, and diagnosis.json.",
)
@OVERRIDES
def diagnose(config_path: Path, rows: int, out: Path, overrides: tuple[str, ...]) -> None:
    """Estimate, before any training, what would help new users and new items.

    Boosted trees on a sample tell, with intervals, what histories, attributes and predicted
    histories are worth, and content of new items. The first sentences say what to try.

    \b
    mail-torchrec diagnose --config shop.yaml --out shop-diagnosis
    """  # noqa: D301
    from mail_torchrec.config import load_config
    from mail_torchrec.diagnose.diagnosis import diagnose as find
    from mail_torchrec.diagnose.report import PAGE

    found = find(load_config(config_path, list(overrides)), rows)
    found.write(out)
    click.echo(found.text())
    click.echo(f"\n{out / PAGE}: the same with pictures")
