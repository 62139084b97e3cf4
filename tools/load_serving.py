"""Loads a real server for minutes while versions are replaced, and checks every score.

    python tools/load_serving.py --model models/kr --seconds 600 --out tools/results/serving.md

`--model` is what `mail-torchrec export` wrote, or a finished run, which is exported first. A server
of it (`mail-torchrec serve`) gets requests from other processes by tritonclient, over REST and
gRPC: the golden ones (new and old users, one without any value, one whose every id is unseen),
these users with one candidate and with hundreds, and encoded tensors of several users. Meanwhile
versions with other scores replace the one that serves; and halfway comes a bad one, whose files are
whole and whose scores are not those of its golden requests. Each response must have the scores of
the version that it names: the trainer's for golden requests, else those of ONNX Runtime in this
process. The exit code is 1 where any request failed or any score was wrong.
"""

import multiprocessing as mp
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click

from mail_torchrec.cli.options import LOCAL_PATH, OUTPUT_FILE
from mail_torchrec.inference.artifact_files import MANIFEST
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.utils.progress import progress_bar
from tools.load_clients import (
    NAME,
    PROTOCOLS,
    ClientReport,
    expected_scores,
    make_cases,
    run_client,
)
from tools.served import (
    Running,
    make_bad_version,
    make_version,
    percentiles,
    publish,
    running,
    wait_for,
)
from tools.tool_command import ToolCommand

BAD = "bad"


@dataclass
class VersionSwaps:
    """Versions to publish in the server's folder, and what happened."""

    root: Path
    folders: list[Path]
    bad: Path
    events: list[str] = field(default_factory=list)

    def swap(self, server: Running, number: int) -> None:
        """Publishes the next version and deletes the one before, waiting for the server."""
        version = ArtifactManifest.read(self.folders[number]).version
        start = time.monotonic()
        publish(self.folders[number], self.root / f"v{number}")
        wait_for(lambda: version in self.serving(server))
        loaded = time.monotonic() - start
        shutil.rmtree(self.root / f"v{number - 1}")
        wait_for(lambda: self.serving(server) == [version])
        self.events.append(
            f"version {version} published and serving after {loaded:.1f} s, the one before deleted"
        )

    def try_bad(self, server: Running) -> None:
        """Publishes a bad version, and waits until it is refused."""
        before = self.serving(server)
        publish(self.bad, self.root / BAD)
        wait_for(lambda: server.metrics().get('mail_version_loads_total{result="refused"}') == 1)
        if self.serving(server) != before:
            raise ValueError("a bad version was loaded")
        self.events.append("a bad version published, and refused")

    @staticmethod
    def serving(server: Running) -> list[str]:
        """Lists the loaded versions by the server's own metadata."""
        versions: list[str] = server.ask(f"/v2/models/{NAME}")[1]["versions"]
        return versions


def prepare(model: Path, folder: Path, num_swaps: int) -> VersionSwaps:
    """Makes the versions: the model itself, and copies with other tables."""
    root = folder / "root"
    root.mkdir()
    publish(model, root / "v0")
    folders = [model]
    for number in range(1, num_swaps + 1):
        folders.append(folder / f"version-{number}")
        created, factor = f"29{number:02}-01-01T00:00:00+00:00", 1 + 0.2 * number
        make_version(model, folders[-1], created=created, factor=factor)
    make_bad_version(model, folder / BAD, created="2999-01-01T00:00:00+00:00")
    return VersionSwaps(root, folders, folder / BAD)


def exported(path: Path, folder: Path) -> Path:
    """Returns the exported model; a run is exported first."""
    if (path / MANIFEST).exists():
        return path
    from mail_torchrec.export.command import ExportOptions, export
    from mail_torchrec.train.run_dir import RunDir

    export(ExportOptions(RunDir(path), folder / "exported"))
    return folder / "exported"


def load(
    versions: VersionSwaps, seconds: float, clients: int, server: Running
) -> tuple[list[ClientReport], dict[str, float]]:
    """Loads the server for so long.

    Returns:
        The clients' reports, and the server's memory in MiB at the start and the end.
    """
    cases, context = make_cases(versions.folders[0]), mp.get_context("spawn")
    expected = {
        ArtifactManifest.read(folder).version: expected_scores(folder, cases)
        for folder in versions.folders
    }
    stop, count, results = context.Event(), context.Value("q", 0), context.Queue()
    addresses = {"REST": server.http, "gRPC": server.grpc}
    shared = (versions.folders[0], cases, expected, stop, count, results)
    processes = [
        context.Process(
            target=run_client, args=(addresses[protocol], ClientReport(protocol), *shared)
        )
        for protocol in PROTOCOLS
        for _ in range(clients)
    ]
    for process in processes:
        process.start()
    wait_for(lambda: count.value >= 10 * len(processes))
    memory = {"at the start": resident(server)}
    try:
        run_swaps(versions, seconds, server, count)
    finally:
        stop.set()
    reports: list[ClientReport] = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    return reports, memory | {"at the end": resident(server)}


