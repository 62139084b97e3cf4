"""A checkpoint of the CPU resumed on the GPU, and one of the GPU resumed on the CPU.

A run trains an epoch on one device; copies of it train a second one on each. Losses of the second
epoch, and what the last checkpoint holds, should agree.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from mail_torchrec.checkpoint.storage import read_tensor_metadata, read_tensors
from mail_torchrec.config import Config
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from mail_torchrec.utils.logging import silence_third_parties
from tools.benchmark.workload import UNGROUPED
from tools.gpu.rows import small_workload
from tools.gpu.stage import StageRun

_TOLERANCE = 1e-4
_OVERRIDES = (
    "model.zero_shot.dropout=0",
    # Else a gradient that is nothing but rounding moves its weight by a whole learning rate.
    "train.eps=1e-4",
    "train.tables.eps=1e-4",
    "train.log_every=1",
    "checkpoint.every=0",
)


def check(run: StageRun) -> None:
    """Records the largest difference of losses, and that of each kind of state."""
    silence_third_parties()
    pairs = [("cpu", run.device), (run.device, "cpu")] if run.device != "cpu" else [("cpu", "cpu")]
    for first, second in pairs:
        folder = run.scratch / f"resume-{first}-{second}"
        _train(run, folder / "start", first, epochs=1)
        finished = []
        for name, device in (("same", first), ("other", second)):
            shutil.copytree(folder / "start", folder / name)
            finished.append(_train(run, folder / name, device, epochs=2))
        label = f"{first} to {second}"
        losses = _loss_difference(*finished)
        run.record(f"{label}, losses", losses, ok=losses <= _TOLERANCE)
        states = _state_differences(*finished)
        worst = max(states, key=lambda name: states[name])
        run.record(f"{label}, state", states)
        text = f"{label}: losses {losses:.0e}, {worst} {states[worst]:.0e}"
        run.record(label, states[worst], ok=states[worst] <= _TOLERANCE, text=text)


def _train(run: StageRun, folder: Path, device: str, epochs: int) -> RunDir:
    """Trains a run, or goes on with it."""
    overrides = (*_OVERRIDES, f"train.device={device}", f"train.epochs={epochs}")
    config: Config = small_workload(run).config(UNGROUPED.with_overrides(*overrides))
    run_dir = RunDir(folder)
    train(config, run_dir, resume=epochs > 1)
    return run_dir


def _loss_difference(one: RunDir, other: RunDir) -> float:
    """Returns the largest difference of a loss, relative to losses above 1."""
    pairs = zip(_losses(one), _losses(other), strict=True)
    differences = [
        abs(here - there) / max(abs(here), 1.0)
        for ours, theirs in pairs
        for here, there in zip(ours, theirs, strict=True)
    ]
    return max(differences)


def _losses(run_dir: RunDir) -> list[list[float]]:
    """Reads the losses of all steps."""
    lines = [json.loads(line) for line in run_dir.log.read_text().splitlines()]
    found = [[line[key] for key in sorted(line) if key.startswith("loss/")] for line in lines]
    return [losses for losses in found if losses]


def _state_differences(one: RunDir, other: RunDir) -> dict[str, float]:
    """Returns by kind of state the norm of the difference over the norm.

    Kinds are ``model`` and the optimizers' states by name (``optimizer exp_avg``, ...).
    """
    ours, theirs = (_state(run_dir) for run_dir in (one, other))
    assert ours.keys() == theirs.keys()
    squares: dict[str, list[float]] = {}
    for key, here in ours.items():
        first, *_, last = key.split(".")
        kind = first if first == "model" else f"{first} {last}"
        sums = squares.setdefault(kind, [0.0, 0.0])
        sums[0] += float((here - theirs[key]).square().sum())
        sums[1] += float(here.square().sum())
    return {kind: (apart / max(size, 1e-30)) ** 0.5 for kind, (apart, size) in squares.items()}


def _state(run_dir: RunDir) -> dict[str, torch.Tensor]:
    """Reads weights and optimizers' states of the last checkpoint, in float64."""
    folder = run_dir.checkpoints.published()[-1]
    state: dict[str, Any] = {
        key: torch.empty(value.size, dtype=value.properties.dtype)
        for key, value in read_tensor_metadata(folder).items()
        if key.startswith(("model.", "optimizer."))
    }
    read_tensors(state, folder)
    return {key: value.double() for key, value in state.items()}
