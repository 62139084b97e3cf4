"""The planner's estimate of memory and time beside what the stage ``speed`` measured."""

import torch

from mail_torchrec.embeddings.hardware import detect_hardware
from mail_torchrec.planning.estimator import estimate_scenario
from mail_torchrec.planning.scenarios import Scenario
from tools.gpu.checks.speed import reader_processes, variants
from tools.gpu.rows import large_workload
from tools.gpu.stage import StageRun

_IN_VERDICT = ("float32", "bf16", "grouped bf16")


def check(run: StageRun) -> None:
    """Compares each variant that was measured; nothing is judged."""
    measured = run.results.facts("speed")
    if "table rows" not in measured:
        run.record("plan", None, text="the stage speed measured nothing to compare with")
        return
    num_rows = measured["table rows"].value
    hardware = detect_hardware(torch.device(run.device), local_world_size=1)
    texts = []
    for name, variant in variants(reader_processes(run)).items():
        if name not in measured or measured[name].value is None:
            continue
        config = large_workload(run).config(variant).with_dims(num_rows)
        estimate = estimate_scenario(Scenario(config, num_rows, hardware, 1, ()))
        found = measured[name].value
        step_ms = found["seconds_per_step"] * 1e3
        value = {
            "estimated_bytes": estimate.peak_memory,
            "measured_bytes": found["peak_bytes"],
            "estimated_ms": estimate.step_time.total,
            "measured_ms": step_ms,
        }
        run.record(name, value)
        ratio = estimate.peak_memory / found["peak_bytes"]
        times = f"{estimate.step_time.total:.1f}/{step_ms:.1f} ms"
        if name in _IN_VERDICT:
            texts.append(f"{name} {times}, memory {ratio:.2f} of it")
    run.record("estimates", len(texts), text="estimated/measured: " + ", ".join(texts))
