"""Loads a real server for minutes while versions are switched, and asserts that no request fails and every score is right.

    python tools/load_serving.py --model models/kr --seconds 600 --out tools/results/serving.md

`--model` is what `mail-torchrec export` wrote, or a finished run, which is exported first. A server
of it (`mail-torchrec serve`) gets requests from other processes by tritonclient, over REST and
gRPC: the golden ones (new and old users, one of whom nothing is known, one whose every id is
unseen), these users with one candidate and with hundreds, and encoded tensors of several users.
Meanwhile versions with other scores are put beside the one that serves, which is taken away then;
and halfway comes a bad one, whose files are whole and whose scores are not those of its golden
requests. Each answer must have the scores of the version that it names: those that the trainer
gave, for golden requests, else those of ONNX Runtime in this process. The exit code is 1 where
anything was not as it should be.
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
import numpy as np
import tritonclient.grpc
import tritonclient.http
from tqdm import tqdm

from mail_torchrec.inference.manifest import MANIFEST, Manifest, read_golden
from mail_torchrec.inference.requests import Request
from mail_torchrec.inference.scorer import Scorer
from tools.served import (
    Running,
    make_liar,
    make_version,
    percentiles,
    put,
    raw,
    running,
    tensors,
    wait_for,
)

NAME, BAD = "load", "bad"
PROTOCOLS = {"REST": tritonclient.http, "gRPC": tritonclient.grpc}
NUM_CANDIDATES = (1, 20, 100, 500)
TOLERANCE = 1e-5
Expected = dict[str, list[Any]]
"""Version -> the probabilities of each case, one array for each output."""


@dataclass(frozen=True)
class Case:
    """What is asked: requests sent raw, or several of them encoded in one call."""

    requests: list[Request]
    is_encoded: bool = False

    @property
    def num_candidates(self) -> int:
        """Of all users."""
        return sum(len(request.candidates) for request in self.requests)


@dataclass
class Told:
    """What one client saw."""

    protocol: str
    seconds: list[float] = field(default_factory=list)
    candidates: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def cases_of(folder: Path) -> list[Case]:
    """The mix: golden requests, their users with more candidates, several users at once."""
    requests = [request for request, _ in read_golden(folder)]
    pool = [candidate for request in requests for candidate in request.candidates]
    cases = [Case([request]) for request in requests]
    for i, request in enumerate(requests):
        count = NUM_CANDIDATES[i % len(NUM_CANDIDATES)]
        cases.append(
            Case([Request(request.user, [pool[(i + j) % len(pool)] for j in range(count)])])
        )
    return [*cases, Case(requests[:2], is_encoded=True), Case(requests, is_encoded=True)]


def expected_of(folder: Path, cases: list[Case]) -> list[Any]:
    """The scores of each case by a version: golden ones as the trainer gave them, the others by ONNX Runtime here."""
    scorer, golden = (
        Scorer(folder, threads=1),
        [list(scores.values()) for _, scores in read_golden(folder)],
    )
    if (difference := scorer.difference()) > TOLERANCE:
        raise ValueError(
            f"'{folder}' should have its golden scores, they differ by {difference:.2g}"
        )
    scores = [[np.array(scores) for scores in of_request] for of_request in golden]
    return scores + [
        list(scorer.run(scorer.encode(case.requests)).values()) for case in cases[len(scores) :]
    ]


def client(
    address: str,
    told: Told,
    model: Path,
    cases: list[Case],
    expected: Expected,
    stop: Any,
    count: Any,
    out: Any,
) -> None:
    """A process that asks one thing after another until it is told to stop."""
    library, scorer = PROTOCOLS[told.protocol], Scorer(model, threads=1, verify=False)
    order = np.random.default_rng(os.getpid())
    with library.InferenceServerClient(address) as to:
        while not stop.is_set():
            i = int(order.integers(len(cases)))
            inputs = (
                tensors(library, scorer.encode(cases[i].requests))
                if cases[i].is_encoded
                else raw(library, cases[i].requests[0])
            )
            ask(to, inputs, i, told, expected, scorer.probabilities)
            told.candidates += cases[i].num_candidates
            with count.get_lock():
                count.value += 1
    out.put(told)


def ask(
    to: Any, inputs: list[Any], i: int, told: Told, expected: Expected, names: list[str]
) -> None:
    """One request, timed and compared."""
    start = time.perf_counter()
    try:
        result = to.infer(NAME, inputs)
        told.seconds.append(time.perf_counter() - start)
        response = result.get_response()
        version = (
            response["model_version"] if isinstance(response, dict) else response.model_version
        )
        difference = max(
            float(np.abs(result.as_numpy(name) - wanted).max())
            for name, wanted in zip(names, expected[version][i], strict=True)
        )
    except Exception as error:  # whatever it is, it failed
        told.failures.append(f"{told.protocol}, case {i}: {type(error).__name__}: {error}")
        return
    told.answered[version] += 1
    if not difference <= TOLERANCE:
        told.failures.append(
            f"{told.protocol}, case {i}: version {version} is {difference:.2g} away from its scores"
        )


@dataclass
class Versions:
    """Folders to be put before the server, and what came of it."""

    root: Path
    made: list[Path]
    bad: Path
    events: list[str] = field(default_factory=list)

    def switch(self, server: Running, number: int) -> None:
        """Puts the next version there, waits until it serves, takes the one before away, waits until it is given up."""
        version = Manifest.read(self.made[number]).version
        start = time.monotonic()
        put(self.made[number], self.root / f"v{number}")
        wait_for(lambda: version in self.serving(server))
        loaded = time.monotonic() - start
        shutil.rmtree(self.root / f"v{number - 1}")
        wait_for(lambda: self.serving(server) == [version])
        self.events.append(
            f"version {version} put there and serving after {loaded:.1f} s, the one before taken "
            "away"
        )

    def try_bad(self, server: Running) -> None:
        """Puts a bad version there, and waits until it is refused."""
        before = self.serving(server)
        put(self.bad, self.root / BAD)
        wait_for(lambda: server.figures().get('mail_version_loads_total{result="refused"}') == 1)
        if self.serving(server) != before:
            raise ValueError("a bad version was taken in")
        self.events.append("a bad version put there, and refused")

    @staticmethod
    def serving(server: Running) -> list[str]:
        """Versions by the server's own metadata."""
        versions: list[str] = server.ask(f"/v2/models/{NAME}")[1]["versions"]
        return versions


