"""Commands of runs: train, checkpoint, compare."""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mail_torchrec.cli.interrupts import InterruptHandler
from mail_torchrec.cli.options import ALLOW_TOWER, LOCAL_PATH, OUTPUT_DIR, OVERRIDES
from mail_torchrec.distributed.launcher import num_restarts

if TYPE_CHECKING:
    from mail_torchrec.config import Config
    from mail_torchrec.train.continuation import ParentRun


@click.command()
@click.option(
    "--config",
    "config_path",
    type=LOCAL_PATH,
    help=(
        "YAML file; launch/configs/ holds examples. With --continue or --init-from the parent's "
        "configuration is taken where none is given."
    ),
)
@click.option(
    "--run-dir",
    type=OUTPUT_DIR,
    help="Run directory to write; must not hold a run yet, unless --resume is given.",
)
@click.option(
    "--resume",
    is_flag=True,
    help=(
        "Go on from the newest checkpoint in --run-dir; begin where there never was one. A restart "
        "by torchrun or Slurm implies it."
    ),
)
@click.option(
    "--from-scratch",
    is_flag=True,
    help=(
        "Begin at step 0 even if --run-dir holds a run: its files are moved to earlier-1 there. "
        "A restart by torchrun or Slurm resumes all the same."
    ),
)
@click.option(
    "--continue",
    "continued",
    type=LOCAL_PATH,
    metavar="RUN",
    help=(
        "Go on from the run in this directory with other training data: weights, optimizers, "
        "steps and vocabularies."
    ),
)
@click.option(
    "--init-from",
    type=LOCAL_PATH,
    metavar="RUN",
    help="Begin with the weights of the run in this directory, at step 0 with fresh optimizers.",
)
@click.option(
    "--again",
    is_flag=True,
    help="With --continue: train even on files that the run or one before it was trained on.",
)
@click.option(
    "--preset",
    help=(
        "Settings that come with the package: 'tuned', for new users. Your overrides take "
        "precedence."
    ),
)
@click.option(
    "--plan",
    type=LOCAL_PATH,
    help="Shard the tables by this plan.json, of `mail-torchrec plan` or of a run.",
)
@click.option(
    "--print-config",
    is_flag=True,
    help="Print the whole configuration, defaults and overrides included, and stop.",
)
@ALLOW_TOWER
@OVERRIDES
@click.pass_obj
def train(
    interrupts: InterruptHandler,
    config_path: Path | None,
    run_dir: Path | None,
    resume: bool,
    from_scratch: bool,
    continued: Path | None,
    init_from: Path | None,
    again: bool,
    preset: str | None,
    plan: Path | None,
    print_config: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train, evaluate and save one run.

    Every value of the configuration can be overridden by its dotted name: train.batch_size=4096
    model.tower=base_dnn model.zero_shot=null. Alone it trains in one process; over more ranks:

    \b
    torchrun --nproc-per-node 2 -m mail_torchrec train --config FILE --run-dir DIR [KEY=VALUE]...

    Ctrl-C (or SIGTERM, SIGHUP) saves a checkpoint after the step under way and ends with the exit
    code of the signal; --resume goes on from there. A second Ctrl-C ends at once, and says what is
    lost.
    """  # noqa: D301
    from mail_torchrec.config import dump_config, preset_overrides

    parent = _parent_run(continued, init_from, again=again)
    is_restart = num_restarts() > 0
    overrides = (*(preset_overrides(preset) if preset else []), *overrides)
    resumed = run_dir if resume or is_restart else None
    config = _run_config(config_path, resumed, parent.path if parent else None, overrides)
    if print_config:
        click.echo(dump_config(config), nl=False)
        return
    if run_dir is None:
        raise click.UsageError("Missing option '--run-dir'.")
    from mail_torchrec.reporting.run_summary import run_summary
    from mail_torchrec.train.run_dir import RunDir
    from mail_torchrec.train.trainer import train as run

    if resume and from_scratch:
        raise click.UsageError("--resume goes on with a run and --from-scratch begins; give one.")
    interrupts.describe_losses = partial(_losses_between_steps, run_dir)
    metrics = run(
        config,
        RunDir(run_dir),
        plan,
        resume=resume or is_restart,
        from_scratch=from_scratch and not is_restart,
        parent=parent,
    )
    if _is_first_rank():
        click.echo(run_summary(metrics, run_dir), err=True)
        click.echo(json.dumps({config.name: metrics}))


def _parent_run(
    continued: Path | None, init_from: Path | None, *, again: bool
) -> "ParentRun | None":
    """Returns the run that another one continues or begins with the weights of, if any."""
    from mail_torchrec.train.continuation import ParentRun

    if continued is not None and init_from is not None:
        raise click.UsageError("--continue and --init-from name a run's one parent; give one.")
    if again and continued is None:
        raise click.UsageError("--again is for --continue.")
    if continued is not None:
        return ParentRun(continued, "continue", again)
    return ParentRun(init_from, "init-from", again) if init_from is not None else None


def _run_config(
    path: Path | None, resumed: Path | None, parent: Path | None, overrides: tuple[str, ...]
) -> "Config":
    """Loads the configuration of a run: of a file, else of the run itself, else of its parent."""
    from mail_torchrec.config import RUN_CONFIG, load_config, load_run_config

    if path is not None:
        return load_config(path, list(overrides))
    if resumed is not None and (resumed / RUN_CONFIG).exists():
        return load_run_config(resumed, overrides)
    if parent is None:
        raise click.UsageError("Missing option '--config'.")
    return load_run_config(parent, overrides)


@click.command()
@click.argument("what", type=click.Choice(["list", "verify", "show"]))
@click.argument("folder", type=LOCAL_PATH, metavar="DIR")
def checkpoint(what: str, folder: Path) -> None:
    """Inspect the checkpoints of a run; DIR is the run's directory, or one checkpoint.

    \b
    list    step, epoch, time, size, ranks and state of each
    verify  compare every file with its checksum; exits with 1 where one is damaged
    show    tables, towers, optimizer state and position of the newest, or of the one that DIR names
    """  # noqa: D301
    from mail_torchrec.checkpoint import inspection

    if what == "verify":
        faults = inspection.verify_checkpoints(folder)
        click.echo("\n".join(faults) or "every file is as it was written")
        sys.exit(1 if faults else 0)
    show = inspection.checkpoint_list if what == "list" else inspection.checkpoint_summary
    click.echo(show(folder))


@click.command()
@click.argument("run_dirs", nargs=-1, required=True, type=LOCAL_PATH)
@click.option(
    "--base", help="A method, to show the others' differences from it too, paired by seed."
)
@click.option(
    "--out",
    type=OUTPUT_DIR,
    help="Folder for the comparison as comparison.md, .json and .png.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="DIR=NAME",
    help="Name of a run's method in place of the one in its configuration; may be repeated.",
)
@click.option(
    "--allow-different-data",
    is_flag=True,
    help=(
        "Mark runs whose test rows, new users or (for seeds of one method) training rows differ "
        "from the first run's, instead of refusing them."
    ),
)
def compare(
    run_dirs: tuple[Path, ...],
    base: str | None,
    out: Path | None,
    names: tuple[str, ...],
    allow_different_data: bool,
) -> None:
    """Print the metrics of finished runs as one table: methods by new, old and all users.

    Runs of one name (top of their configuration) are seeds of one method: their mean and 95 %
    interval are shown; they must not differ in more than the seed. All runs must have been
    evaluated on the same rows. The files of each run are listed below the table.

    \b
    mail-torchrec compare runs/kr runs/kr2
    mail-torchrec compare runs/* --base DMR --out runs/comparison
    """  # noqa: D301
    from mail_torchrec.reporting.comparison import as_markdown
    from mail_torchrec.reporting.comparison import compare as compare_runs
    from mail_torchrec.reporting.comparison_plot import write_comparison
    from mail_torchrec.train.run_dir import RunDir

    given = {Path(path): name for path, _, name in (text.rpartition("=") for text in names)}
    results = compare_runs(run_dirs, base, names=given, allow_different_data=allow_different_data)
    click.echo(as_markdown(results))
    if out is not None:
        click.echo("\n".join(map(str, write_comparison(results, as_markdown(results), out))))
    for path in run_dirs:
        run = RunDir(path)
        click.echo(f"{run.metrics}  {run.log}  {run.curves}  {run.tensorboard}/")


def _losses_between_steps(run_dir: Path) -> str:
    """Says what is lost by an interrupt before the first step or after the last one."""
    from mail_torchrec.checkpoint.folder import step_of
    from mail_torchrec.train.run_dir import RunDir

    if published := RunDir(run_dir).checkpoints.published():
        return f"--resume goes on after step {step_of(published[-1])}"
    return "nothing is lost but the start"


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"
