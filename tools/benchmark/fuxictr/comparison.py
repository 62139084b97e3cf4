"""Measures FuxiCTR's DMR and this project's on the same rows, an epoch of each in turn.

FuxiCTR runs in an environment of its own. It gets no actions, and its context fields do not run in
2.3.10. Its match loss and its item-to-item relevance are switched on, its sizes are ours, and its
in-memory npz loader is the fastest of those it has.
"""

import json
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import torch

from mail_torchrec.data.encoders import Encoders
from tools.benchmark.fuxictr.rows import write_fuxictr_rows
from tools.benchmark.scaling import Log
from tools.benchmark.trainers import ProjectTrainer
from tools.benchmark.workload import DMR, Workload

NAME, VERSION = "FuxiCTR", "2.3.10"
_PACKAGES = [f"fuxictr=={VERSION}", "polars<2"]
_MODEL = Path("model_zoo/DMR/src/DMR.py")
_WARM_UP_STEPS = 3


def check_source(source: Path | None) -> Path:
    """Checks that a checkout of FuxiCTR has DMR.

    Raises:
        ValueError: there is no checkout, or it lacks DMR; says how to get it.
    """
    if source is None or not (source / _MODEL).exists():
        raise ValueError(
            "--part fuxictr needs FuxiCTR's DMR, which its wheel does not hold: --fuxictr-source "
            "should be a checkout of its repository at "
            f"version {VERSION} with {_MODEL}, received {source}; git clone "
            "https://github.com/reczoo/FuxiCTR"
        )
    return source


def compare_with_fuxictr(
    workload: Workload,
    encoders: Encoders,
    source: Path,
    environment: Path,
    *,
    repeats: int,
    threads: int,
    log: Log,
) -> dict[str, Any]:
    """Trains an epoch of each, again and again, each time with another seed.

    Args:
        workload: data, columns, towers.
        encoders: fitted on the training rows.
        source: checkout of FuxiCTR.
        environment: folder of its Python environment, made where it is missing.
        repeats: epochs of each.
        threads: threads of each.
        log: is called with the result of each repeat.

    Returns:
        Rows a second behind the first steps, and AUC, of ours and theirs.
    """
    python = prepare_environment(environment)
    found: dict[str, Any] = {
        name: {"rows_per_second": [], "auc": []} for name in ("ours", "theirs")
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = write_fuxictr_rows(Path(folder), workload.config(DMR), encoders, threads)
        for seed in range(1, repeats + 1):
            theirs = run_epoch(python, Path(folder), source, seed)
            seeded = Workload(workload.path, (*workload.overrides, f"train.seed={seed}"))
            ours = _our_epoch(seeded, encoders)
            for name, result in (("ours", ours), ("theirs", theirs)):
                found[name]["rows_per_second"].append(result["rows_per_second"])
                found[name]["auc"].append(result["auc"])
            log(f"{NAME} {_describe(theirs)}; here {_describe(ours)}")
    return found | {
        "name": f"{NAME} {VERSION}",
        "rows": rows,
        "threads": threads,
        "python": sys.version.split()[0],
    }


def prepare_environment(folder: Path) -> Path:
    """Returns the Python of an environment with FuxiCTR, made where it is missing.

    Torch and other packages that both need are shared with this environment.

    Args:
        folder: of the environment.
    """
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        [site] = folder.glob("lib/python*/site-packages")
        (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *_PACKAGES], check=True)
        (folder / "ready").touch()
    return python


def run_epoch(
    python: Path, folder: Path, source: Path, seed: int, *options: str
) -> dict[str, float]:
    """Runs ``epoch.py``, and returns what it prints.

    Args:
        python: of FuxiCTR's environment.
        folder: of the rows.
        source: checkout of FuxiCTR.
        seed: of the model.
        options: further arguments.
    """
    script = Path(__file__).with_name("epoch.py")
    command = [str(python), str(script), str(folder), str(source.resolve()), str(seed), *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _our_epoch(workload: Workload, encoders: Encoders) -> dict[str, float]:
    trainer = ProjectTrainer(workload, DMR, torch.device("cpu"), encoders)
    rows, start = 0, time.perf_counter()
    for step, num_rows in enumerate(trainer.epoch(0), start=1):
        rows += num_rows
        if step == _WARM_UP_STEPS:
            rows, start = 0, time.perf_counter()
    seconds = time.perf_counter() - start
    return {"rows_per_second": rows / seconds, "auc": trainer.auc()}


def _describe(result: dict[str, float]) -> str:
    return f"{result['rows_per_second']:,.0f} rows/s, AUC {result['auc']:.4f}"
