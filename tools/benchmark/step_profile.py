"""Profiles steps of all trainers, and of two ranks: ``python tools/bench.py --part profile``."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.benchmark.profile.ranks import rank_waits
from tools.benchmark.profile.recording import ProfiledSteps
from tools.benchmark.profile.summary import summarise
from tools.benchmark.profile.trace import read_operations
from tools.benchmark.subprocess_trainer import SubprocessTrainer
from tools.benchmark.trainers import REFERENCE
from tools.benchmark.workload import Variant, Workload

_WARM_UP = 3


@dataclass(frozen=True)
class ProfileExperiment:
    """Profiles each trainer in a process of its own, one after the other.

    Args:
        workload: data, columns, towers.
        device: cpu or cuda; operators are those of the host.
        threads: threads of a process; where ranks are compared each has one.
        steps: steps of a profile, and as many before it without the profiler.
        traces: folder that keeps the Chrome traces; None for none.
    """

    workload: Workload
    device: str
    threads: int
    steps: int
    traces: Path | None = None

    def measure(self, variants: Sequence[Variant], ranked: Variant) -> dict[str, Any]:
        """Profiles variants and the direct reference, and on a CPU one variant over ranks.

        Args:
            variants: of this project.
            ranked: the variant that two ranks train.

        Returns:
            ``trainers``: name -> profile; ``ranks``: of :meth:`profile_ranks`.
        """
        found: dict[str, Any] = {"trainers": {}}
        for variant in (None, *variants):
            name = REFERENCE if variant is None else variant.name
            found["trainers"][name] = self.profile(variant)
        if self.device == "cpu":
            found["ranks"] = self.profile_ranks(ranked)
        return found

    def profile(self, variant: Variant | None) -> dict[str, Any]:
        """Profiles a variant, or for None the direct reference.

        Returns:
            The sums of ``profile/summary.py``, and seconds a step without and with the profiler.
        """
        [(times, trace)] = self._record(variant, 1, self.threads)
        return _times(times) | summarise(read_operations(trace), times.steps)

    def profile_ranks(self, variant: Variant) -> dict[str, Any]:
        """Profiles one rank, and two that train together, of a thread each.

        Returns:
            Number of ranks -> one entry a rank: seconds a step, sums, waits in collectives.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        for ranks in (1, 2):
            recorded = self._record(variant, ranks, 1)
            waits = rank_waits([trace for _, trace in recorded], self.steps)
            found[str(ranks)] = [
                _times(times) | summarise(read_operations(trace), times.steps) | {"waits": wait}
                for (times, trace), wait in zip(recorded, waits, strict=True)
            ]
        return found

    def _record(
        self, variant: Variant | None, ranks: int, threads: int
    ) -> list[tuple[ProfiledSteps, dict[str, Any]]]:
        """Times and trace of each rank."""
        process = SubprocessTrainer(self.workload, variant, self.device, threads, ranks=ranks)
        with tempfile.TemporaryDirectory() as temporary, process as trainer:
            folder = Path(temporary)
            if self.traces is not None:
                folder = (
                    self.traces / f"{trainer.name.replace(', ', '-').replace(' ', '-')}-{ranks}"
                )
                folder.mkdir(parents=True, exist_ok=True)
            trainer.turn(_WARM_UP)
            times = trainer.profile(self.steps, folder)
            traces = [json.loads(path.read_bytes()) for path in sorted(folder.glob("rank-*.json"))]
        return list(zip(times, traces, strict=True))


def _times(times: ProfiledSteps) -> dict[str, float]:
    return {
        "seconds": times.seconds / times.steps,
        "profiled_seconds": times.profiled_seconds / times.steps,
        "cpu_seconds": times.cpu_seconds / times.steps,
    }
