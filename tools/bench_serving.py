"""How long one user with many candidates takes: the server end to end, the exported model, the trainer's own in eager PyTorch; in one run.

    python tools/bench_serving.py --run-dir runs/kr --candidates 500

Exports a finished run, starts a server of it and asks it by tritonclient, and scores the same rows
in this process: by ONNX Runtime, by the trainer's model on a batch that its reader has made
already, and by the plain twin that was exported. All take turns, round after round, so that a busy
machine is busy for all. Prints medians as Markdown.
"""

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch
import tritonclient.grpc
import tritonclient.http
from tqdm import tqdm

from mail_torchrec.export.command import Order, export
from mail_torchrec.export.compact_tables import CompactTables
from mail_torchrec.export.finished_run import Run
from mail_torchrec.export.inference_model import Twin
from mail_torchrec.export.parity import golden_batch
from mail_torchrec.export.table_files import Table
from mail_torchrec.inference.manifest import Manifest, read_golden
from mail_torchrec.inference.requests import Request, model_inputs
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.train.run_dir import RunDir
from tools.served import Running, raw, running, tensors

NAME, EAGER = "bench", "eager: the trainer's model"
LIBRARIES = {"REST": tritonclient.http, "gRPC": tritonclient.grpc}
# seconds; idle threads of PyTorch's pool spin for a while, and would do so on the next one's cores
_PAUSE = 0.05
Way = Callable[[], Any]
"""Scores the rows once and returns their ``pctr``."""


def requests_of(folder: Path, num_candidates: int) -> dict[str, Request]:
    """A new user, and the one with the longest history."""
    golden = [request for request, _ in read_golden(folder)]
    pool = [candidate for request in golden for candidate in request.candidates]
    candidates = [pool[i % len(pool)] for i in range(num_candidates)]
    sequence = next(iter(Manifest.read(folder).schema_.sequences))
    column = Manifest.read(folder).schema_.file_column(sequence)
    by_length = sorted(golden, key=lambda request: len(request.user[column]))
    return {
        kind: Request(request.user, candidates)
        for kind, request in (("new", by_length[0]), ("old", by_length[-1]))
    }


def eager(run: Run, request: Request, manifest: Manifest, folder: Path) -> tuple[Way, Way]:
    """The trainer's model, and the twin, both with everything in memory."""
    schema = run.config.schema_
    batch = golden_batch(
        [request], manifest.types, run.config, run.encoders, run.feature_tables, folder
    )
    compact = CompactTables(schema, run.feature_tables, run.encoders.num_rows, batch)
    files = run.write_tables(folder / "tables", "float32", also=compact.take)
    model, batch = compact.model(run.towers)
    inputs = model_inputs(schema, run.encoders.num_rows)
    tables = {name: Table(parts) for name, parts in files.items()}
    twin = Twin(
        run.towers,
        tables,
        inputs,
        schema,
        run.feature_tables,
        run.config.data.new_user_max_behaviours,
    ).eval()
    encoded = Scorer(folder.parent / "model", verify=False).encode([request])
    values = [torch.from_numpy(encoded[spec.name]) for spec in inputs]
    return lambda: torch.sigmoid(model(batch)[1].logits_B).numpy(), lambda: twin.outputs(*values)[
        "pctr"
    ].numpy()


def served(server: Running, request: Request, scorer: Scorer) -> dict[str, Way]:
    """The server, by both protocols, with raw values and with encoded tensors."""
    ways: dict[str, Way] = {}
    encoded = scorer.encode([request])
    for protocol, library in LIBRARIES.items():
        to = library.InferenceServerClient(server.http if protocol == "REST" else server.grpc)
        ways[f"server, {protocol}, raw values"] = partial(
            _asked, to, partial(raw, library, request)
        )
        ways[f"server, {protocol}, encoded tensors"] = partial(
            _asked, to, partial(tensors, library, encoded)
        )
    return ways


def _pctr(score: Callable[[Any], dict[str, Any]], asked: Any) -> Any:
    return score(asked)["pctr"]


def _asked(to: Any, inputs: Callable[[], list[Any]]) -> Any:
    return to.infer(NAME, inputs()).as_numpy("pctr")


def measure(ways: dict[str, Way], repeats: int, label: str) -> dict[str, float]:
    """Medians in milliseconds; the ways take turns."""
    expected = ways[EAGER]()
    for name, way in ways.items():
        if not np.abs(way() - expected).max() <= 1e-5:
            raise ValueError(f"'{name}' should score as the trainer's model does")
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in tqdm(range(repeats), desc=label, unit="round"):
        for name, way in ways.items():
            time.sleep(_PAUSE)
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) * 1e3 for name, seconds in times.items()}


@torch.no_grad()
def compare(
    run_dir: Path, num_candidates: int, repeats: int, folder: Path
) -> dict[str, dict[str, float]]:
    """Kind of user -> way -> milliseconds."""
    model, found = folder / "model", {}
    manifest, run, scorer = (
        export(Order(RunDir(run_dir), model)),
        Run.open(RunDir(run_dir)),
        Scorer(model),
    )
    with running(model, folder / "log", "--name", NAME) as server:
        for kind, request in requests_of(model, num_candidates).items():
            (folder / kind).mkdir()
            trained, twin = eager(run, request, manifest, folder / kind)
            encoded = scorer.encode([request])
            ways: dict[str, Way] = {
                EAGER: trained,
                "eager: the twin": twin,
                "ONNX Runtime in this process": partial(_pctr, scorer.run, encoded),
                "the same, from raw values": partial(_pctr, scorer.score, request),
                **served(server, request, scorer),
            }
            found[kind] = measure(ways, repeats, f"{kind} user")
    return found


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))
@click.option(
    "--run-dir", type=click.Path(path_type=Path, exists=True), required=True, help="A finished run."
)
@click.option("--candidates", type=click.IntRange(1), default=500, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=100, show_default=True, help="Rounds.")
def main(run_dir: Path, candidates: int, repeats: int) -> None:
    """Measures and prints."""
    with TemporaryDirectory(prefix="bench-") as folder:
        found = compare(run_dir, candidates, repeats, Path(folder))
    click.echo(
        f"One user, {candidates} candidates, {os.cpu_count()} cores, medians of {repeats} rounds "
        "in ms, and the share of eager's\n"
    )
    click.echo(
        "| | "
        + " | ".join(f"{kind} user | " for kind in found)
        + " |\n| --- |"
        + " --: | --: |" * len(found)
    )
    for way in found["new"]:
        cells = " | ".join(
            f"{times[way]:.1f} | {times[way] / times[EAGER]:.2f}" for times in found.values()
        )
        click.echo(f"| {way} | {cells} |")


if __name__ == "__main__":
    main()
