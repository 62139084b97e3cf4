"""Operations of a training step at which the host waits for the GPU, with their lines.

On CUDA they are those that torch itself reports (``torch.cuda.set_sync_debug_mode``). On a CPU the
tests' list of such operations stands for it, and nothing is judged. Then some steps run under
NVIDIA's compute-sanitizer.
"""

import collections
import importlib
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.utils.logging import silence_third_parties
from tools.benchmark.trainers import ProjectTrainer, workload_encoders
from tools.benchmark.workload import DMR, GROUPED, UNGROUPED
from tools.gpu.checks.sanitizer import check_memory
from tools.gpu.rows import small_workload
from tools.gpu.runner import ROOT
from tools.gpu.stage import StageRun

_WARM_UP, _STEPS = 4, 4
_BFLOAT16 = "train.precision=bfloat16"
_VARIANTS = (UNGROUPED, GROUPED, GROUPED.with_overrides(_BFLOAT16), DMR)
_OURS, _OURS_PREFIX = str(ROOT / "mail_torchrec"), "mail_torchrec/"


def check(run: StageRun) -> None:
    """Records the waits a step of each variant: of this package's lines, and of others'."""
    silence_third_parties()
    with process_group(run.device) as device:
        workload = small_workload(run)
        encoders = workload_encoders(workload)
        for variant in _VARIANTS:
            trainer = ProjectTrainer(workload, variant, device, encoders)
            name = variant.name + (", bfloat16" if _BFLOAT16 in variant.overrides else "")
            lines = count_waits(trainer, run.device)
            ours = sum(number for line, number in lines.items() if line.startswith(_OURS_PREFIX))
            others = sum(lines.values()) - ours
            value = {"ours": ours / _STEPS, "others": others / _STEPS, "lines": dict(lines)}
            ok = ours == 0 if run.device == "cuda" else None
            text = f"{name} {ours / _STEPS:g} waits of ours, {others / _STEPS:g} of others a step"
            run.record(name, value, ok=ok, text=text)
    check_memory(run)


def count_waits(trainer: ProjectTrainer, device: str) -> collections.Counter[str]:
    """Counts the waits of some steps by the line that asked for them."""
    for _ in range(_WARM_UP):
        trainer.step()
    if device == "cuda":
        lines: collections.Counter[str] = collections.Counter()
        with _reported(lines):
            for _ in range(_STEPS):
                trainer.step()
        return lines
    # Reading is the host's own; here its tensors could not be told from the device's.
    batches = [next(trainer.input) for _ in range(_STEPS + 1)]
    recorder = importlib.import_module("tests.support.synchronisations").Synchronisations()
    pipeline, iterator = trainer.assembled.pipeline, iter(batches)
    with recorder:
        for _ in range(_STEPS):
            pipeline.progress(iterator)
    return collections.Counter(found.line for found in recorder.found)


@contextmanager
def _reported(lines: collections.Counter[str]) -> Iterator[None]:
    """Counts each wait that torch warns of."""

    def count(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            lines[_line_of_now()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = count
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _line_of_now() -> str:
    """Returns the innermost line of this package; else the innermost one of another's."""
    frames = [
        frame
        for frame in reversed(traceback.extract_stack(sys._getframe(1)))
        if frame.filename != __file__ and "/warnings.py" not in frame.filename
    ]
    ours = [frame for frame in frames if frame.filename.startswith(_OURS)]
    # What the pipeline of TorchRec does in a step that we asked for is TorchRec's.
    inner = next((frame for frame in frames if "/torch/" not in frame.filename), frames[0])
    if ours and inner is ours[0]:
        return f"{inner.filename.removeprefix(str(ROOT) + '/')}:{inner.lineno}"
    return f"{'/'.join(inner.filename.split('/')[-3:])}:{inner.lineno}"
