"""Kills a training at random moments, again and again, and asserts that nothing of it is lost.

    python tools/soak.py --kills 50 --readers 2 --out tools/results/soak.md

A small synthetic world is trained once undisturbed, then again and again with kills: by SIGKILL a
random rank (torchrun starts the job anew), the whole job, or torchrun alone, also while its ranks
and reader processes are stopped; by SIGSTOP a reader process; by SIGTERM torchrun (the job saves
and leaves); at a random moment, in the middle of saving, or while the job starts. After each kill
no process of the attempt may be alive, the newest published checkpoint must not be older than
before, its checksums must hold (``sha256sum``), and the job must go on from it. Each run that gets
to its end must have the metrics of the undisturbed one, to the last bit.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tools.torchrun_job`

from mail_torchrec.cli.options import OUTPUT_FILE
from mail_torchrec.utils.progress import progress_bar
from tools.marked_processes import Mark
from tools.soak_report import KINDS, MOMENTS, Kill, format_report
from tools.tool_command import ToolCommand
from tools.torchrun_job import ROOT, LostError, TorchrunJob, child_environment

WORLD = ["users=600", "items=200"]
_MAX_DELAYS = {"while saving": 0.03, "at random": 4.0, "while starting": 5.0}
"""Greatest seconds between the moment and the kill."""
_RESUMED = re.compile(r"going on after step (\d+)")
_TIMINGS = {"rows_per_second", "input_wait"}
"""Keys of ``metrics.jsonl`` that no two runs share."""
_RESUME_SECONDS, _RUN_SECONDS = 180, 600


def published_checkpoints(run_dir: Path) -> list[Path]:
    """Lists the published checkpoints, the oldest first, without this project's own code."""
    folders = run_dir.glob("checkpoints/step-*")
    return sorted(path for path in folders if re.fullmatch(r"step-\d+", path.name))


def newest_step(run_dir: Path) -> int:
    """Returns the step of the newest published checkpoint, 0 where there is none."""
    found = published_checkpoints(run_dir)
    return int(found[-1].name.removeprefix("step-")) if found else 0


def verify_newest(run_dir: Path) -> None:
    """Asserts by ``sha256sum`` that the newest checkpoint is undamaged."""
    for folder in published_checkpoints(run_dir)[-1:]:
        command = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        # A checkpoint that newer ones have replaced meanwhile is gone.
        if done.returncode and folder.exists():
            raise LostError(f"{folder} is damaged: {done.stdout}{done.stderr}")


def wait_for_moment(moment: str, job: TorchrunJob, dice: random.Random) -> bool:
    """Waits for the moment to kill, and returns whether the job still runs then."""
    begin, first, reached = time.time(), newest_step(job.run_dir), None
    delay = dice.uniform(0, _MAX_DELAYS[moment])
    while job.process.poll() is None:
        if reached is None:
            if moment == "while saving":
                is_reached = _is_saving(job.run_dir, begin)
            else:
                is_reached = moment == "while starting" or newest_step(job.run_dir) > first
            reached = time.time() if is_reached else None
        elif time.time() - reached >= delay:
            return True
        time.sleep(0.002)
    return False


def _is_saving(run_dir: Path, since: float) -> bool:
    """Returns whether a checkpoint begun after ``since`` is being written."""
    try:
        partial = run_dir.glob("checkpoints/.step-*.partial")
        return any(path.stat().st_mtime >= since for path in partial)
    except FileNotFoundError:  # published meanwhile
        return False


def train_with_kills(
    job: TorchrunJob, number: int, max_kills: int, dice: random.Random, bar: Any
) -> list[Kill]:
    """Trains one run to its end, and kills it on the way at most ``max_kills`` times."""
    kills: list[Kill] = []
    job.start()
    try:
        while len(kills) < max_kills:
            moment = _choose(MOMENTS, dice)
            if not wait_for_moment(moment, job, dice):
                break
            kills.append(_kill_once(job, number, moment, dice))
            bar.update()
            bar.set_postfix_str(f"run {number}, checkpoint {kills[-1].step}")
        job.process.wait(_RUN_SECONDS)
    finally:
        job.end()
    if job.process.returncode != 0:
        raise LostError(f"run {number} ended with {job.process.returncode}; see {job.log}")
    return kills


def _kill_once(job: TorchrunJob, number: int, moment: str, dice: random.Random) -> Kill:
    """Kills the job, checks its checkpoints, and waits until it has resumed."""
    kind = _choose(KINDS, dice)
    if kind == "a rank" and not job.rank_pids():  # not started yet
        kind = "the job"
    if kind == "a stopped reader" and not job.has_readers():
        kind = "stopped ranks"
    kill = Kill(number, kind, moment, newest_step(job.run_dir))
    log_bytes = len(job.log.read_bytes())
    must_start = job.kill(kind, dice)
    check_checkpoints(job, kill)
    if must_start:
        job.start()
    kill.resumed = wait_until_resumed(job, kill, log_bytes)
    return kill


