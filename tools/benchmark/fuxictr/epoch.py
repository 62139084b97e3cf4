"""Trains FuxiCTR's DMR for an epoch; runs in an environment of its own, see ``comparison.py``.

    python epoch.py ROWS_FOLDER CHECKOUT_OF_FUXICTR SEED [TRACE STEPS]

prints one line of JSON: rows a second behind the first steps, and the AUC of the test rows. With a
file for a trace it trains and profiles some steps instead, and prints their seconds without and
with the profiler. Nothing of this project is imported here.
"""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader
from fuxictr.pytorch.torch_utils import seed_everything
from torch.profiler import ProfilerActivity, profile

_WARM_UP_STEPS = 3


def main(
    folder: Path, source: Path, seed: int, trace: str = "", steps: str = "0"
) -> dict[str, float]:
    """Trains one epoch, and evaluates it; with a trace it profiles some steps instead."""
    options: dict[str, Any] = json.loads((folder / "options.json").read_text())
    torch.set_num_threads(options.pop("threads"))
    seed_everything(seed)
    features = FeatureMap("rows", str(folder))
    features.load(str(folder / "feature_map.json"), {"embedding_dim": options["embedding_dim"]})
    model = _dmr(source)(
        features,
        gpu=-1,
        verbose=0,
        model_root=str(folder),
        metrics=["AUC"],
        task="binary_classification",
        **options,
    )
    model._max_gradient_norm = 10.0
    # Without reader processes, as here: one thread is one thread.
    train_file, batch_size = str(folder / "train.npz"), options["batch_size"]
    loader = NpzDataLoader(features, train_file, batch_size=batch_size, shuffle=True, num_workers=0)
    if trace:
        return _profile(model, loader, Path(trace), int(steps))
    rate = _train(model, loader)
    test = NpzDataLoader(features, str(folder / "test.npz"), batch_size=4096, num_workers=0)
    return {"rows_per_second": rate, "auc": float(model.evaluate(test)["AUC"])}


def _train(model: Any, loader: Any) -> float:
    """Trains on all batches; returns rows a second behind the first steps."""
    model.train()
    rows, start = 0, time.perf_counter()
    for step, batch in enumerate(loader):
        if step == _WARM_UP_STEPS:
            rows, start = 0, time.perf_counter()
        model.train_step(batch)
        rows += len(next(iter(batch.values())))
    return rows / (time.perf_counter() - start)


def _profile(model: Any, loader: Any, trace: Path, steps: int) -> dict[str, float]:
    """Writes a Chrome trace of some steps; returns seconds of as many without and with it."""
    model.train()
    batches = (batch for _ in iter(int, 1) for batch in loader)  # epoch after epoch

    def seconds_of(number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            model.train_step(next(batches))
        return time.perf_counter() - start

    seconds_of(_WARM_UP_STEPS)
    seconds = seconds_of(steps)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it prints lines of its own
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        profiled = seconds_of(steps)
    profiler.export_chrome_trace(str(trace))
    return {"seconds": seconds, "profiled_seconds": profiled}


def _dmr(source: Path) -> Any:
    """Imports the class from the checkout: the wheel does not hold it."""
    spec = importlib.util.spec_from_file_location(
        "dmr", source / "model_zoo" / "DMR" / "src" / "DMR.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DMR


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])))
