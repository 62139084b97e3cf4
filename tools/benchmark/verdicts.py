"""The figures of a run against what the project wants of them, a line each; what a run did not measure is not judged."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tools.benchmark.growth import exponent
from tools.benchmark.interleaved import Rate, Ratio
from tools.benchmark.setting import DMR, GROUPED, GROUPED_SAMPLED, UNGROUPED, UNGROUPED_SAMPLED
from tools.benchmark.sides import REFERENCE

Results = dict[str, Any]
"""What ``bench.json`` holds: part of the run -> its figures."""


@dataclass(frozen=True)
class Verdict:
    """One judged line."""

    what: str
    found: str
    wanted: str
    passed: bool


def verdicts(results: Results) -> list[Verdict]:
    """All that can be judged of these results."""
    judges: list[Callable[[Results], Iterator[Verdict]]] = [
        _speed,
        _quality,
        _peer,
        _reader,
        _growth,
        _lookups,
    ]
    return [verdict for judge in judges for verdict in judge(results)]


def rate(results: Results, name: str) -> Rate | None:
    """A side's speed, if it was measured."""
    found = results.get("sides", {}).get(name)
    return None if found is None else Rate.from_dict(found)


def _speed(results: Results) -> Iterator[Verdict]:
    reference, grouped, dmr = (rate(results, name) for name in (REFERENCE, GROUPED.name, DMR.name))
    on_cuda = results["machine"]["device"] == "cuda"
    for variant, wanted in (
        (GROUPED, 6.0),
        (GROUPED_SAMPLED, 6.0),
        (UNGROUPED, 3.5),
        (UNGROUPED_SAMPLED, 3.5),
    ):
        fast = rate(results, variant.name)
        if fast and reference and not on_cuda:
            ratio = Ratio.of(fast, reference)
            yield Verdict(
                f"rows/s, {variant.name}, over the reference",
                str(ratio),
                f">= {wanted:g}",
                ratio.median >= wanted,
            )
    for variant in (GROUPED, GROUPED_SAMPLED):
        if (whole := rate(results, variant.name)) and dmr:
            added = Ratio.of(dmr, whole).median - 1
            yield Verdict(
                f"what the zero-shot tower adds to the DMR step, {variant.name}",
                f"{added:.0%}",
                "<= 60 %",
                added <= 0.6,
            )
    for variant in (GROUPED, UNGROUPED):
        if fast := rate(results, variant.name):
            yield Verdict(
                f"input wait, {variant.name}",
                f"{fast.input_share:.1%}",
                "< 2 %",
                fast.input_share < 0.02,
            )
    if on_cuda and grouped:
        yield Verdict(
            "rows/s on the GPU, grouped",
            f"{grouped.median:,.0f}",
            ">= 500,000",
            grouped.median >= 500_000,
        )


def _quality(results: Results) -> Iterator[Verdict]:
    for name, found in results.get("quality", {}).items():
        if name not in (REFERENCE, DMR.name):
            gap = found["difference"]
            known = gap["high"] is not None
            text = f"{gap['mean']:+.4f}" + (
                f" [{gap['low']:+.4f}, {gap['high']:+.4f}]" if known else ", one seed"
            )
            yield Verdict(
                f"AUC, {name}, less the reference's",
                text,
                "not below 0",
                (gap["high"] if known else gap["mean"]) >= 0,
            )


def _peer(results: Results) -> Iterator[Verdict]:
    if found := results.get("peer"):
        ratios = [
            ours / theirs
            for ours, theirs in zip(
                found["ours"]["rows_per_second"], found["theirs"]["rows_per_second"], strict=True
            )
        ]
        ratio = Ratio.over(ratios)
        yield Verdict(f"rows/s, DMR over {found['name']}'s", str(ratio), ">= 2", ratio.median >= 2)
        ours, theirs = (
            sum(found[side]["auc"]) / len(found[side]["auc"]) for side in ("ours", "theirs")
        )
        yield Verdict(
            f"AUC, DMR and {found['name']}'s",
            f"{ours:.4f}, {theirs:.4f}",
            "not lower",
            ours >= theirs,
        )


def _reader(results: Results) -> Iterator[Verdict]:
    if found := results.get("reader"):
        name = max(found, key=lambda key: found[key])
        yield Verdict(
            f"rows/s, the reader alone ({name})",
            f"{found[name]:,.0f}",
            ">= 300,000",
            found[name] >= 300_000,
        )


def _growth(results: Results) -> Iterator[Verdict]:
    found = results.get("growth", {})
    for axis in ("batch", "T"):
        if axis in found:
            power = exponent(found[axis])
            yield Verdict(
                f"exponent of the step's time in {axis}, at its upper end",
                f"{power:.2f}",
                "<= 1.1",
                power <= 1.1,
            )
    if "table rows" in found:
        first, last = found["table rows"][0], found["table rows"][-1]
        ratio = Ratio.of(Rate.from_dict(first), Rate.from_dict(last))
        yield Verdict(
            f"step with {last['value']:,} table rows over {first['value']:,}",
            str(ratio),
            "<= 1.2",
            ratio.median <= 1.2,
        )
    if "ranks" in found:
        one, two = found["ranks"]
        ratio = Ratio.of(Rate.from_dict(two), Rate.from_dict(one))
        yield Verdict(
            "rows/s, 2 ranks over 1, a thread each", str(ratio), ">= 1.7", ratio.median >= 1.7
        )


def _lookups(results: Results) -> Iterator[Verdict]:
    limits = results.get("limits")
    if limits and results["machine"]["device"] == "cuda":
        for way in ("forward", "backward"):
            share = limits[f"lookup_{way}"] / limits["copy"]
            yield Verdict(
                f"FBGEMM's lookup {way}, of copy bandwidth", f"{share:.0%}", ">= 60 %", share >= 0.6
            )
