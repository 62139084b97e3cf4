"""Commands of many trainings: reproduce (methods) and sweep (settings)."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mail_torchrec.cli.options import CONFIG, LOCAL_PATH, OUTPUT_DIR, OVERRIDES, parse_pair
from mail_torchrec.utils.uris import redact

if TYPE_CHECKING:
    from mail_torchrec.reproduce.command import ReproduceOptions


@click.command()
@click.argument(
    "what",
    type=click.Choice(
        ["table2", "table3", "figures", "warmup", "all", "curve", "items", "coldrec"]
    ),
)
@CONFIG
@click.option(
    "--out",
    type=OUTPUT_DIR,
    required=True,
    help="Folder of the runs, tables, plots and the report.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Seeds of each method: train.seed = 1, 2, ...",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    show_default=True,
    help="Runs side by side.",
)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of each run."
)
@click.option(
    "--method",
    "chosen",
    multiple=True,
    help=(
        "Only this method, such as MAIL-DMR; may be given several times. An unknown name lists "
        "all methods."
    ),
)
@click.option(
    "--paper",
    type=click.Choice(["public", "industrial", "none"]),
    help=(
        "Show the paper's metrics on this dataset beside ours; by default where `prepare alimama` "
        "made the data."
    ),
)
@click.option(
    "--share",
    "shares",
    type=click.FloatRange(0, 1),
    multiple=True,
    help=(
        "Of curve: share of the training users whose behaviours are hidden; may be given several "
        "times. By default 0.01, 0.02, 0.05, 0.1, 0.2 and 0.4."
    ),
)
@click.option(
    "--rows",
    type=click.IntRange(1),
    multiple=True,
    help=(
        "Of curve: number of training rows, a sample of the users, in place of --share; may be "
        "given several times. All rows are the last point."
    ),
)
@click.option(
    "--users",
    type=click.IntRange(1),
    help="Of coldrec: test users, drawn at random, for whom all items are ranked.  [default: 500]",
)
@OVERRIDES
def reproduce(
    what: str,
    config_path: Path,
    out: Path,
    seeds: int,
    jobs: int,
    threads: int,
    chosen: tuple[str, ...],
    paper: str | None,
    shares: tuple[float, ...],
    rows: tuple[int, ...],
    users: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Train methods over several seeds, compare them as the paper does, and write one report.

    \b
    table2   the paper's seven methods, newer ones and their oracles: AUC, GAUC, RI,
             headroom recovered
    table3   the ablation of the zero-shot losses, and whether the paper's order holds
    figures  loss curves (Figure 4), real against virtual behaviours (Figure 5), new against
             old users (Figure 6)
    warmup   new users with their newest 0, 1, 2, 5, 10 and 20 behaviours: how many of them
             are worth more than virtual ones
    all      these four
    curve    headroom recovered over the share of cold training users (--share), or over the
             number of training rows (--rows), with the controls of every method
    items    new items: what mean fill, generated vectors and published methods recover of
             what withheld ids are worth (data.cold_start.items)
    coldrec  the same by the split and metrics of ColdRec: all items ranked for each of
             --users users

    A finished run is kept, also for another section with the same --out: an interrupted command
    goes on where it stopped. OUT/report.html is one file with all sections made so far.

    \b
    mail-torchrec reproduce all --config mine.yaml --out runs/mine --seeds 5
    mail-torchrec reproduce warmup --config mine.yaml --out runs/mine \\
      --method BaseDNN --method MAIL-BaseDNN
    """  # noqa: D301
    from mail_torchrec.reproduce.command import ReproduceOptions

    options = ReproduceOptions(
        what, config_path, out, seeds, jobs, threads, chosen, overrides, paper
    )
    given = {"--paper": paper, "--share": shares, "--rows": rows, "--users": users}
    _check_sections_options(what, [option for option, value in given.items() if value])
    if what == "curve":
        click.echo(_curve(options, shares, rows))
    elif what == "coldrec":
        from mail_torchrec.reproduce.coldrec.command import reproduce_coldrec

        command = _reproduce_command(options, ["--users", str(users)] if users else [])
        click.echo(reproduce_coldrec(options, users or 500, command))
    else:
        from mail_torchrec.reproduce.command import reproduce as run

        click.echo(run(options, _reproduce_command(options)))


