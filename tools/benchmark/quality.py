"""Compares the AUC of the variants with the reference's, trained on the same rows and seeds."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from mail_torchrec.data.encoders import Encoders
from mail_torchrec.reporting.intervals import seed_interval
from tools.benchmark.scaling import Log
from tools.benchmark.trainers import REFERENCE, make_trainer
from tools.benchmark.workload import Variant, Workload


def compare_auc(
    workload: Workload,
    variants: Sequence[Variant],
    device: torch.device,
    encoders: Encoders,
    *,
    seeds: int,
    epochs: int,
    log: Log,
) -> dict[str, Any]:
    """Trains all variants and the reference with several seeds.

    Returns:
        For each name ``aucs``, one a seed, and ``difference`` from the reference's: mean and
        Student's 95 % interval, paired by seed.
    """
    aucs: dict[str, list[float]] = {}
    for seed in range(1, seeds + 1):
        seeded = Workload(workload.path, (*workload.overrides, f"train.seed={seed}"))
        for variant in (None, *variants):
            trainer = make_trainer(seeded, variant, device, encoders)
            for epoch in range(epochs):
                for _ in trainer.epoch(epoch):
                    pass
            auc = trainer.auc()
            aucs.setdefault(trainer.name, []).append(auc)
            log(f"AUC of {trainer.name}, seed {seed}: {auc:.4f}")
    base = aucs[REFERENCE]
    return {
        name: {"aucs": values, "difference": _difference(values, base)}
        for name, values in aucs.items()
    }


def _difference(aucs: list[float], base: list[float]) -> dict[str, Any]:
    interval = seed_interval([one - other for one, other in zip(aucs, base, strict=True)])
    assert interval is not None
    return asdict(interval)
