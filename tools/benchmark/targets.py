"""Compares the results of a bench with this project's targets; missing results are left out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tools.benchmark.scaling import RANKS_BF16, scaling_exponent
from tools.benchmark.throughput import SpeedRatio, Throughput
from tools.benchmark.trainers import REFERENCE
from tools.benchmark.workload import (
    DMR,
    GROUPED,
    GROUPED_SAMPLED,
    UNGROUPED,
    UNGROUPED_SAMPLED,
    Variant,
    in_bfloat16,
)

Results = dict[str, Any]
"""The content of ``bench.json``: results of each part of the bench."""
# In float32 and bfloat16.
_PRECISIONS: tuple[Callable[[Variant], Variant], ...] = (lambda variant: variant, in_bfloat16)
_SPEEDUP_TARGETS = (
    (GROUPED, 7.0),
    (GROUPED_SAMPLED, 7.0),
    (UNGROUPED, 3.5),
    (UNGROUPED_SAMPLED, 3.5),
)


@dataclass(frozen=True)
class TargetCheck:
    """One result beside its target."""

    metric: str
    result: str
    target: str
    passed: bool


def check_targets(results: Results) -> list[TargetCheck]:
    """Compares all results that have a target."""
    checks: list[Callable[[Results], Iterator[TargetCheck]]] = [
        _check_speedups,
        _check_zero_shot_cost,
        _check_input_wait,
        _check_gpu_speed,
        _check_quality,
        _check_fuxictr,
        _check_reader,
        _check_scaling,
        _check_lookups,
    ]
    return [found for check in checks for found in check(results)]


def throughput_of(results: Results, name: str) -> Throughput | None:
    """Returns a trainer's speed, None where it was not measured."""
    record = results.get("throughput", {}).get(name)
    return None if record is None else Throughput.from_dict(record)


def _on_cuda(results: Results) -> bool:
    return bool(results["machine"]["device"] == "cuda")


def _check_speedups(results: Results) -> Iterator[TargetCheck]:
    reference = throughput_of(results, REFERENCE)
    targets = [
        (precise(variant), target)
        for variant, target in _SPEEDUP_TARGETS
        for precise in _PRECISIONS
    ]
    for variant, target in targets:
        fast = throughput_of(results, variant.name)
        if fast and reference and not _on_cuda(results):
            ratio = SpeedRatio.between(fast, reference)
            metric = f"rows/s, {variant.name}, over the reference"
            yield TargetCheck(metric, str(ratio), f">= {target:g}", ratio.median >= target)


def _check_zero_shot_cost(results: Results) -> Iterator[TargetCheck]:
    for precise in _PRECISIONS:
        dmr = throughput_of(results, precise(DMR).name)
        for variant in map(precise, (GROUPED, GROUPED_SAMPLED)):
            if (whole := throughput_of(results, variant.name)) and dmr:
                added = SpeedRatio.between(dmr, whole).median - 1
                metric = f"time that the zero-shot tower adds to the DMR step, {variant.name}"
                yield TargetCheck(metric, f"{added:.0%}", "<= 80 %", added <= 0.8)


def _check_input_wait(results: Results) -> Iterator[TargetCheck]:
    for variant in (GROUPED, UNGROUPED):
        if fast := throughput_of(results, variant.name):
            share = fast.input_share
            yield TargetCheck(f"input wait, {variant.name}", f"{share:.1%}", "< 2 %", share < 0.02)


def _check_gpu_speed(results: Results) -> Iterator[TargetCheck]:
    grouped = throughput_of(results, GROUPED.name)
    if _on_cuda(results) and grouped:
        rate = f"{grouped.median:,.0f}"
        passed = grouped.median >= 500_000
        yield TargetCheck("rows/s on the GPU, grouped", rate, ">= 500,000", passed)


def _check_quality(results: Results) -> Iterator[TargetCheck]:
    for name, found in results.get("quality", {}).items():
        if name == REFERENCE or name.startswith(DMR.name):
            continue
        difference = found["difference"]
        has_interval = difference["high"] is not None
        text = f"{difference['mean']:+.4f}"
        if has_interval:
            text += f" [{difference['low']:+.4f}, {difference['high']:+.4f}]"
        else:
            text += ", one seed"
        passed = (difference["high"] if has_interval else difference["mean"]) >= 0
        yield TargetCheck(f"AUC, {name}, less the reference's", text, "not below 0", passed)


def _check_fuxictr(results: Results) -> Iterator[TargetCheck]:
    if found := results.get("fuxictr"):
        ours, theirs = found["ours"], found["theirs"]
        pairs = zip(ours["rows_per_second"], theirs["rows_per_second"], strict=True)
        ratio = SpeedRatio.summarise([one / other for one, other in pairs])
        name = found["name"]
        yield TargetCheck(f"rows/s, DMR over {name}'s", str(ratio), ">= 2.5", ratio.median >= 2.5)
        auc, other_auc = (sum(each["auc"]) / len(each["auc"]) for each in (ours, theirs))
        text = f"{auc:.4f}, {other_auc:.4f}"
        yield TargetCheck(f"AUC, DMR and {name}'s", text, "not lower", auc >= other_auc)


def _check_reader(results: Results) -> Iterator[TargetCheck]:
    if found := results.get("reader"):
        name = max(found, key=lambda key: found[key])
        rate = found[name]
        metric = f"rows/s, the reader alone ({name})"
        yield TargetCheck(metric, f"{rate:,.0f}", ">= 300,000", rate >= 300_000)


def _check_scaling(results: Results) -> Iterator[TargetCheck]:
    found = results.get("scaling", {})
    for axis in ("batch", "T"):
        if axis in found:
            power = scaling_exponent(found[axis])
            metric = f"exponent of the step's time in {axis}, at its upper end"
            yield TargetCheck(metric, f"{power:.2f}", "<= 1.1", power <= 1.1)
    if "table rows" in found:
        first, last = found["table rows"][0], found["table rows"][-1]
        ratio = _ratio(first, last)
        metric = f"step with {last['value']:,} table rows over {first['value']:,}"
        yield TargetCheck(metric, str(ratio), "<= 1.2", ratio.median <= 1.2)
    for axis in ("ranks", RANKS_BF16):
        if axis in found:
            one, two = found[axis]
            ratio = _ratio(two, one)
            metric = f"rows/s, 2 {axis} over 1, a thread each"
            yield TargetCheck(metric, str(ratio), ">= 1.65", ratio.median >= 1.65)


def _ratio(fast: dict[str, Any], slow: dict[str, Any]) -> SpeedRatio:
    return SpeedRatio.between(Throughput.from_dict(fast), Throughput.from_dict(slow))


def _check_lookups(results: Results) -> Iterator[TargetCheck]:
    limits = results.get("limits")
    if limits and _on_cuda(results):
        for direction in ("forward", "backward"):
            share = limits[f"lookup_{direction}"] / limits["copy"]
            metric = f"FBGEMM's lookup {direction}, of copy bandwidth"
            yield TargetCheck(metric, f"{share:.0%}", ">= 60 %", share >= 0.6)