def prepare(model: Path, folder: Path, swaps: int) -> Versions:
    """The versions: the model itself, and copies with other tables."""
    root = folder / "root"
    root.mkdir()
    put(model, root / "v0")
    made = [model]
    for number in range(1, swaps + 1):
        made.append(folder / f"made-{number}")
        make_version(
            model, made[-1], created=f"29{number:02}-01-01T00:00:00+00:00", factor=1 + 0.2 * number
        )
    make_liar(model, folder / "bad", created="2999-01-01T00:00:00+00:00")
    return Versions(root, made, folder / "bad")


def exported(path: Path, folder: Path) -> Path:
    """The exported model; a run is exported first."""
    if (path / MANIFEST).exists():
        return path
    from mail_torchrec.export.command import Order, export
    from mail_torchrec.train.run_dir import RunDir

    export(Order(RunDir(path), folder / "exported"))
    return folder / "exported"


def load(
    versions: Versions, seconds: float, clients: int, server: Running
) -> tuple[list[Told], dict[str, float]]:
    """Loads the server for so long; what the clients saw, and the server's memory in MiB on the way."""
    cases, context = cases_of(versions.made[0]), mp.get_context("spawn")
    expected = {
        Manifest.read(folder).version: expected_of(folder, cases) for folder in versions.made
    }
    stop, count, out = context.Event(), context.Value("q", 0), context.Queue()
    addresses = {"REST": server.http, "gRPC": server.grpc}
    processes = [
        context.Process(
            target=client,
            args=(
                addresses[told.protocol],
                told,
                versions.made[0],
                cases,
                expected,
                stop,
                count,
                out,
            ),
        )
        for told in [Told(protocol) for protocol in PROTOCOLS for _ in range(clients)]
    ]
    for process in processes:
        process.start()
    wait_for(lambda: count.value >= 10 * len(processes))
    memory = {"when it began": resident(server)}
    try:
        act(versions, seconds, server, count)
    finally:
        stop.set()
    found: list[Told] = [out.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    return found, memory | {"at the end": resident(server)}


def act(versions: Versions, seconds: float, server: Running, count: Any) -> None:
    """Waits, and switches versions at even distances, with the bad one halfway."""
    begin = time.monotonic()
    swaps = len(versions.made) - 1
    actions: list[tuple[float, Callable[[], None]]] = [
        (n / (swaps + 1), partial(versions.switch, server, n)) for n in range(1, swaps + 1)
    ]
    actions = sorted(
        [*actions, (0.51, partial(versions.try_bad, server))], key=lambda action: action[0]
    )
    with tqdm(total=round(seconds), unit="s", desc="load") as bar:
        while (passed := time.monotonic() - begin) < seconds:
            if actions and passed >= actions[0][0] * seconds:
                actions.pop(0)[1]()
            bar.update(min(round(passed), round(seconds)) - bar.n)
            bar.set_postfix_str(
                f"{count.value:,} requests, {len(versions.events)} of {swaps + 1} changes of "
                "versions"
            )
            time.sleep(0.2)
    while actions:  # a load so short that they did not fit
        actions.pop(0)[1]()


def resident(server: Running) -> float:
    """The server's memory in MiB."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def problems_of(found: list[Told], versions: Versions, figures: dict[str, float]) -> list[str]:
    """What was not as it should be."""
    answered = sum((told.answered for told in found), Counter[str]())
    problems = [failure for told in found for failure in told.failures]
    problems += [
        f"version {folder} never answered"
        for folder in versions.made
        if not answered[Manifest.read(folder).version]
    ]
    return problems + [
        f"{name} is {value:g}"
        for name, value in figures.items()
        if name.startswith("mail_refused_total") and value
    ]


def report(
    found: list[Told],
    problems: list[str],
    versions: Versions,
    memory: dict[str, float],
    seconds: float,
    head: str,
) -> str:
    """The result as Markdown."""
    lines = ["# Load: a server whose versions are switched", "", head, ""]
    total = sum(len(told.seconds) for told in found)
    verdict = f"**{total:,} requests, {len(problems)} failed or wrong.**" + (
        " Versions as planned." if not problems else ""
    )
    lines += [
        verdict,
        "",
        "| | requests | requests/s | candidates/s | p50 | p90 | p99 | p99.9 | max |",
        "| --- |" + " --: |" * 8,
    ]
    for protocol in PROTOCOLS:
        clients = [told for told in found if told.protocol == protocol]
        times = [second for told in clients for second in told.seconds]
        points = " | ".join(
            f"{value:,.1f} ms" for value in percentiles(times or [float("nan")]).values()
        )
        candidates = sum(told.candidates for told in clients)
        lines.append(
            f"| {protocol} | {len(times):,} | {len(times) / seconds:,.1f} | "
            f"{candidates / seconds:,.0f} | {points} |"
        )
    lines += ["", "| version | answers |", "| --- | --: |"]
    answered = sum((told.answered for told in found), Counter[str]())
    lines += [
        f"| {Manifest.read(folder).version} | {answered[Manifest.read(folder).version]:,} |"
        for folder in versions.made
    ]
    lines += ["", *(f"- {event}" for event in versions.events)]
    lines += [f"- the server's memory {when}: {mib:,.0f} MiB" for when, mib in memory.items()]
    return (
        "\n".join(
            [
                *lines,
                *(["", "## Problems", ""] if problems else []),
                *(f"- {problem}" for problem in problems[:50]),
            ]
        )
        + "\n"
    )


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))
@click.option(
    "--model",
    type=click.Path(path_type=Path, exists=True),
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
@click.option("--threads", type=click.IntRange(1), help="Of the server's ONNX Runtime.")
@click.option("--note", default="", help="What else the machine was busy with, for the report.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The result, Markdown.")
def main(
    model: Path, seconds: float, swaps: int, clients: int, threads: int | None, note: str, out: Path
) -> None:
    """Loads, switches, compares, and writes what came of it."""
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        log, options = (
            Path(folder) / "server.log",
            [] if threads is None else ["--threads", str(threads)],
        )
        versions = prepare(exported(model, Path(folder)), Path(folder), swaps)
        tower = Manifest.read(versions.made[0]).tower
        with running(versions.root, log, "--name", NAME, "--poll", "1", *options) as server:
            found, memory = load(versions, seconds, clients, server)
            problems = problems_of(found, versions, server.figures())
        shown = f"python tools/load_serving.py --model {model} --seconds {seconds:g} --swaps {swaps} --clients {clients} --out {out}"
        head = f"`{shown}` on {os.cpu_count()} cores, clients included; ranking tower `{tower}`. {note}".strip()
        text = report(found, problems, versions, memory, seconds, head)
    out.write_text(text)
    click.echo(text)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
