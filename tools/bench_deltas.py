"""Publishes delta after delta to a server under load, and checks every score.

    python tools/bench_deltas.py --deltas 100 --out FOLDER --report tools/results/deltas.md

First the chain is made, and kept in FOLDER for another call: days of a synthetic world, trained one
after the other (`train --continue`), each exported as a delta of the one before, and as a full
export without spare rows, whose scores are written down. Then a server follows a published folder
and gets requests from other processes by tritonclient, over REST and gRPC, while the deltas are
published one by one, the next as soon as the server names the one before. The exit code is 1 where
any request failed or was refused, or any score was not exactly the full export's.
"""

import multiprocessing as mp
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from mail_torchrec.cli.options import OUTPUT_DIR, OUTPUT_FILE
from mail_torchrec.publishing.command import publish
from mail_torchrec.reporting.markdown import markdown_table
from mail_torchrec.utils.progress import progress_bar
from tools.delta_chain import ChainLink, DeltaChain
from tools.load_clients import NAME, PROTOCOLS, ClientReport, run_client
from tools.served import Running, percentiles, running, wait_for
from tools.tool_command import ToolCommand

_PHASES = ("before", "during", "after")
_POLL = 0.5


class Load:
    """Clients of a server, each a process, and the times at which phases of the load began.

    Args:
        chain: its calls, and the scores that they should get.
        links: days of the chain.
        server: the server.
    """

    def __init__(self, chain: DeltaChain, links: Sequence[ChainLink], server: Running) -> None:
        context = mp.get_context("spawn")
        cases = chain.cases()
        expected = {link.version: chain.scores(link.number) for link in links}
        self._stop, self._results = context.Event(), context.Queue()
        count = context.Value("q", 0)
        # Kept: a process that starts late still opens their semaphores.
        self._shared = (chain.item(0), cases, expected, self._stop, count, self._results)
        addresses = {"REST": server.http, "gRPC": server.grpc}
        self._processes = [
            context.Process(  # a daemon: where this process fails, its clients end
                target=run_client,
                args=(addresses[name], ClientReport(name), *self._shared),
                daemon=True,
            )
            for name in PROTOCOLS
        ]
        for process in self._processes:
            process.start()
        wait_for(lambda: count.value >= 10 * len(self._processes))
        self.starts: list[float] = []

    def begin_phase(self) -> None:
        """Begins the next phase."""
        self.starts.append(time.perf_counter())

    def end(self) -> list[ClientReport]:
        """Ends the clients, and returns what they saw."""
        self._stop.set()
        reports = [self._results.get(timeout=60) for _ in self._processes]
        for process in self._processes:
            process.join(60)
        return reports

    def phases(self, reports: Sequence[ClientReport]) -> dict[str, list[float]]:
        """Sorts the latencies of the responses by phase."""
        found: dict[str, list[float]] = {name: [] for name in _PHASES}
        for report in reports:
            for end, seconds in zip(report.ends, report.seconds, strict=True):
                begun = sum(start <= end for start in self.starts)
                if begun:
                    found[_PHASES[begun - 1]].append(seconds)
        return found


def serve_chain(
    chain: DeltaChain, links: Sequence[ChainLink], place: str, seconds: float, folder: Path
) -> tuple[list[ClientReport], dict[str, list[float]], list[float]]:
    """Publishes the chain to a server under load.

    Returns:
        The clients' reports, latencies by phase, and the time of each delta from the beginning of
        its publication until the server says that it serves it.
    """
    publish(chain.item(0), place)
    options = ("--name", NAME, "--threads", "1", "--poll", str(_POLL))
    with running(place, folder / "log", *options) as server:
        load = Load(chain, links, server)
        load.begin_phase()
        time.sleep(seconds)
        load.begin_phase()
        served = []
        with progress_bar(links[1:], desc="deltas", unit="delta", leave=True) as bar:
            for link in bar:
                start = time.perf_counter()
                publish(chain.item(link.number), place)
                wait_for(partial(_is_loaded, server, link.version))
                served.append(time.perf_counter() - start)
        load.begin_phase()
        time.sleep(seconds)
        reports = load.end()
        refused = {
            name: value
            for name, value in server.metrics().items()
            if name.startswith(("mail_refused_total", "mail_version_loads_total")) and value
        }
    unwanted = [f"{name} is {value:g}" for name, value in refused.items() if "loaded" not in name]
    reports[0].failures.extend(unwanted)
    return reports, load.phases(reports), served


def _is_loaded(server: Running, version: str) -> bool:
    """Tells if a version is loaded, by the server's own metadata."""
    return version in server.ask(f"/v2/models/{NAME}")[1]["versions"]


