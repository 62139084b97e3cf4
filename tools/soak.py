"""Kills a training at random, again and again, and asserts that nothing of it is lost.

    python tools/soak.py --kills 50 --out tools/results/soak.md

A small world is trained once undisturbed, then again and again with kills: by SIGKILL a random rank
(torchrun starts the job anew), the whole job, or torchrun alone (its ranks end by themselves), or
torchrun by SIGTERM (the job saves and leaves); at a random moment, in the middle of saving, or
while the job starts. After each kill the newest published checkpoint must not be older than before,
its checksums must hold (``sha256sum``), and the job must go on from it. Each run that gets to its
end must have the figures of the undisturbed one, to the last bit.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
WORLD = ["users=600", "items=200"]
SETTINGS = [
    "model.tower=base_dnn",
    "train.batch_size=32",
    "train.epochs=4",
    "train.log_every=5",
    "checkpoint.every=8",
    "checkpoint.keep=2",
]
KINDS = {"a rank": 4, "the job": 2, "torchrun": 2, "SIGTERM": 2}
MOMENTS = {"while saving": 4, "at random": 4, "while starting": 2}
GOING_ON = re.compile(r"going on after step (\d+)")


class LostError(AssertionError):
    """Something was lost."""


@dataclass
class Job:
    """A training under torchrun, in a process group of its own."""

    world: Path
    run_dir: Path
    ranks: int
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        """Starts it, or goes on with it."""
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(self.ranks),
            "--max-restarts",
            "9",
        ]
        config = [
            "--config",
            str(ROOT / "launch/configs/synthetic.yaml"),
            "--run-dir",
            str(self.run_dir),
            "--resume",
        ]
        self.process = subprocess.Popen(
            [*launcher, "-m", "mail_torchrec", "train", *config, f"data.root={self.world}", *SETTINGS],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=self.log.open("ab"),
        )  # fmt: skip

    def rank_pids(self) -> list[int]:
        """The ranks that are alive."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has just ended
                continue
        return [pid for pid, parent in parents.items() if parent == self.process.pid]

    def kill(self, kind: str, dice: random.Random) -> bool:
        """Kills it so; whether it must be started again by hand."""
        if kind == "a rank":
            os.kill(dice.choice(self.rank_pids()), signal.SIGKILL)
            return False
        if kind == "SIGTERM":
            self.process.terminate()
            try:
                self.process.wait(120)
                return True
            except subprocess.TimeoutExpired as error:
                raise LostError(
                    "told to stop, the job was still there after two minutes"
                ) from error
        if kind == "torchrun":
            self.process.kill()
            self.process.wait()
            return True
        self.end()
        return True

    def end(self) -> None:
        """Kills all of it: torchrun first, which would start its ranks again; each of them leads a process group."""
        ranks = self.rank_pids()
        for leader in (self.process.pid, *ranks):
            try:
                os.killpg(leader, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()


def published(run_dir: Path) -> list[Path]:
    """Published checkpoints, the oldest first; without this project's own code."""
    return sorted(
        path for path in run_dir.glob("checkpoints/step-*") if re.fullmatch(r"step-\d+", path.name)
    )


def newest_step(run_dir: Path) -> int:
    """Of the published checkpoints; 0 where there is none."""
    found = published(run_dir)
    return int(found[-1].name.removeprefix("step-")) if found else 0


def verify(run_dir: Path) -> None:
    """Asserts that the newest checkpoint is what was written, by ``sha256sum``."""
    for folder in published(run_dir)[-1:]:
        done = subprocess.run(
            ["sha256sum", "--check", "--quiet", "SHA256SUMS"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        if done.returncode and folder.exists():  # not one that newer ones have replaced meanwhile
            raise LostError(f"{folder} is damaged: {done.stdout}{done.stderr}")


def wait_for(moment: str, job: Job, dice: random.Random) -> bool:
    """Waits for the moment to kill; whether the job is still there then."""
    begin, first, reached = time.time(), newest_step(job.run_dir), None
    delay = {
        "while starting": dice.uniform(0, 8),
        "at random": dice.uniform(0, 4),
        "while saving": dice.uniform(0, 0.03),
    }[moment]
    while job.process.poll() is None:
        if reached is None:
            if moment == "while saving":
                is_reached = is_saving(job.run_dir, begin)
            else:
                is_reached = moment == "while starting" or newest_step(job.run_dir) > first
            reached = time.time() if is_reached else None
        elif time.time() - reached >= delay:
            return True
        time.sleep(0.002)
    return False


def is_saving(run_dir: Path, since: float) -> bool:
    """Whether a checkpoint is being written that was begun since then."""
    try:
        return any(
            path.stat().st_mtime >= since for path in run_dir.glob("checkpoints/.step-*.partial")
        )
    except FileNotFoundError:  # published meanwhile
        return False


@dataclass
class Kill:
    """What was done, and what came of it."""

    run: int
    kind: str
    moment: str
    step: int
    resumed: int | None = None


def disturbed(job: Job, number: int, left: int, dice: random.Random, bar: Any) -> list[Kill]:
    """Trains one run to its end, killing it on the way at most ``left`` times."""
    kills: list[Kill] = []
    job.start()
    try:
        while True:
            moment = dice.choices(list(MOMENTS), list(MOMENTS.values()))[0]
            is_there = (
                wait_for(moment, job, dice) if len(kills) < left else job.process.wait(600) is None
            )
            if not is_there:
                break
            kind = dice.choices(list(KINDS), list(KINDS.values()))[0]
            if kind == "a rank" and not job.rank_pids():  # not started yet
                kind = "the job"
            kill = Kill(number, kind, moment, newest_step(job.run_dir))
            begun = len(job.log.read_bytes())
            must_start = job.kill(kind, dice)
            check(job, kill)
            kills.append(kill)
            bar.update()
            bar.set_postfix_str(f"run {number}, checkpoint {kill.step}")
            if must_start:
                job.start()
            kill.resumed = resumed(job, kill, begun)
    finally:
        job.end()
    if job.process.returncode != 0:
        raise LostError(f"run {number} ended with {job.process.returncode}; see {job.log}")
    return kills


def check(job: Job, kill: Kill) -> None:
    """Asserts that nothing published is gone or damaged."""
    if newest_step(job.run_dir) < kill.step:
        raise LostError(
            f"checkpoint {kill.step} was there before {kill}, and {newest_step(job.run_dir)} is "
            "the newest now"
        )
    verify(job.run_dir)


def resumed(job: Job, kill: Kill, begun: int) -> int | None:
    """The step from which the job went on; None where it ended meanwhile, or has no checkpoint yet."""
    until = time.monotonic() + 180
    while time.monotonic() < until:
        said = job.log.read_bytes()[begun:].decode(errors="replace")
        if "damaged" in said:
            raise LostError(f"{kill}: a damaged checkpoint; see {job.log}")
        if found := GOING_ON.findall(said):
            if int(found[-1]) < kill.step:
                raise LostError(f"{kill}: went on from {found[-1]}")
            return int(found[-1])
        if "is finished, with" in said:
            return kill.step
        if job.process.poll() is not None or (kill.step == 0 and "train:" in said):
            return None
        time.sleep(0.05)
    raise LostError(f"{kill}: the job did not go on within three minutes; see {job.log}")


def what_was_trained(run_dir: Path) -> dict[str, object]:
    """The final figures, and the losses of all steps."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [
        {key: value for key, value in line.items() if key != "rows_per_second"}
        for line in lines
        if "rows_per_second" in line
    ]
    return {"figures": json.loads((run_dir / "metrics.json").read_text()), "losses": losses}


def report(
    kills: list[Kill], runs: int, ranks: int, seed: int, seconds: float, command: str
) -> str:
    """The log as Markdown."""
    table = Counter((kill.kind, kill.moment) for kill in kills)
    lines = [
        "# Soak: kills at random",
        "",
        f"`{command}` on {os.cpu_count()} cores: {ranks} ranks, {len(kills)} kills in {runs} "
        f"runs, {seconds:,.0f} s, seed {seed}.",
        "",
        f"**No checkpoint was lost or damaged. All {runs} runs ended with the undisturbed one's "
        "figures and losses, bit for bit.**",
        "",
        "| killed | " + " | ".join(MOMENTS) + " |",
        "| --- |" + " --: |" * len(MOMENTS),
        *(
            f"| {kind} | " + " | ".join(str(table[kind, moment]) for moment in MOMENTS) + " |"
            for kind in KINDS
        ),
        "",
        "`a rank`: SIGKILL, torchrun starts the job anew; `the job`: SIGKILL for torchrun and "
        "all ranks; `torchrun`: SIGKILL for it alone;",
        "`SIGTERM`: to torchrun.",
        "",
        "| # | run | killed | when | newest checkpoint | went on from |",
        "| --: | --: | --- | --- | --: | --: |",
    ]
    for number, kill in enumerate(kills, start=1):
        lines.append(
            f"| {number} | {kill.run} | {kill.kind} | {kill.moment} | {kill.step or 'none'} | "
            f"{kill.resumed or 'the beginning'} |"
        )
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--kills", "num_kills", type=click.IntRange(1), default=50, show_default=True)
@click.option("--ranks", type=click.IntRange(1), default=2, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of what is killed when.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The log, Markdown.")
def main(num_kills: int, ranks: int, seed: int, out: Path) -> None:
    """Trains, kills, goes on, and writes a log."""
    dice, begin, kills, runs = random.Random(seed), time.monotonic(), list[Kill](), 0
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    click.echo(f"logs and runs in {folder}", err=True)
    synthesize = [
        sys.executable,
        "-m",
        "mail_torchrec",
        "synthesize",
        "--out",
        str(folder / "world"),
        *WORLD,
    ]
    subprocess.run(synthesize, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    with tqdm(total=num_kills, unit="kill", desc="soak") as bar:
        calm = Job(folder / "world", folder / "calm", ranks, folder / "calm.log")
        disturbed(calm, 0, 0, dice, bar)
        expected = what_was_trained(calm.run_dir)
        while len(kills) < num_kills:
            runs += 1
            job = Job(folder / "world", folder / f"run-{runs}", ranks, folder / f"run-{runs}.log")
            kills += disturbed(job, runs, num_kills - len(kills), dice, bar)
            if what_was_trained(job.run_dir) != expected:
                raise LostError(f"run {runs} did not end like the undisturbed one; see {folder}")
    command = f"python tools/soak.py --kills {num_kills} --ranks {ranks} --seed {seed} --out {out}"
    out.write_text(report(kills, runs, ranks, seed, time.monotonic() - begin, command))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
