"""Steps of a model on the pretended GPU beside those on the CPU, and what should not be.

To be called in a process of their own, see ``pretend_gpu.py``.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from mail_torchrec.config import Config
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.model.step import StepOutputs
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.train import loop
from mail_torchrec.train.assembly import AssembledModel, assemble
from mail_torchrec.train.data_splits import negative_samplers
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.steps import run_steps
from mail_torchrec.train.trainer import train
from tests.support.pretend_gpu import PretendTensor, pretended
from tests.support.synchronisations import Synchronisations

_NUM_STEPS = 3
Losses = dict[str, float]


def write_problems(_: int, stub: str, tree: dict[str, Any], tolerance: float, path: str) -> None:
    """Writes to a file what is wrong with the steps of a configuration on the pretended GPU.

    Args:
        stub: the library of ``pretend_gpu.py``.
        tree: the configuration.
        tolerance: between the losses on both devices, relative; infinite where they draw other
            numbers.
        path: of the file, a list of texts as JSON.
    """
    torch.ops.load_library(stub)  # before the first backward pass
    with process_group("cpu"):
        Path(path).write_text(json.dumps(list(_problems(stub, tree, tolerance))))


def _problems(stub: str, tree: dict[str, Any], tolerance: float) -> Iterator[str]:
    recorder = Synchronisations("cuda")
    with pretended(Path(stub)) as device:
        config = Config.model_validate(tree)
        assembled, batches = _model(config, device)
        found = _losses(assembled, batches, recorder)
        yield from (f"{name} is on the host" for name in _on_host(assembled))
    yield from (f"waits: {line}" for line in recorder.lines())
    if config.train.precision == "tf32":  # which is float32 on the CPU
        config = Config.model_validate(tree | {"train": {**tree["train"], "precision": "float32"}})
    expected = _losses(*_model(config, torch.device("cpu")))
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one.keys() != other.keys():
            yield f"step {step}: {sorted(one)}, on the CPU {sorted(other)}"
        for name in one.keys() & other.keys():
            tiny = max(1e-6, 1e-3 * tolerance)  # scores are near 0 after a few steps
            is_close = math.isclose(one[name], other[name], rel_tol=tolerance, abs_tol=tiny)
            if not (math.isfinite(one[name]) and (is_close or tolerance == math.inf)):
                yield f"step {step}: {name} is {one[name]}, on the CPU {other[name]}"


def _model(config: Config, device: torch.device) -> tuple[AssembledModel, list[Batch]]:
    """A model, and batches: those of its training steps, and one that it is evaluated on."""
    source = Source(config.data.path(config.data.train), config.schema_)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    assembled = assemble(config, encoders, device, records_touched=True)
    assembled.optimizer.plan(_NUM_STEPS)
    reader = Reader(
        source, config.schema_, encoders, assembled.feature_tables, config.data,
        rank_info=RankInfo(), batch_size=config.train.batch_size, shuffle=True, seed=1,
        samplers=negative_samplers(config, encoders, assembled.feature_tables),
    )  # fmt: skip
    batches = list(reader)[: _NUM_STEPS + 1]
    assert len(batches) == _NUM_STEPS + 1
    is_pinned = device.type == "cuda"  # as the loader does it
    return assembled, [batch.pin_memory() if is_pinned else batch for batch in batches]


def _losses(
    assembled: AssembledModel, batches: list[Batch], recorder: Synchronisations | None = None
) -> list[Losses]:
    """Losses of the training steps, and the mean score of the evaluated batch.

    Args:
        assembled: trained.
        batches: the last one is evaluated.
        recorder: of the last training step, and of the evaluation.
    """
    *training, last, evaluated = batches
    outputs = [_step(assembled, batch, None) for batch in training]
    outputs.append(_step(assembled, last, recorder))
    losses = [{name: float(value) for name, value in one.losses.items()} for one in outputs]
    with assembled.evaluating(), torch.no_grad():
        scored = _step(assembled, evaluated, recorder)
    return [*losses, {"scores": float(scored.logits_B.float().square().mean())}]


def _step(
    assembled: AssembledModel, batch: Batch, recorder: Synchronisations | None
) -> StepOutputs:
    if recorder is None:
        return assembled.pipeline.progress(iter([batch]))
    with recorder:
        return assembled.pipeline.progress(iter([batch]))


def _on_host(assembled: AssembledModel) -> Iterator[str]:
    """Names of the model's tensors and of its optimizers' that are not on the device."""
    named: Mapping[str, Tensor] = assembled.model.state_dict(keep_vars=True)
    states = {
        f"{group.name}/{parameter}/{name}": value
        for group in assembled.optimizer
        for parameter, state in group.state.items()
        for name, value in state.items()
        if name != "step"  # a number that torch may keep on the host
    }
    gradients = {
        f"the gradient of {name}": value.grad
        for name, value in assembled.model.named_parameters()
        if value.grad is not None
    }
    for name, value in (dict(named) | states | gradients).items():
        if not isinstance(value, PretendTensor):
            yield name


def write_run(_: int, stub: str, tree: dict[str, Any], folder: str) -> None:
    """Trains an epoch on the CPU, and a second one there and on the pretended GPU.

    Args:
        stub: the library of ``pretend_gpu.py``.
        tree: the configuration.
        folder: gets the runs, and ``found.json``: the metrics of both in the end, those of the
            GPU's run evaluated on the CPU, and what waited between two of its reports.
    """
    torch.ops.load_library(stub)
    runs = {name: RunDir(Path(folder) / name) for name in ("cpu", "cuda")}

    def go_on(device: str, epochs: int, *, resume: bool = True) -> Any:
        of_run = {**tree["train"], "device": device, "epochs": epochs, "log_every": 100}
        config = Config.model_validate(tree | {"train": of_run})
        return train(config, runs[device], resume=resume)

    go_on("cpu", 1, resume=False)
    shutil.copytree(runs["cpu"].path, runs["cuda"].path)
    found = {"cpu": go_on("cpu", 2)}
    recorder, marks = Synchronisations("cuda"), []

    def marked_steps(*arguments: Any) -> Iterator[StepOutputs]:
        for number, outputs in enumerate(run_steps(*arguments)):
            if number in (1, 4):
                marks.append(len(recorder.found))
            yield outputs

    with pretended(Path(stub)), recorder, patch.object(loop, "run_steps", marked_steps):
        found["cuda"] = go_on("cuda", 2)
    found["cuda on cpu"] = evaluate_run(runs["cuda"], None, ["train.device=cpu"])
    waits = [str(one) for one in recorder.found[slice(*marks)]]
    Path(folder, "found.json").write_text(json.dumps(found | {"waits": waits, "marks": marks}))
