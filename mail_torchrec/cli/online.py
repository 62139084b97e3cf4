"""Command that compares served versions by a log."""

from pathlib import Path

import click

from mail_torchrec.cli.options import OUTPUT_DIR


@click.command()
@click.argument("log", nargs=-1, required=True)
@click.option(
    "--candidate",
    multiple=True,
    help="Version on trial; more than one where it was replaced. By default that of --split.",
)
@click.option(
    "--base",
    multiple=True,
    help="Version it is held against; more than one likewise. By default the log's only other one.",
)
@click.option(
    "--split",
    metavar="VERSION=SHARE",
    help="What `serve --split` was given: users are checked against it, one by one and as a whole.",
)
@click.option(
    "--split-salt", default="split", show_default=True, help="What `serve --split-salt` was given."
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of users given to the candidate by a splitter of your own.",
)
@click.option("--user", default="user", show_default=True, help="Column of the user's id.")
@click.option(
    "--version",
    "version_column",
    default="model_version",
    show_default=True,
    help="Column of the version that scored the impression: `model_version` of the response.",
)
@click.option(
    "--click",
    "click_column",
    default="click",
    show_default=True,
    help="Column that is 1 where the impression was clicked.",
)
@click.option(
    "--conversion",
    help="Column that is 1 where a conversion followed the click; adds CVR and CTCVR.",
)
@click.option(
    "--new-user",
    help="Column that is 1 where the user was new; adds metrics of new and old users.",
)
@click.option(
    "--new-item",
    help="Column that is 1 where the item was new; adds metrics of new and old items.",
)
@click.option(
    "--impressions",
    help=(
        "Column of counts, for a log whose rows are sums: click and conversion are counts then too."
    ),
)
@click.option(
    "--day",
    metavar="COLUMN",
    help="Column of the impression's day; adds a read-out by days since a user's first exposure, "
    "of those whom --new-user calls new.",
)
@click.option(
    "--score",
    metavar="COLUMN",
    help="Column of the predicted click probability; adds AUC and calibration by these days.",
)
@click.option(
    "--bootstrap",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Intervals by N resamples of users, not the delta method.",
)
@click.option(
    "--out",
    type=OUTPUT_DIR,
    help="Folder for report.html, report.md, report.json and the pictures.",
)
def abtest(
    log: tuple[str, ...],
    candidate: tuple[str, ...],
    base: tuple[str, ...],
    split: str | None,
    split_salt: str,
    share: float | None,
    user: str,
    version_column: str,
    click_column: str,
    conversion: str | None,
    new_user: str | None,
    new_item: str | None,
    impressions: str | None,
    day: str | None,
    score: str | None,
    bootstrap: int,
    out: Path | None,
) -> None:
    """Compare two served versions by a log of exposures and clicks.

    Prints CTR, CVR, CTCVR and the candidate's lift, with 95 % intervals. LOG is Parquet (files,
    folders, URIs), a row an impression: who saw it, which version scored it (`model_version` of
    the server's response), whether it was clicked. Users who saw both arms are left out and
    counted. Warns where the arms' numbers of users cannot be an accident (sample ratio mismatch).

    \b
    mail-torchrec abtest log/ --split candidate=0.1 --candidate 3f2a81c09d4e \\
      --conversion bought --new-user is_new --out runs/test
    mail-torchrec abtest log/ --candidate new --base old --share 0.5
    mail-torchrec abtest log/ --candidate new --base old --new-user is_new --day date --score pctr
    """  # noqa: D301
    from mail_torchrec.abtest.arms import ArmAssignment
    from mail_torchrec.abtest.command import abtest as run_abtest
    from mail_torchrec.abtest.exposures import LogColumns
    from mail_torchrec.inference.traffic_split import TrafficSplit

    rule = None if split is None else TrafficSplit.parse(split, split_salt)
    if rule is not None and share is not None:
        raise ValueError("--split says the share already; give --split or --share")
    candidate = candidate or ((rule.version,) if rule else ())
    if not candidate:
        raise ValueError(
            "which version is on trial? name it by --candidate, or give --split as `serve` got it"
        )
    if score is not None and day is None:
        raise ValueError("--score is of the read-out by days; name by --day the column of the days")
    columns = LogColumns(
        *(user, version_column, click_column, conversion, new_user, impressions, new_item),
        *(day, score),
    )
    report = run_abtest(log, columns, ArmAssignment(candidate, base, share, rule), bootstrap)
    click.echo(report.text())
    for path in report.write(out) if out else ():
        click.echo(path)
