"""Measures how long one user with many candidates takes, from eager PyTorch to the server.

    python tools/bench_serving.py --run-dir runs/kr --candidates 500

Exports a finished run, starts a server of it and asks it by tritonclient, and scores the same rows
in this process: by ONNX Runtime, by the trainer's model on a batch that its reader has made
already, and by the inference model that was exported. All take turns, round after round, so that a
busy machine is busy for all. Prints medians as Markdown.
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

from mail_torchrec.cli.options import LOCAL_PATH
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.export.compact_tables import CompactTables
from mail_torchrec.export.finished_run import FinishedRun
from mail_torchrec.export.inference_model import InferenceModel
from mail_torchrec.export.parity import golden_batch
from mail_torchrec.export.table_files import GatherTable
from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.requests import Request, input_specs
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.progress import progress_bar
from tools.served import Running, raw, running, tensors
from tools.tool_command import ToolCommand

NAME, EAGER = "bench", "eager: the trainer's model"
LIBRARIES = {"REST": tritonclient.http, "gRPC": tritonclient.grpc}
# seconds; idle threads of PyTorch's pool spin for a while, and would do so on the next one's cores
_PAUSE = 0.05
Score = Callable[[], Any]
"""Scores the candidates once and returns their ``pctr``, [candidates]."""


def requests_of(folder: Path, num_candidates: int) -> dict[str, Request]:
    """Builds requests of a new user, and of the user with the longest history."""
    golden = [request for request, _ in read_golden(folder)]
    pool = [candidate for request in golden for candidate in request.candidates]
    candidates = [pool[i % len(pool)] for i in range(num_candidates)]
    sequence = next(iter(ArtifactManifest.read(folder).schema_.sequences))
    column = ArtifactManifest.read(folder).schema_.file_column(sequence)
    by_length = sorted(golden, key=lambda request: len(request.user[column]))
    return {
        kind: Request(request.user, candidates)
        for kind, request in (("new", by_length[0]), ("old", by_length[-1]))
    }


def eager_scorers(
    run: FinishedRun, request: Request, manifest: ArtifactManifest, folder: Path
) -> tuple[Score, Score]:
    """Builds the trainer's model and the inference model, both with everything in memory."""
    schema, num_rows = run.config.schema_, run.encoders.num_rows
    batch = golden_batch(
        [request], manifest.value_types, run.config, run.encoders, run.feature_tables, folder
    )
    compact = CompactTables(schema, run.feature_tables, num_rows, batch)
    files = run.write_tables(folder / "tables", "float32", compact.copy_shard)
    model, batch = compact.model(run.towers)
    inputs = input_specs(schema, num_rows)
    inference_model = InferenceModel(
        run.towers,
        {name: GatherTable(parts) for name, parts in files.items()},
        inputs,
        schema,
        run.feature_tables,
        run.config.data.new_user_max_behaviours,
    ).eval()
    encoded = Scorer(folder.parent / "model", verify=False).encode([request])
    values = [torch.from_numpy(encoded[spec.name]) for spec in inputs]
    return (
        lambda: torch.sigmoid(model(batch)[1].logits_B).numpy(),
        lambda: inference_model.outputs(*values)["pctr"].numpy(),
    )


def served(server: Running, request: Request, scorer: Scorer) -> dict[str, Score]:
    """Builds calls of the server, by both protocols, with raw values and with encoded tensors."""
    scorers: dict[str, Score] = {}
    encoded = scorer.encode([request])
    for protocol, library in LIBRARIES.items():
        to = library.InferenceServerClient(server.http if protocol == "REST" else server.grpc)
        scorers[f"server, {protocol}, raw values"] = partial(
            _infer, to, partial(raw, library, request)
        )
        scorers[f"server, {protocol}, encoded tensors"] = partial(
            _infer, to, partial(tensors, library, encoded)
        )
    return scorers


def _pctr(score: Callable[[Any], dict[str, Any]], asked: Any) -> Any:
    return score(asked)["pctr"]


def _infer(to: Any, inputs: Callable[[], list[Any]]) -> Any:
    return to.infer(NAME, inputs()).as_numpy("pctr")


def measure(scorers: dict[str, Score], repeats: int, label: str) -> dict[str, float]:
    """Measures medians in milliseconds; the scorers take turns."""
    expected = scorers[EAGER]()
    for name, score in scorers.items():
        if not np.abs(score() - expected).max() <= 1e-5:
            raise ValueError(f"'{name}' should score as the trainer's model does")
    times: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in progress_bar(range(repeats), desc=label, unit="round"):
        for name, score in scorers.items():
            time.sleep(_PAUSE)
            start = time.perf_counter()
            score()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) * 1e3 for name, seconds in times.items()}


@torch.no_grad()
def compare(
    run_dir: Path, num_candidates: int, repeats: int, folder: Path
) -> dict[str, dict[str, float]]:
    """Measures milliseconds by kind of user and scorer."""
    model, found = folder / "model", {}
    manifest, run, scorer = (
        export(ExportOptions(RunDir(run_dir), model)),
        FinishedRun.open(RunDir(run_dir)),
        Scorer(model),
    )
    with running(model, folder / "log", "--name", NAME) as server:
        for kind, request in requests_of(model, num_candidates).items():
            (folder / kind).mkdir()
            trainer, inference = eager_scorers(run, request, manifest, folder / kind)
            encoded = scorer.encode([request])
            scorers: dict[str, Score] = {
                EAGER: trainer,
                "eager: the inference model": inference,
                "ONNX Runtime in this process": partial(_pctr, scorer.run, encoded),
                "the same, from raw values": partial(_pctr, scorer.score, request),
                **served(server, request, scorer),
            }
            found[kind] = measure(scorers, repeats, f"{kind} user")
    return found


@click.command(
    cls=ToolCommand, help=(__doc__ or "").replace("\n\n    python", "\n\n\b\n    python")
)
@click.option("--run-dir", type=LOCAL_PATH, required=True, help="A finished run.")
@click.option("--candidates", type=click.IntRange(1), default=500, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=100, show_default=True, help="Rounds.")
def main(run_dir: Path, candidates: int, repeats: int) -> None:
    """Measures and prints a table."""
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
    for name in found["new"]:
        cells = " | ".join(
            f"{times[name]:.1f} | {times[name] / times[EAGER]:.2f}" for times in found.values()
        )
        click.echo(f"| {name} | {cells} |")


if __name__ == "__main__":
    main()
