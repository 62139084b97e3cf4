"""Measures what drift costs a server, and what its statistics say of equal and of moved users.

    python tools/bench_drift.py --model models/kr

Requests of the export's golden new user are scored in this process with and without a monitor, in
turns. A comparison of a full sample with the golden sets is timed, and repeated on halves of the
golden sets' own users, whose distribution is one. Prints Markdown.
"""

import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from prometheus_client import CollectorRegistry

from mail_torchrec.cli.options import LOCAL_PATH
from mail_torchrec.drift.golden_behaviours import GoldenBehaviours, TwoSampleInfo, compare
from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.serve.drift.monitor import DriftMonitor
from mail_torchrec.serve.prometheus import ServerMetrics
from mail_torchrec.serve.ranker import InferenceCall, Ranker
from mail_torchrec.serve.versions import ModelVersions
from tools.tool_command import ToolCommand

_ROUNDS, _HALVES, _MANY = 1000, 40, 1000


@click.command(cls=ToolCommand, help=__doc__)
@click.option("--model", type=LOCAL_PATH, required=True, help="An export with --drift.")
def main(model: Path) -> None:
    """Prints the measurements."""
    info = ArtifactManifest.read(model).drift
    if info is None:
        raise ValueError(f"'{model}' has no golden behaviours; export it with --drift 1000")
    golden = GoldenBehaviours.read(model, info)
    click.echo(f"{info.new_users} new and {info.old_users} old users, {info.dim} elements\n")
    for name, seconds in request_seconds(model).items():
        click.echo(f"- a request of a new user, {name}: {seconds * 1e6:.1f} us (fastest tenth)")
    vectors = golden.new_virtual_ND
    seconds = timed(lambda: golden.compare_served(vectors, info))
    tracemalloc.start()
    golden.compare_served(vectors, info)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    click.echo(f"- a comparison with the three sets: {seconds:.2f} s, {peak / 1e6:.0f} MB")
    of_halves = halves(golden, info.bandwidth)
    aucs = [found.auc for found in of_halves]
    exceeded = sum(found.mmd > found.mmd_noise for found in of_halves)
    click.echo(
        f"- random halves of the new users, {of_halves[0].rows[0]} and {of_halves[0].rows[1]}: AUC "
        f"{min(aucs):.3f} to {max(aucs):.3f}, MMD over its noise in {exceeded} of {_HALVES}"
    )


def request_seconds(model: Path) -> dict[str, float]:
    """Times requests without a monitor, with one that samples all users, and with one of many."""
    metrics = ServerMetrics()
    versions = ModelVersions(model, metrics, threads=1)
    inputs = versions.serving.encode([read_golden(model)[0][0]])
    all_sampled, few_sampled = (
        DriftMonitor(versions, registry, 3600)
        for registry in (metrics.registry, CollectorRegistry())
    )
    many = {name: np.repeat(array, _MANY, axis=0) for name, array in inputs.items()}
    for _ in range(_MANY):
        few_sampled.offer(many, versions.serving.manifest)
    rankers = {
        "without": Ranker("bench", versions, metrics, 1000),
        "with drift, sampled": Ranker("bench", versions, metrics, 1000, all_sampled),
        "with drift, one of a thousand sampled": Ranker(
            "bench", versions, metrics, 1000, few_sampled
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in rankers}
    for turn in range(_ROUNDS):
        for name in list(rankers)[turn % 3 :] + list(rankers)[: turn % 3]:
            ranker = rankers[name]
            start = time.perf_counter()
            ranker.infer(InferenceCall(inputs))
            times[name].append(time.perf_counter() - start)
    return {name: statistics.quantiles(values, n=10)[0] for name, values in times.items()}


def halves(golden: GoldenBehaviours, bandwidth: float) -> list[TwoSampleInfo]:
    """Compares random halves of the golden new users."""
    random, vectors = np.random.default_rng(0), golden.new_virtual_ND
    found = []
    for _ in range(_HALVES):
        order = random.permutation(len(vectors))
        found.append(compare(vectors[order[::2]], vectors[order[1::2]], bandwidth))
    return found


def timed(work: Callable[[], object]) -> float:
    """Times some work once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
