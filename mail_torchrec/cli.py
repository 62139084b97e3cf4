"""The command line: one sub-command, one call."""

import json
import os
import shlex
import sys
from pathlib import Path

import click

from mail_torchrec.cli_inference import export
from mail_torchrec.quiet import quiet_third_parties

_OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
_CONFIG = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), required=True, help="YAML file; launch/configs/ holds examples."
)


class _Cli(click.Group):
    """Prints a user's error as one message, without a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            if ctx.params["traceback"]:
                raise
            _tell_launcher(error)
            # A reader process hands over its error with the traceback before the message.
            raise click.ClickException(str(error).rpartition("\nValueError: ")[2]) from error


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--traceback", is_flag=True, help="Show where an error was raised.")
def main(traceback: bool) -> None:
    """Train click models with sharded tables and a zero-shot tower for new users (MAIL, CIKM 2021).

    \b
    mail-torchrec synthesize --out worlds/demo
    mail-torchrec train --config launch/configs/synthetic.yaml --run-dir runs/demo data.root=worlds/demo
    mail-torchrec compare runs/demo
    """  # noqa: D301 -- Click's mark for lines to keep is a real \\b
    quiet_third_parties()


@main.command()
@_CONFIG
@click.option("--run-dir", type=click.Path(path_type=Path), help="Where the run writes; must not hold a run yet, but with --resume.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from the newest checkpoint in --run-dir where there is one, else begin. A restart by torchrun or Slurm implies it.",
)
@click.option("--preset", help="Settings that come with the package: 'tuned', for new users. Your overrides hold above them.")
@click.option("--print-config", is_flag=True, help="Print the whole configuration, defaults and overrides included, and stop.")
@_OVERRIDES
def train(
    config_path: Path, run_dir: Path | None, resume: bool, preset: str | None, print_config: bool, overrides: tuple[str, ...]
) -> None:
    """Train, evaluate and save one run.

    Every value of the configuration can be overridden by its dotted name: train.batch_size=4096 model.tower=base_dnn
    model.zero_shot=null. Alone it trains in one process; over more ranks:

    \b
    torchrun --nproc-per-node 2 -m mail_torchrec train --config FILE --run-dir DIR [KEY=VALUE]...
    """  # noqa: D301
    from mail_torchrec.config import dump_config, load_config, preset_overrides

    config = load_config(config_path, [*(preset_overrides(preset) if preset else []), *overrides])
    if print_config:
        click.echo(dump_config(config), nl=False)
        return
    if run_dir is None:
        raise click.UsageError("Missing option '--run-dir'.")
    from mail_torchrec.train.run_dir import RunDir
    from mail_torchrec.train.trainer import train as run

    figures = run(config, RunDir(run_dir), resume=resume or _is_restart())
    if _is_first_rank():
        click.echo(json.dumps({config.name: figures}))


@main.command()
@click.option("--run-dir", type=click.Path(path_type=Path), required=True, help="A finished run.")
@click.option("--data", help="Parquet file or folder (or URI) to evaluate on; by default the run's own test data.")
@click.option("--predictions", type=click.Path(path_type=Path), help="File (.npz) for score, label, user and part of every row.")
@_OVERRIDES
def evaluate(run_dir: Path, data: str | None, predictions: Path | None, overrides: tuple[str, ...]) -> None:
    """Evaluate a finished run: AUC and GAUC for new, old and all rows, as JSON on standard output.

    Overrides change the run's configuration for this evaluation alone: data.cold_start.hide_share=0 scores every user with
    the history there is, data.cold_start.keep=5 gives each hidden one the newest five behaviours back.
    """
    from mail_torchrec.train.run_dir import RunDir
    from mail_torchrec.train.trainer import evaluate_run

    figures = evaluate_run(RunDir(run_dir), data, list(overrides), predictions)
    if _is_first_rank():
        click.echo(json.dumps(figures, indent=2))


@main.command()
@click.argument("what", type=click.Choice(["list", "verify", "show"]))
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
def checkpoint(what: str, folder: Path) -> None:
    """Look at the checkpoints of a run; DIR is the run's directory, or one checkpoint.

    \b
    list    step, epoch, time, size, ranks and state of each
    verify  compare every file with its checksum; exits with 1 where one is damaged
    show    tables, towers, optimizer state and position of the newest, or of the one that DIR names
    """  # noqa: D301
    from mail_torchrec.checkpoint import inspection

    if what == "verify":
        faults = inspection.verify(folder)
        click.echo("\n".join(faults) or "every file is as it was written")
        sys.exit(1 if faults else 0)
    click.echo(inspection.listed(folder) if what == "list" else inspection.shown(folder))


@main.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write; its train/ and test/ must not exist yet.")
@_OVERRIDES
def synthesize(out: Path, overrides: tuple[str, ...]) -> None:
    """Write a synthetic world whose truth is known: attributes decide interests through a non-linear map."""
    from mail_torchrec.config import parse_settings
    from mail_torchrec.data.synthetic import WorldSettings, write_world

    write_world(parse_settings(WorldSettings, list(overrides)), out)


@main.command()
@click.argument("dataset", type=click.Choice(["alimama", "kuairand", "movielens"]))
@click.option("--raw", type=click.Path(path_type=Path), required=True, help="Folder with the files as published, unpacked.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write; must be empty, or begun by this command.")
@click.option("--engine", type=click.Choice(["duckdb", "pyspark"]), default="duckdb", show_default=True, help="What runs the queries.")
@click.option("--history", default=100, show_default=True, help="The newest so many events before an impression are its history.")
@click.option("--test-days", default=1, show_default=True, help="The last so many days are the test rows.")
@click.option("--memory-limit", default="8GB", show_default=True, help="Of the whole process (of Spark's driver), in MB or GB.")
@click.option("--threads", type=int, help="By default one a CPU core.")
@click.option("--buckets", type=int, help="Groups of users, prepared one after the other. By default one for each 256 MB of files.")
@click.option("--max-malformed", default=0.01, show_default=True, help="The greatest share of malformed lines in a file.")
def prepare(dataset: str, raw: Path, out: Path, **settings: object) -> None:
    """Make impression rows with histories, a schema and a configuration from raw logs.

    \b
    alimama    raw_sample.csv ad_feature.csv user_profile.csv behavior_log.csv    tianchi.aliyun.com/dataset/56
    kuairand   KuaiRand-Pure: its two log_standard_*.csv, user and video features   kuairand.com
    movielens  MovieLens-1M: users.dat movies.dat ratings.dat                       grouplens.org

    The last day is the test data. A history is the newest events strictly before its impression, oldest first: no row sees its own future.
    Malformed lines are left out, counted and reported. Stopped half way, the same command goes on from there.

    \b
    mail-torchrec prepare alimama --raw DOWNLOADED --out prepared/alimama
    mail-torchrec train --config prepared/alimama/config.yaml --run-dir runs/alimama
    """  # noqa: D301
    from mail_torchrec.prepare.settings import prepare_settings

    checked = prepare_settings(settings)
    from mail_torchrec.prepare.run import prepare as run
    from mail_torchrec.prepare.run import summary

    click.echo(summary(run(dataset, checked, raw, out), out))


@main.command()
@click.argument("run_dirs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--base", help="A method; the others' differences from it are shown too, paired by seed.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the comparison as comparison.md, .json and .png.")
def compare(run_dirs: tuple[Path, ...], base: str | None, out: Path | None) -> None:
    """Print finished runs as one table, method by new / old / all, and name their files.

    Runs of one name (top of their configuration) are seeds of one method: their mean and 95 % interval are shown.
    """
    from mail_torchrec.train.pictures import write_comparison
    from mail_torchrec.train.report import as_markdown
    from mail_torchrec.train.report import compare as rows_of
    from mail_torchrec.train.run_dir import RunDir

    rows = rows_of(run_dirs, base)
    click.echo(as_markdown(rows))
    if out is not None:
        click.echo("\n".join(map(str, write_comparison(rows, as_markdown(rows), out))))
    for path in run_dirs:
        run = RunDir(path)
        click.echo(f"{run.metrics}  {run.log}  {run.curves}  {run.tensorboard}/")


@main.command()
@click.argument("what", type=click.Choice(["table2", "table3", "figures", "warmup", "all"]))
@_CONFIG
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs and of what is made of them.")
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="Runs a method, train.seed = 1, 2, ...")
@click.option("--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, show_default=True, help="Runs side by side.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads a run.")
@click.option(
    "--method",
    "chosen",
    multiple=True,
    help="Only this method, such as MAIL-DMR; may be given several times. A name that is none is answered with all.",
)
@click.option(
    "--paper",
    type=click.Choice(["public", "industrial", "none"]),
    help="Show the paper's figures on this dataset beside the tables; by default where `prepare alimama` made the data.",
)
@_OVERRIDES
def reproduce(
    what: str,
    config_path: Path,
    out: Path,
    seeds: int,
    jobs: int,
    threads: int,
    chosen: tuple[str, ...],
    paper: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Train methods over several seeds, compare them as the paper does, and write one report.

    \b
    table2   the paper's seven methods, newer ones and their oracles: AUC, GAUC, RI, headroom recovered
    table3   the ablation of the zero-shot losses, and whether the paper's order holds
    figures  loss curves (Figure 4), real against virtual behaviours and new against old users (Figures 5 and 6)
    warmup   new users with their newest 0, 1, 2, 5, 10 and 20 behaviours: from where virtual ones stop paying
    all      these four

    A finished run is kept, also for another part with the same --out: an interrupted command goes on where it stopped. OUT/report.html
    is one file with all parts that there are.

    \b
    mail-torchrec reproduce all --config mine.yaml --out runs/mine --seeds 5
    mail-torchrec reproduce warmup --config mine.yaml --out runs/mine --method BaseDNN --method MAIL-BaseDNN
    """  # noqa: D301
    from mail_torchrec.reproduce.command import Order
    from mail_torchrec.reproduce.command import reproduce as carry_out

    options = ["--config", str(config_path), "--out", str(out), "--seeds", str(seeds), *(["--paper", paper] if paper else [])]
    command = ["mail-torchrec", "reproduce", what, *options, *(word for name in chosen for word in ("--method", name)), *overrides]
    click.echo(carry_out(Order(what, config_path, out, seeds, jobs, threads, chosen, overrides, paper), shlex.join(command)))


main.add_command(export)


@main.command()
def doctor() -> None:
    """Check the installation: versions, devices, and for a mismatch the cause and the fix."""
    from mail_torchrec.doctor import main as diagnose

    sys.exit(diagnose())


def _tell_launcher(error: Exception) -> None:
    """Hands the error to torchrun, whose report of the failure ends with it instead of a bare exit code."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def _is_restart() -> bool:
    """Whether torchrun or Slurm started this job before: its workers anew, or the whole of it requeued."""
    return any(int(os.environ.get(name, "0")) > 0 for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"
