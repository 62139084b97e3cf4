"""Command that plans shardings: estimates them, measures them on ranks, measures the machine."""

import shlex
import sys
from typing import Any

import click

from mail_torchrec.cli.options import (
    ALLOW_TOWER,
    LOCAL_PATH,
    OUTPUT_DIR,
    OUTPUT_FILE,
    OVERRIDES,
    parse_pair,
)
from mail_torchrec.utils.uris import redact


@click.command()
@click.option(
    "--config",
    "config_path",
    type=LOCAL_PATH,
    help="YAML file; launch/configs/ holds examples. Or a run: the sizes of its tables are known.",
)
@click.option(
    "--hardware",
    help=("Hardware of a rank: a100-40, a100-80, h100, h200, b200, cpu, or a file of --calibrate."),
)
@click.option("--ranks", help="Numbers of ranks, such as 8,16,64.")
@click.option(
    "--batch-size", help="Rows a rank, such as 1024,4096; by default the configuration's."
)
@click.option(
    "--vary",
    multiple=True,
    help=(
        "Settings to try: 'train.tables.name=adagrad;rowwise_adagrad'. May be given several times."
    ),
)
@click.option(
    "--rows",
    multiple=True,
    help="TABLE=N, rows of a vocabulary that no run has built. May be given several times.",
)
@click.option(
    "--set",
    "hardware_overrides",
    multiple=True,
    help="A number of the hardware, such as hbm_gib=96. May be given several times.",
)
@click.option(
    "--out",
    type=OUTPUT_DIR,
    help="Folder for the report (HTML, Markdown, JSON), its plots and plan files.",
)
@click.option(
    "--compare",
    type=LOCAL_PATH,
    help="A finished run, to show its estimate beside its measured memory and speed.",
)
@click.option(
    "--measure",
    type=click.IntRange(2),
    metavar="STEPS",
    help="Run the best plans, and those of --plan, on the ranks, for so many steps in two passes.",
)
@click.option(
    "--best",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="With --measure, the plans of each scenario that the planner estimates as fastest.",
)
@click.option(
    "--plan",
    "saved",
    type=LOCAL_PATH,
    multiple=True,
    help="With --measure, a plan file to measure too. May be given several times.",
)
@click.option(
    "--calibrate",
    type=OUTPUT_FILE,
    metavar="FILE.json",
    help="Measure this machine on --ranks, and write the hardware file that --hardware takes.",
)
@click.option(
    "--scheduler",
    help="Start the ranks as a TorchX job (slurm, kubernetes, ...); by default by torchrun, here.",
)
@click.option(
    "--job",
    "job_arguments",
    multiple=True,
    help="NAME=VALUE, an argument of components/mail.py:plan_ranks, such as j=2x8 or gpu=8.",
)
@click.option("--rank-job", type=LOCAL_PATH, hidden=True, help="What each rank runs.")
@ALLOW_TOWER
@OVERRIDES
def plan(overrides: tuple[str, ...], **options: Any) -> None:
    """Estimate whether the tables fit, by which plan and how fast, and suggest changes.

    It runs on any machine, without GPU or data. --measure runs the best plans on ranks and reports
    estimate beside measurement; --calibrate measures the machine, for better estimates.

    \b
    mail-torchrec plan --config launch/configs/billions.yaml --hardware h100 --ranks 8,64 \\
      --out runs/plan
    torchrun --nproc-per-node 8 -m mail_torchrec train --config FILE --run-dir DIR \\
      --plan runs/plan/plan-8x4096.json
    mail-torchrec plan --compare DIR --hardware h100
    mail-torchrec plan --calibrate hardware.json --ranks 2
    mail-torchrec plan --config FILE --hardware hardware.json --ranks 2 --measure 20 --out runs/best
    """  # noqa: D301
    if options["rank_job"] is not None:
        from mail_torchrec.planning.measured.rank_job import run_rank_job

        run_rank_job(options["rank_job"])
    elif options["compare"] is not None:
        from mail_torchrec.planning.compare import compare_run
        from mail_torchrec.train.run_dir import RunDir

        of_run = RunDir(options["compare"])
        click.echo(compare_run(of_run, options["hardware"], options["hardware_overrides"]))
    elif options["calibrate"] is not None:
        click.echo(_calibrate(options))
    else:
        click.echo(_plan_grid(overrides, options))


def _calibrate(options: dict[str, Any]) -> str:
    from mail_torchrec.planning.measured.calibrate import CalibrateOptions, calibrate

    path, ranks = options["calibrate"], options["ranks"]
    if ranks is None or not ranks.isdigit() or int(ranks) < 1:
        raise click.UsageError(
            "--calibrate needs --ranks, one number: those that measure together."
        )
    job = _job_arguments(options)
    return calibrate(CalibrateOptions(path, int(ranks), options["scheduler"], job))


def _job_arguments(options: dict[str, Any]) -> dict[str, str]:
    if options["job_arguments"] and options["scheduler"] is None:
        raise click.UsageError("--job is for the jobs of a --scheduler; name one.")
    return dict(parse_pair("--job", text) for text in options["job_arguments"])


def _plan_grid(overrides: tuple[str, ...], options: dict[str, Any]) -> str:
    """Estimates the scenarios, or measures them."""
    config, hardware, ranks = options["config_path"], options["hardware"], options["ranks"]
    if config is None or hardware is None or ranks is None:
        raise click.UsageError(
            "Missing option '--config', '--hardware' or '--ranks' (or '--compare')."
        )
    from mail_torchrec.planning.command import plan as plan_grid
    from mail_torchrec.planning.scenarios import parse_grid

    grid = parse_grid(
        config,
        overrides,
        hardware_name=hardware,
        hardware_overrides=options["hardware_overrides"],
        ranks=ranks,
        batch_sizes=options["batch_size"],
        vary=options["vary"],
        rows=options["rows"],
    )
    out, command = options["out"], redact(shlex.join(["mail-torchrec", *sys.argv[1:]]))
    if options["measure"] is None:
        _check_measures(options)
        return plan_grid(grid, out, command)
    from mail_torchrec.planning.measured.command import MeasureOptions, measure

    if out is None:
        raise click.UsageError("--measure needs --out, which its ranks read their job from.")
    chosen = MeasureOptions(
        options["measure"],
        options["best"],
        options["saved"],
        out,
        options["scheduler"],
        _job_arguments(options),
    )
    return measure(grid, chosen, command)


def _check_measures(options: dict[str, Any]) -> None:
    for key, name in (
        ("saved", "--plan"),
        ("scheduler", "--scheduler"),
        ("job_arguments", "--job"),
    ):
        if options[key]:
            raise click.UsageError(f"{name} is for --measure and --calibrate; add one of them.")
