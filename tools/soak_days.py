"""Trains, delivers and serves day after day, kills each part at random, and misses nothing.

    python tools/soak_days.py --days 20 --folder runs/soak --out tools/results/soak-days.md

A small world of days is trained on day by day: each day's run continues the one before, its delta
is exported and applied to the folder of a running server. Training, export and `apply` are killed
at random moments (SIGKILL, SIGTERM) and run again until they end; the server is killed too. Each
day's run must end as its twin that nobody killed, to the last bit; after each kill no checkpoint
and no version may be gone or damaged; the server must answer every request that it is up for, with
exactly the scores of the version that it names; and an applied version must have exactly the scores
of a full export. `--folder` keeps it all: the same command goes on behind the last finished day.
"""

import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tools.torchrun_job`

from mail_torchrec.cli.options import OUTPUT_DIR, OUTPUT_FILE
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.utils.progress import progress_bar
from tools.killed_commands import Commands
from tools.probed_server import ProbedServer, Scores, scores_of, version_of
from tools.soak import newest_step, published_checkpoints, read_results, verify_newest
from tools.tool_command import ToolCommand
from tools.torchrun_job import ROOT, LostError, child_environment

_TOLERANCE = 1e-5
_FIRST = date(2024, 5, 1)
WORLD = ["users=400", "items=150", f"start={_FIRST}"]
SETTINGS = [
    "schema.tables.item={ids: managed, rows: 400, admit: 2, evict: lru}",
    "schema.columns.user_id={group: attribute}",
    "schema.tables.user_id={ids: managed, rows: 700, evict: lfu}",
    "model.zero_shot=null",
    "model.tower_options={num_negatives: 20}",
    "train.batch_size=32",
    "train.epochs=1",
    "train.log_every=5",
    "checkpoint.every=4",
    "checkpoint.keep=2",
]


@dataclass
class Soak:
    """Days of one folder."""

    folder: Path
    commands: Commands
    max_kills: int
    expected: dict[str, list[Scores]] = field(default_factory=dict)
    """Scores of each version that was made."""
    server: ProbedServer | None = None

    def run(self, day: int) -> dict[str, Any]:
        """Trains, delivers and serves one day; returns what it was."""
        num_kills = len(self.commands.kills)
        self._train(day)
        how = self._deliver(day)
        served = self._serve(day)
        return {"day": day, "how": how, "kills": self.commands.kills[num_kills:], **served}

    def _train(self, day: int) -> None:
        """Trains a day undisturbed, then with kills, and compares the two."""
        dates = [str(_FIRST + timedelta(days=number)) for number in (day, day + 1)]
        data = [f"data.train=day={dates[0]}", f"data.test=day={dates[1]}"]
        run, twin, newest = self._run(day), self.folder / "twin", 0
        if day:
            words = ["train", "--continue", str(self._run(day - 1)), "--resume", *data]
        else:
            config, root = ROOT / "launch/configs/synthetic.yaml", self.folder / "world"
            words = ["train", "--config", str(config), "--resume", f"data.root={root}"]
            words += [*data, *SETTINGS]
        shutil.rmtree(twin, ignore_errors=True)
        self.commands.run(*words, "--run-dir", str(twin))

        def check() -> None:
            nonlocal newest
            if (found := newest_step(run)) < newest:
                raise LostError(f"{run}: checkpoint {newest} is gone, {found} is the newest")
            newest = found
            verify_newest(run)

        self._finish([*words, "--run-dir", str(run)], check)
        if _results(run) != _results(twin):
            raise LostError(f"{run} did not end like {twin}, which was not killed")

    def _deliver(self, day: int) -> str:
        """Brings a day's model into the served folder; returns how."""
        run, version, models = self._run(day), self._version(day), self.folder / "models"
        if version.exists():  # the soak was stopped behind this
            return "before"
        full = ["export", "--run-dir", str(run), "--spare", "0.5", "--out", str(version)]
        if not day:
            self.commands.run(*full)
            return "a full export"
        delta = self.folder / "deltas" / version.name
        if not delta.exists():
            words = ["export", "--delta-of", str(_versions(models)[-1]), "--run-dir", str(run)]
            self._finish([*words, "--out", str(delta)], self._check_versions)
        code, text = self._with_kills(
            ["apply", str(delta), "--models", str(models)], self._check_versions
        )
        if not code or version.exists():
            return "a delta"
        if "full export" not in text:
            raise LostError(f"apply ended with {code}:\n{text[-2000:]}")
        self._finish(full, self._check_versions)
        return "a full export, as the delta said"

    def _serve(self, day: int) -> dict[str, Any]:
        """Waits until a day's version is served, and checks it and what was answered meanwhile."""
        version, full = self._version(day), self.folder / "full"
        server = self.server or ProbedServer(self.folder / "models", self.folder / "serve.log")
        self.server = server
        if day and self.commands.dice.random() < 0.5:
            server.kill()
            self.commands.kills.append(("serve", "SIGKILL", 0.0))
        seconds = server.wait_for_version(version_of(version))
        if (difference := Scorer(version).max_difference()) > _TOLERANCE:
            raise LostError(f"{version} differs from the trainer's scores by {difference}")
        shutil.rmtree(full, ignore_errors=True)
        self.commands.run("export", "--run-dir", str(self._run(day)), "--out", str(full))
        scores = scores_of(version, server.requests)
        if scores_of(full, server.requests) != scores:
            raise LostError(f"{version} has other scores than a full export of its run")
        self.expected[version_of(version)] = scores
        for number, wanted in enumerate(scores):
            if server.ask(number) != (version_of(version), wanted):
                raise LostError(f"the server does not answer as {version} does")
        self._check_versions()
        return {"served_after": round(seconds, 1), "requests": server.check(self.expected)}

    def _check_versions(self) -> None:
        """Checks that the newest version is there, and that all have the scores they ever had."""
        assert self.server is not None
        versions = _versions(self.folder / "models")
        if version_of(versions[-1]) not in self.expected:  # of a day that is not done
            versions = versions[:-1]
        if version_of(versions[-1]) != list(self.expected)[-1]:
            raise LostError(f"version {list(self.expected)[-1]} is gone")
        for path in versions:
            if scores_of(path, self.server.requests) != self.expected[version_of(path)]:
                raise LostError(f"{path} has other scores than before")

    def reopen(self) -> None:
        """Serves the versions of days that are done, where the soak goes on."""
        if versions := _versions(self.folder / "models"):
            self.server = ProbedServer(self.folder / "models", self.folder / "serve.log")
            requests = self.server.requests
            self.expected = {version_of(path): scores_of(path, requests) for path in versions}

    def _with_kills(self, words: list[str], check: Callable[[], None]) -> tuple[int, str]:
        return self.commands.run_with_kills(*words, max_kills=self.max_kills, check=check)

    def _finish(self, words: list[str], check: Callable[[], None]) -> None:
        code, text = self._with_kills(words, check)
        if code:
            raise LostError(f"mail-torchrec {' '.join(words)} ended with {code}:\n{text[-2000:]}")

    def _run(self, day: int) -> Path:
        return self.folder / "runs" / f"day-{day + 1:02}"

    def _version(self, day: int) -> Path:
        return self.folder / "models" / f"day-{day + 1:02}"


def _versions(models: Path) -> list[Path]:
    """Lists the versions of a folder, the oldest first."""
    return sorted(models.glob("day-*"))


def _results(run: Path) -> tuple[dict[str, object], list[str]]:
    """Reads metrics and losses of a run, and the checksums of its last checkpoint's numbers."""
    sums = (published_checkpoints(run)[-1] / "SHA256SUMS").read_text().splitlines()
    return read_results(run), [line for line in sums if line.endswith(".distcp")]


def soak(
    folder: Path, num_days: int, max_kills: int, seed: int, *world: str
) -> list[dict[str, Any]]:
    """Runs the days that are not done yet; returns what all of them were.

    Raises:
        LostError: something was lost.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("models", "deltas", "runs"):
        (folder / name).mkdir(exist_ok=True)
    record = folder / "days.jsonl"
    done = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    commands = Commands(folder / "commands.log", random.Random(f"{seed}/{len(done)}"))
    if not (folder / "world/world.json").exists():
        shutil.rmtree(folder / "world", ignore_errors=True)
        days = ["--days", str(num_days + 1)]
        commands.run("synthesize", "--out", str(folder / "world"), *days, *WORLD, *world)
    days_of = Soak(folder, commands, max_kills)
    if done:
        days_of.reopen()
    try:
        with progress_bar(total=num_days, unit="day", desc="soak", leave=True) as bar:
            bar.update(len(done))
            for day in range(len(done), num_days):
                done.append(days_of.run(day))
                with record.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
                bar.update()
                bar.set_postfix_str(f"{sum(len(one['kills']) for one in done)} kills")
    finally:
        if days_of.server is not None:
            days_of.server.close()
    return done


def report(days: list[dict[str, Any]], facts: str) -> str:
    """Formats what happened as Markdown."""
    counts = Counter((kill[0], kill[1]) for one in days for kill in one["kills"])
    requests = sum(one["requests"] for one in days)
    deltas = sum(one["how"] == "a delta" for one in days)
    lines = [
        "# Soak: days of training, deltas and a server, killed at random",
        "",
        facts,
        "",
        f"**Nothing was lost.** {len(days)} days, {deltas} of them delivered as a delta: each run "
        "ended as its twin that nobody killed, losses, metrics, weights and optimizer state to the "
        "last bit; no checkpoint and no version was gone or damaged after a kill; each applied "
        f"version had exactly the scores of a full export of its run; {requests:,} requests while "
        "all this went on, each answered with exactly the scores of the version it named (but for "
        "those sent while the server was killed and started again).",
        "",
        "| killed | by | times |",
        "| --- | --- | --: |",
        *(f"| {name} | {number} | {count} |" for (name, number), count in sorted(counts.items())),
        "",
        "| day | delivered as | served after, s | kills | requests |",
        "| --: | --- | --: | --: | --: |",
        *(
            f"| {one['day'] + 1} | {one['how']} | {one['served_after']} | {len(one['kills'])} | "
            f"{one['requests']:,} |"
            for one in days
        ),
    ]
    return "\n".join(lines) + "\n"


@click.command(cls=ToolCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--days", type=click.IntRange(2), default=20, show_default=True, help="Days.")
@click.option(
    "--kills",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="Most kills of each command of a day.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of victims and moments.")
@click.option("--folder", type=OUTPUT_DIR, required=True, help="Folder for all of it.")
@click.option("--out", type=OUTPUT_FILE, required=True, help="The log, Markdown.")
def main(days: int, kills: int, seed: int, folder: Path, out: Path) -> None:
    """Train, deliver and serve day after day with kills, and assert that nothing is lost.

    \b
    python tools/soak_days.py --days 20 --folder runs/soak --out tools/results/soak-days.md
    """  # noqa: D301
    os.environ |= child_environment()
    begin = time.monotonic()
    done = soak(folder.resolve(), days, kills, seed)
    command = f"python tools/soak_days.py --days {days} --kills {kills} --seed {seed}"
    seconds = time.monotonic() - begin
    facts = f"`{command} --folder FOLDER --out {out}` on {os.cpu_count()} cores, {seconds:,.0f} s."
    out.write_text(report(done, facts))


if __name__ == "__main__":
    main()
