"""Commands that ask what if: other plans, other methods."""

import os
import shlex
import sys
from pathlib import Path

import click

from mail_torchrec.cli.options import CONFIG, OVERRIDES


@click.command()
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="YAML file; launch/configs/ holds examples.",
)
@click.option("--hardware", help="What a rank runs on: a100-40, a100-80, h100, h200, b200, cpu.")
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
    help="TABLE=N, rows of a vocabulary that is not built yet. May be given several times.",
)
@click.option(
    "--set",
    "figures",
    multiple=True,
    help="A figure of the hardware, such as hbm_gib=96. May be given several times.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the report (HTML, Markdown, JSON), its pictures and plans.",
)
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    help="A finished run: its estimate beside what it took.",
)
@OVERRIDES
def plan(
    config_path: Path | None,
    hardware: str | None,
    ranks: str | None,
    batch_size: str | None,
    vary: tuple[str, ...],
    rows: tuple[str, ...],
    figures: tuple[str, ...],
    out: Path | None,
    compare: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Say whether tables fit, by which plan, how fast, and what would help: on any machine, without GPU or data.

    \b
    mail-torchrec plan --config launch/configs/billions.yaml --hardware h100 --ranks 8,64 --out
    runs/plan torchrun --nproc-per-node 8 -m mail_torchrec train --config FILE --run-dir DIR --plan
    runs/plan/plan-8x4096.json mail-torchrec plan --compare DIR --hardware h100
    """  # noqa: D301
    if compare is not None:
        from mail_torchrec.planning.compare import compare as side_by_side
        from mail_torchrec.train.run_dir import RunDir

        click.echo(side_by_side(RunDir(compare), hardware, figures))
        return
    if config_path is None or hardware is None or ranks is None:
        raise click.UsageError(
            "Missing option '--config', '--hardware' or '--ranks' (or '--compare')."
        )
    from mail_torchrec.planning.command import plan as answer
    from mail_torchrec.planning.scenarios import question

    asked = question(
        config_path,
        overrides,
        hardware_name=hardware,
        figures=figures,
        ranks=ranks,
        batch_sizes=batch_size,
        vary=vary,
        rows=rows,
    )
    click.echo(answer(asked, out, shlex.join(["mail-torchrec", *sys.argv[1:]])))


@click.command()
@click.argument("what", type=click.Choice(["table2", "table3", "figures", "warmup", "all"]))
@CONFIG
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the runs and of what is made of them.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Runs a method, train.seed = 1, 2, ...",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    show_default=True,
    help="Runs side by side.",
)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads a run."
)
@click.option(
    "--method",
    "chosen",
    multiple=True,
    help=(
        "Only this method, such as MAIL-DMR; may be given several times. A name that is none is "
        "answered with all."
    ),
)
@click.option(
    "--paper",
    type=click.Choice(["public", "industrial", "none"]),
    help=(
        "Show the paper's figures on this dataset beside the tables; by default where `prepare "
        "alimama` made the data."
    ),
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
    overrides: tuple[str, ...],
) -> None:
    """Train methods over several seeds, compare them as the paper does, and write one report.

    \b
    table2   the paper's seven methods, newer ones and their oracles: AUC, GAUC, RI, headroom recovered
    table3   the ablation of the zero-shot losses, and whether the paper's order holds
    figures  loss curves (Figure 4), real against virtual behaviours and new against old users
    (Figures 5 and 6)
    warmup   new users with their newest 0, 1, 2, 5, 10 and 20 behaviours: from where virtual ones stop paying
    all      these four

    A finished run is kept, also for another part with the same --out: an interrupted command goes
    on where it stopped. OUT/report.html is one file with all parts that there are.

    \b
    mail-torchrec reproduce all --config mine.yaml --out runs/mine --seeds 5
    mail-torchrec reproduce warmup --config mine.yaml --out runs/mine --method BaseDNN --method
    MAIL-BaseDNN
    """  # noqa: D301
    from mail_torchrec.reproduce.command import Order
    from mail_torchrec.reproduce.command import reproduce as carry_out

    options = [
        "--config",
        str(config_path),
        "--out",
        str(out),
        "--seeds",
        str(seeds),
        *(["--paper", paper] if paper else []),
    ]
    command = [
        "mail-torchrec",
        "reproduce",
        what,
        *options,
        *(word for name in chosen for word in ("--method", name)),
        *overrides,
    ]
    click.echo(
        carry_out(
            Order(what, config_path, out, seeds, jobs, threads, chosen, overrides, paper),
            shlex.join(command),
        )
    )
