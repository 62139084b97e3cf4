"""Whether what is fast is as good: AUC of the trainer and of the reference, trained alike on the same rows with several seeds."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from mail_torchrec.data.encoders import Encoders
from mail_torchrec.reporting.comparison import seed_interval
from tools.benchmark.growth import Say
from tools.benchmark.setting import Setting, Variant
from tools.benchmark.sides import REFERENCE, side_of


def qualities(
    setting: Setting,
    variants: Sequence[Variant],
    device: torch.device,
    encoders: Encoders,
    *,
    seeds: int,
    epochs: int,
    say: Say,
) -> dict[str, Any]:
    """Side -> ``aucs``, one a seed, and ``difference`` from the reference's: mean and Student's 95 % interval, paired by seed."""
    aucs: dict[str, list[float]] = {}
    for seed in range(1, seeds + 1):
        seeded = Setting(setting.path, (*setting.overrides, f"train.seed={seed}"))
        for variant in (None, *variants):
            side = side_of(seeded, variant, device, encoders)
            for epoch in range(epochs):
                for _ in side.epoch(epoch):
                    pass
            aucs.setdefault(side.name, []).append(side.auc())
            say(f"AUC of {side.name}, seed {seed}: {aucs[side.name][-1]:.4f}")
    return {
        name: {"aucs": values, "difference": _difference(values, aucs[REFERENCE])}
        for name, values in aucs.items()
    }


def _difference(aucs: list[float], base: list[float]) -> dict[str, Any]:
    interval = seed_interval([one - other for one, other in zip(aucs, base, strict=True)])
    assert interval is not None
    return asdict(interval)