_SECTIONS_OPTIONS = {"curve": ["--share", "--rows"], "items": [], "coldrec": ["--users"]}


def _check_sections_options(what: str, given: Sequence[str]) -> None:
    """Refuses options of other sections; those that are not listed have the paper's metrics."""
    allowed = _SECTIONS_OPTIONS.get(what, ["--paper"])
    if others := [option for option in given if option not in allowed]:
        raise click.UsageError(f"{what} does not have {' and '.join(others)}; leave it out")


def _curve(options: "ReproduceOptions", shares: tuple[float, ...], rows: tuple[int, ...]) -> str:
    from mail_torchrec.reproduce.curves.command import CurveOptions, reproduce_curve

    points = [("--share", share) for share in shares] + [("--rows", number) for number in rows]
    command = _reproduce_command(options, [str(word) for pair in points for word in pair])
    return reproduce_curve(options, CurveOptions(shares, rows), command)


def _reproduce_command(options: "ReproduceOptions", further: Sequence[str] = ()) -> str:
    """Formats the command line that gives the same results, for the report."""
    words = ["mail-torchrec", "reproduce", options.what, "--config", str(options.config)]
    words += ["--out", str(options.out), "--seeds", str(options.num_seeds)]
    words += ["--paper", options.paper] if options.paper else []
    words += [word for name in options.chosen for word in ("--method", name)]
    return redact(shlex.join([*words, *further, *options.overrides]))


@click.command()
@CONFIG
@click.option(
    "--space",
    type=LOCAL_PATH,
    required=True,
    help="YAML file with the settings to search: their names and ranges, as below.",
)
@click.option(
    "--out", type=OUTPUT_DIR, required=True, help="Folder of the study, the trials and the report."
)
@click.option(
    "--trials", type=click.IntRange(1), default=30, show_default=True, help="Trials in all."
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    show_default=True,
    help="Trials side by side.",
)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of each trial."
)
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of the search."
)
@click.option(
    "--keep-checkpoints",
    is_flag=True,
    help="Keep the checkpoints of all trials; by default those of the best one alone.",
)
@click.option(
    "--scheduler",
    help="Run the trials as TorchX jobs of this scheduler (slurm, kubernetes, local_cwd, ...).",
)
@click.option(
    "--job",
    "job_arguments",
    multiple=True,
    help="NAME=VALUE, an argument of components/mail.py:train, such as j=1x8. May be repeated.",
)
@OVERRIDES
def sweep(
    config_path: Path,
    space: Path,
    out: Path,
    trials: int,
    jobs: int,
    threads: int,
    seed: int,
    keep_checkpoints: bool,
    scheduler: str | None,
    job_arguments: tuple[str, ...],
    overrides: tuple[str, ...],
) -> None:
    """Search settings by many trainings, compared on validation rows, and write one report.

    Optuna chooses the settings (TPE) and stops trials early that fall behind (ASHA). The metric is
    train.early_stopping.metric, of the cohort train.early_stopping.cohort. Called again with the
    same --out it goes on with the trials that are missing, and with those that were stopped.

    \b
    space:
      train.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
      model.tower: {choices: [dmr, din]}
      train.batch_size: {low: 512, high: 2048, step: 512}

    \b
    mail-torchrec sweep --config mine.yaml --space space.yaml --out sweeps/a --trials 30 \\
      data.validation='{share: 0.05}' train.early_stopping.cohort=new
    """  # noqa: D301
    from mail_torchrec.sweep.command import SweepOptions
    from mail_torchrec.sweep.command import sweep as run

    options = SweepOptions(
        config_path,
        space,
        out,
        trials,
        jobs,
        threads,
        seed,
        overrides,
        keep_checkpoints,
        scheduler,
        dict(parse_pair("--job", text) for text in job_arguments),
    )
    click.echo(run(options, redact(shlex.join(["mail-torchrec", *sys.argv[1:]]))))