def find_problems(reports: Sequence[ClientReport], links: Sequence[ChainLink]) -> list[str]:
    """Lists failures, and scores that are not those of the full exports."""
    responses = sum((report.responses for report in reports), Counter[str]())
    problems = [failure for report in reports for failure in report.failures]
    if not responses[links[-1].version]:
        problems.append("the last version never responded")
    return problems + [
        f"{report.protocol}: a score is {report.max_difference:.2g} away from the full export's"
        for report in reports
        if report.max_difference
    ]


def format_report(
    head: str,
    links: Sequence[ChainLink],
    reports: Sequence[ClientReport],
    phases: dict[str, list[float]],
    served: Sequence[float],
    problems: Sequence[str],
) -> str:
    """Formats the result as Markdown."""
    deltas = links[1:]
    total = sum(len(report.seconds) for report in reports)
    responses = sum((report.responses for report in reports), Counter[str]())
    seen = sum(bool(responses[link.version]) for link in links)
    largest = max(report.max_difference for report in reports)
    exports = [link.export_seconds for link in deltas]
    rows = [
        ("bytes of a full export", *_spread([link.full_bytes for link in deltas])),
        ("bytes of a delta", *_spread([link.num_bytes for link in deltas])),
        ("delta / full export", *_spread([d.num_bytes / d.full_bytes for d in deltas])),
        ("seconds of a full export", *_spread([link.full_seconds for link in deltas])),
        ("seconds of a delta's export", *_spread(exports)),
        ("seconds from `publish` to served", *_spread(served)),
        (
            "seconds from checkpoint written to served",
            *_spread([a + b for a, b in zip(exports, served, strict=True)]),
        ),
    ]
    lines = ["# Deltas into a server under load", "", head, ""]
    lines.append(
        f"**{len(deltas)} deltas, {total:,} requests, {len(problems)} failed or wrong.** Largest "
        f"difference of a score from the full export's of its version: {largest:g}; {seen} of "
        f"{len(links)} versions were seen by the clients."
    )
    lines += ["", markdown_table(["", "median", "least", "most"], rows), ""]
    lines += [
        "A checkpoint is served after its export, the upload, a poll "
        f"(every {_POLL:g} s), the download, `apply` with its checks, and the load with its own. "
        "Exports were made before the load, by processes that had their imports.",
        "",
    ]
    names = list(percentiles([1.0]))
    table = [
        (phase, f"{len(times):,}", *(f"{ms:,.1f} ms" for ms in percentiles(times).values()))
        for phase, times in phases.items()
    ]
    lines.append(markdown_table(["deltas", "requests", *names], table))
    if problems:
        lines += ["", "## Problems", "", *(f"- {problem}" for problem in problems[:50])]
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> tuple[str, str, str]:
    """Formats the median, the least and the most."""
    form = "{:,.0f}" if max(values) > 1000 else "{:.3g}"
    found = (statistics.median(values), min(values), max(values))
    return tuple(form.format(value) for value in found)  # type: ignore[return-value]


@click.command(
    cls=ToolCommand, help=(__doc__ or "").replace("\n\n    python", "\n\n\b\n    python")
)
@click.option("--deltas", type=click.IntRange(1), default=100, show_default=True)
@click.option("--users", type=int, default=1000, show_default=True, help="Users at any time.")
@click.option("--items", type=int, default=20_000, show_default=True, help="Items at any time.")
@click.option("--rows", type=int, default=200_000, show_default=True, help="Of the item table.")
@click.option("--spare", default=0.5, show_default=True, help="Share of spare rows.")
@click.option(
    "--seconds", default=30.0, show_default=True, help="Load before the deltas, and after them."
)
@click.option("--to", help="Where to publish: a folder or URI; by default a temporary folder.")
@click.option("--note", default="", help="What else the machine was busy with, for the report.")
@click.option("--out", type=OUTPUT_DIR, required=True, help="Folder of the chain.")
@click.option("--report", type=OUTPUT_FILE, required=True, help="The result, Markdown.")
def main(
    deltas: int, seconds: float, to: str | None, note: str, out: Path, report: Path, **sizes: Any
) -> None:
    """Makes the chain, serves it and writes the result."""
    chain = DeltaChain(out, deltas, **sizes)
    days = progress_bar(chain.make(), desc="chain", unit="day", total=deltas + 1, leave=True)
    links = list(days)
    with tempfile.TemporaryDirectory(prefix="deltas-") as name:
        folder = Path(name)
        found = serve_chain(chain, links, to or str(folder / "published"), seconds, folder)
    reports, phases, served = found
    problems = find_problems(reports, links)
    head = (
        f"`python tools/bench_deltas.py --deltas {deltas} --out {out}` on {os.cpu_count()} cores, "
        f"clients included: {sizes['users']:,} users and {sizes['items']:,} items at any time, "
        f"{sizes['rows']:,} rows of the item table. {note}"
    ).strip()
    text = format_report(head, links, reports, phases, served, problems)
    report.write_text(text)
    click.echo(text)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
