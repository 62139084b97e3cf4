"""How long training waits for a checkpoint, and the host memory that its buffers take."""

import json

import torch.multiprocessing as mp

from tools.bench_checkpoint import measure, write_rows
from tools.gpu.stage import StageRun

_GIGABYTES, _GIGABYTES_SMALL = 2.0, 0.01
_REPEATS = 2


def check(run: StageRun) -> None:
    """Trains a model with a large table, and saves it in both modes."""
    size = _GIGABYTES_SMALL if run.small else _GIGABYTES
    folder = run.scratch / "checkpoint"
    write_rows(folder / "train")
    arguments = (1, str(folder), size, _REPEATS, run.device)
    mp.start_processes(measure, arguments, nprocs=1, start_method="spawn")
    found = json.loads((folder / "result.json").read_text())
    for name, value in found.items():
        run.record(name, value)
    buffers = max(found["buffer_bytes"], 0) / 2**30
    kept = max(found["kept_bytes"], 0) / 2**30
    text = (
        f"{size:g} GiB: training waits {found['async'] * 1e3:.0f} ms (synchronous "
        f"{found['sync'] * 1e3:.0f}), a step {found['step'] * 1e3:.1f} ms, beside a write "
        f"{found['step_during_write'] * 1e3:.1f}; buffers {buffers:.1f} GiB, kept {kept:.1f}"
    )
    run.record("stall", found["async"] / found["sync"], text=text)