def _choose(weights: dict[str, int], dice: random.Random) -> str:
    return dice.choices(list(weights), list(weights.values()))[0]


def check_checkpoints(job: TorchrunJob, kill: Kill) -> None:
    """Asserts that no published checkpoint is gone or damaged."""
    newest = newest_step(job.run_dir)
    if newest < kill.step:
        raise LostError(f"checkpoint {kill.step} existed before {kill}, and {newest} is the newest")
    verify_newest(job.run_dir)


def wait_until_resumed(job: TorchrunJob, kill: Kill, log_bytes: int) -> int | None:
    """Returns the step from which the job went on.

    Returns:
        None where it ended meanwhile, or had no checkpoint yet.
    """
    until = time.monotonic() + _RESUME_SECONDS
    while time.monotonic() < until:
        text = job.log.read_bytes()[log_bytes:].decode(errors="replace")
        if "damaged" in text:
            raise LostError(f"{kill}: a damaged checkpoint; see {job.log}")
        if found := _RESUMED.findall(text):
            if int(found[-1]) < kill.step:
                raise LostError(f"{kill}: went on from {found[-1]}")
            return int(found[-1])
        if "is finished, with" in text:
            return kill.step
        if job.process.poll() is not None or (kill.step == 0 and "train:" in text):
            return None
        time.sleep(0.05)
    raise LostError(f"{kill}: the job did not go on within three minutes; see {job.log}")


def read_results(run_dir: Path) -> dict[str, object]:
    """Reads the final metrics, and the losses of all steps."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [
        {key: value for key, value in line.items() if key not in _TIMINGS}
        for line in lines
        if "rows_per_second" in line
    ]
    return {"metrics": json.loads((run_dir / "metrics.json").read_text()), "losses": losses}


def _write_world(folder: Path) -> None:
    command = [sys.executable, "-m", "mail_torchrec", "synthesize", "--out", str(folder), *WORLD]
    subprocess.run(command, check=True, cwd=ROOT)


@click.command(cls=ToolCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--kills",
    "num_kills",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Kills in all.",
)
@click.option(
    "--ranks", type=click.IntRange(1), default=2, show_default=True, help="Ranks of the training."
)
@click.option(
    "--readers",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="Reader processes of each rank.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of victims and moments.")
@click.option(
    "--fresh",
    is_flag=True,
    help="Start fresh interpreters, instead of forks of one that has imported the trainer.",
)
@click.option("--out", type=OUTPUT_FILE, required=True, help="The log, Markdown.")
def main(num_kills: int, ranks: int, readers: int, seed: int, fresh: bool, out: Path) -> None:
    """Kill a training at random, resume it, assert that nothing is lost, and write a log.

    \b
    python tools/soak.py --kills 50 --readers 2 --out tools/results/soak.md
    """  # noqa: D301
    dice, begin, kills, runs = random.Random(seed), time.monotonic(), list[Kill](), 0
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    click.echo(f"logs and runs in {folder}", err=True)
    os.environ |= child_environment() | (mark := Mark()).environment
    _write_world(folder / "world")

    def make_job(name: str) -> TorchrunJob:
        places = folder / "world", folder / name, ranks, folder / f"{name}.log"
        return TorchrunJob(*places, readers, mark=mark, is_forked=not fresh)

    with progress_bar(total=num_kills, unit="kill", desc="soak", leave=True) as bar:
        undisturbed = make_job("undisturbed")
        train_with_kills(undisturbed, 0, 0, dice, bar)
        expected = read_results(undisturbed.run_dir)
        while len(kills) < num_kills:
            runs += 1
            job = make_job(f"run-{runs}")
            kills += train_with_kills(job, runs, num_kills - len(kills), dice, bar)
            if read_results(job.run_dir) != expected:
                raise LostError(f"run {runs} did not end like the undisturbed one; see {folder}")
    options = f"--kills {num_kills} --ranks {ranks} --readers {readers} --seed {seed}"
    options += " --fresh" * fresh
    command = f"python tools/soak.py {options} --out {out}"
    seconds = time.monotonic() - begin
    started = "in fresh interpreters" if fresh else "forked from a process that has imported them"
    facts = (
        f"`{command}` on {os.cpu_count()} cores: ranks: {ranks}, with "
        f"{readers} reader processes each; runs: {runs}; kills: {len(kills)}; {seconds:,.0f} s. "
        f"torchrun and the ranks were {started}."
    )
    out.write_text(format_report(kills, runs, facts))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