def run_swaps(versions: VersionSwaps, seconds: float, server: Running, count: Any) -> None:
    """Swaps versions at even distances, with the bad one halfway."""
    begin = time.monotonic()
    swaps = len(versions.folders) - 1
    actions: list[tuple[float, Callable[[], None]]] = [
        (n / (swaps + 1), partial(versions.swap, server, n)) for n in range(1, swaps + 1)
    ]
    actions.append((0.51, partial(versions.try_bad, server)))
    actions.sort(key=lambda action: action[0])
    with progress_bar(total=round(seconds), unit="s", desc="load", leave=True) as bar:
        while (passed := time.monotonic() - begin) < seconds:
            if actions and passed >= actions[0][0] * seconds:
                actions.pop(0)[1]()
            bar.update(min(round(passed), round(seconds)) - bar.n)
            bar.set_postfix_str(
                f"{count.value:,} requests, {len(versions.events)} of {swaps + 1} version changes"
            )
            time.sleep(0.2)
    while actions:  # of a load that was too short for them
        actions.pop(0)[1]()


def resident(server: Running) -> float:
    """Reads the server's resident memory in MiB."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def find_problems(
    reports: list[ClientReport], versions: VersionSwaps, metrics: dict[str, float]
) -> list[str]:
    """Lists failures, versions that never responded, and refused requests."""
    responses = sum((report.responses for report in reports), Counter[str]())
    problems = [failure for report in reports for failure in report.failures]
    problems += [
        f"version {folder} never responded"
        for folder in versions.folders
        if not responses[ArtifactManifest.read(folder).version]
    ]
    return problems + [
        f"{name} is {value:g}"
        for name, value in metrics.items()
        if name.startswith("mail_refused_total") and value
    ]


def format_report(
    reports: list[ClientReport],
    problems: list[str],
    versions: VersionSwaps,
    memory: dict[str, float],
    seconds: float,
    head: str,
) -> str:
    """Formats the result as Markdown."""
    total = sum(len(report.seconds) for report in reports)
    planned = "" if problems else " Versions as planned."
    lines = ["# Load: a server whose versions are replaced", "", head, ""]
    lines += [f"**{total:,} requests, {len(problems)} failed or wrong.**{planned}", ""]
    lines += _latency_table(reports, seconds)
    lines += ["", "| version | responses |", "| --- | --: |"]
    responses = sum((report.responses for report in reports), Counter[str]())
    for folder in versions.folders:
        version = ArtifactManifest.read(folder).version
        lines.append(f"| {version} | {responses[version]:,} |")
    lines += ["", *(f"- {event}" for event in versions.events)]
    lines += [f"- the server's memory {when}: {mib:,.0f} MiB" for when, mib in memory.items()]
    if problems:
        lines += ["", "## Problems", "", *(f"- {problem}" for problem in problems[:50])]
    return "\n".join(lines) + "\n"


def _latency_table(reports: list[ClientReport], seconds: float) -> list[str]:
    header = "| | requests | requests/s | candidates/s | p50 | p90 | p99 | p99.9 | max |"
    lines = [header, "| --- |" + " --: |" * 8]
    for protocol in PROTOCOLS:
        clients = [report for report in reports if report.protocol == protocol]
        times = [second for report in clients for second in report.seconds] or [float("nan")]
        points = " | ".join(f"{value:,.1f} ms" for value in percentiles(times).values())
        num_requests = sum(len(report.seconds) for report in clients)
        candidates = sum(report.candidates for report in clients)
        lines.append(
            f"| {protocol} | {num_requests:,} | {num_requests / seconds:,.1f} | "
            f"{candidates / seconds:,.0f} | {points} |"
        )
    return lines


@click.command(
    cls=ToolCommand, help=(__doc__ or "").replace("\n\n    python", "\n\n\b\n    python")
)
@click.option(
    "--model",
    type=LOCAL_PATH,
    required=True,
    help="An exported model, or a finished run.",
)
@click.option("--seconds", type=click.FloatRange(1), default=600.0, show_default=True)
@click.option(
    "--swaps",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="Versions that replace the one before.",
)
@click.option(
    "--clients",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes for each protocol.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads of the server's ONNX Runtime.")
@click.option("--note", default="", help="What else the machine was busy with, for the report.")
@click.option("--out", type=OUTPUT_FILE, required=True, help="The result, Markdown.")
def main(
    model: Path, seconds: float, swaps: int, clients: int, threads: int | None, note: str, out: Path
) -> None:
    """Loads the server and writes the result."""
    options = [] if threads is None else ["--threads", str(threads)]
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        versions = prepare(exported(model, Path(folder)), Path(folder), swaps)
        tower = ArtifactManifest.read(versions.folders[0]).tower
        log = Path(folder) / "server.log"
        with running(versions.root, log, "--name", NAME, "--poll", "1", *options) as server:
            reports, memory = load(versions, seconds, clients, server)
            problems = find_problems(reports, versions, server.metrics())
        command = (
            f"python tools/load_serving.py --model {model} --seconds {seconds:g} --swaps {swaps} "
            f"--clients {clients} --out {out}"
        )
        head = (
            f"`{command}` on {os.cpu_count()} cores, clients included; ranking tower `{tower}`. "
            f"{note}"
        ).strip()
        text = format_report(reports, problems, versions, memory, seconds, head)
    out.write_text(text)
    click.echo(text)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
