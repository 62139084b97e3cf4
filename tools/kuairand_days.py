"""Trains on KuaiRand's days one after the other, in four ways, and compares their AUC by day.

    python tools/kuairand_days.py --data FOLDER --out runs/kuairand-days --jobs 2

``FOLDER`` has the joined impressions of KuaiRand-Pure, a Parquet file a day in ``train/`` and
``test/``. Each day is scored by the models of the days before it: ``continued`` goes on from the
day before with managed ids, ``no new ids`` does so with the ids of the first day, ``retrained``
begins anew on all days so far, and ``frozen`` is the first day's model. What is finished is kept:
the same command goes on where it was stopped.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq

from mail_torchrec.utils.run_files import write_file
from tools.kuairand_days_report import ARMS, write_page
from tools.structure import ROOT
from tools.tool_command import ToolCommand

CONFIG = ROOT / "launch" / "configs" / "kuairand.yaml"
MAX_HISTORY = 50
MANAGED = {"user": 16_000, "video": 8_192, "author_id": 8_192, "music_id": 8_192}
"""Rows of the managed tables; all days together have more users than rows."""
SETTINGS = [
    "data.cold_start.hide_share=0",
    "model.zero_shot=null",
    "schema.columns.user_feature={group: attribute, column: user_id, table: user}",
    *(f"schema.tables.{name}={{ids: managed, rows: {rows}}}" for name, rows in MANAGED.items()),
    "train.save_predictions=true",
]
NO_NEW_IDS = [f"schema.tables.{name}.admit=1000000" for name in MANAGED]


def prepare_days(data: Path, out: Path) -> list[str]:
    """Writes a folder of each day, whose histories hold the videos watched before that day.

    The files' own histories end before the first day; a user's clicks of each day follow behind
    them from the next day on (3 is a like there, 2 a long view, 1 another; here 2 and 1).

    Returns:
        The days.
    """
    files = sorted((*data.glob("train/*.parquet"), *data.glob("test/*.parquet")), key=_name)
    if len(files) < 3:
        raise ValueError(
            f"'{data}' should hold a Parquet file a day, YYYYMMDD.parquet, in train/ and test/, "
            f"found {len(files)}; give the folder of KuaiRand's joined impressions"
        )
    watched: dict[int, list[tuple[int, int]]] = {}
    days = []
    for file in files:
        day = f"{file.stem[:4]}-{file.stem[4:6]}-{file.stem[6:]}"
        days.append(day)
        table = pq.read_table(file)
        folder = out / f"day={day}"
        folder.mkdir(parents=True, exist_ok=True)
        with_history = _with_histories(table, watched)
        pq.write_table(with_history, folder / "rows.parquet", row_group_size=4096)
        columns = ("user_id", "video_id", "is_click", "long_view")
        for user, video, clicked, long in zip(
            *(table[name].to_pylist() for name in columns), strict=True
        ):
            if clicked:
                watched.setdefault(user, []).append((video, 2 if long else 1))
    return days


def _name(path: Path) -> str:
    return path.name


def _with_histories(table: pa.Table, watched: dict[int, list[tuple[int, int]]]) -> pa.Table:
    names = ("user_id", "watch_seq", "watch_action_seq")
    videos, actions = [], []
    for user, old_videos, old_actions in zip(
        *(table[name].to_pylist() for name in names), strict=True
    ):
        new = watched.get(user, [])
        videos.append([*old_videos, *(video for video, _ in new)][-MAX_HISTORY:])
        actions.append([*old_actions, *(action for _, action in new)][-MAX_HISTORY:])
    for name, lists in (("watch_seq", videos), ("watch_action_seq", actions)):
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(lists, table.schema.field(name).type))
    return table


@dataclass(frozen=True)
class Job:
    """One command, and what it makes."""

    name: str
    arguments: list[str]
    makes: tuple[Path, ...]


@dataclass(frozen=True)
class SeedRuns:
    """All trainings of one seed, in a folder."""

    folder: Path
    data: Path
    days: Sequence[str]
    seed: int
    arms: Sequence[str]

    def jobs(self) -> Iterator[Job]:
        """Yields the commands in their order."""
        first = self._fresh("first", 0)
        yield first
        before = {"continued": first, "no new ids": first}
        for last in range(1, len(self.days) - 1):
            day = self.days[last]
            if "retrained" in self.arms:
                yield self._fresh(f"retrained-{day}", last)
            for arm in before:
                if arm in self.arms:
                    before[arm] = self._continued(arm, before[arm], last)
                    yield before[arm]
            yield self._scored(first, self.days[last + 1])

    def _fresh(self, name: str, last: int) -> Job:
        train = ",".join(f"day={day}" for day in self.days[: last + 1])
        settings = [
            *SETTINGS,
            f"data.root={self.data}",
            f"data.train=[{train}]",
            f"name={name}",
            f"train.seed={self.seed}",
        ]
        return self._training(name, ["--config", str(CONFIG)], last, settings)

    def _continued(self, arm: str, parent: Job, last: int) -> Job:
        name = f"{arm.replace(' ', '-')}-{self.days[last]}"
        settings = [f"data.train=[day={self.days[last]}]", f"name={name}"]
        settings += NO_NEW_IDS if arm == "no new ids" else []
        return self._training(name, ["--continue", str(parent.makes[0])], last, settings)

    def _training(self, name: str, begin: list[str], last: int, settings: list[str]) -> Job:
        run_dir = self.folder / name
        test = f"data.test=day={self.days[last + 1]}"
        return Job(name, ["train", *begin, "--run-dir", str(run_dir), *settings, test], (run_dir,))

    def _scored(self, first: Job, day: str) -> Job:
        out = self.folder / f"frozen-{day}"
        run_dir = str(first.makes[0])
        words = ["evaluate", "--run-dir", run_dir, "--predictions", str(out)]
        return Job(out.name, [*words, f"data.test=day={day}"], (out,))

    def run(self) -> None:
        """Runs what is not finished; the seconds of each command stand beside what it made.

        Raises:
            ValueError: a command failed; its log is named.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for job in self.jobs():
            mark = self.folder / f"{job.name}.json"
            if mark.exists():
                continue
            for path in job.makes:
                shutil.rmtree(path, ignore_errors=True)
            log = self.folder / f"{job.name}.log"
            began = time.perf_counter()
            with log.open("wb") as output:
                words = [sys.executable, "-m", "mail_torchrec", *job.arguments]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                done = subprocess.run(
                    words, stdout=output, stderr=output, env=environment, cwd=ROOT, check=False
                )
            if done.returncode:
                raise ValueError(f"{job.name}, seed {self.seed}, failed; '{log}' says why")
            seconds = round(time.perf_counter() - began, 2)
            click.echo(f"seed {self.seed}: {job.name}, {seconds} s", err=True)
            write_file(mark, json.dumps({"seconds": seconds}) + "\n")


@click.command(cls=ToolCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", type=Path, required=True)
@click.option("--out", type=Path, required=True)
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Seeds at a time."
)
@click.option("--arm", "arms", type=click.Choice(ARMS), multiple=True, help="By default all.")
@click.option("--page", type=Path, help="Markdown to write, and a picture.")
def main(
    data: Path, out: Path, seeds: int, jobs: int, arms: tuple[str, ...], page: Path | None
) -> None:
    """Train on KuaiRand's days one after the other, and compare."""
    out = out.absolute()
    days = prepare_days(data, out / "days")
    chosen = arms or ARMS
    runs = [
        SeedRuns(out / f"seed-{seed}", out / "days", days, seed, chosen)
        for seed in range(1, seeds + 1)
    ]
    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(one.run) for one in runs]:
            done.result()
    write_page([one.folder for one in runs], out / "days", days, chosen, page or out / "days.md")


if __name__ == "__main__":
    main()
