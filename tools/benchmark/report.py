"""Writes the results of a bench as Markdown, HTML, JSON and plots."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mail_torchrec.reporting.html import markdown_to_html
from mail_torchrec.reporting.markdown import markdown_table
from tools.benchmark.plots import draw_breakdown, draw_scaling, draw_throughput
from tools.benchmark.profile.tables import profile_tables
from tools.benchmark.step_breakdown import PARTS
from tools.benchmark.targets import Results, check_targets, throughput_of
from tools.benchmark.throughput import SpeedRatio, Throughput
from tools.benchmark.trainers import REFERENCE

_PLOTS: dict[str, Callable[[Any, Path], None]] = {
    "throughput": draw_throughput,
    "breakdown": draw_breakdown,
    "scaling": draw_scaling,
}


def write_report(results: Results, out: Path) -> None:
    """Writes ``bench.json``, ``bench.md``, ``bench.html`` and a plot of each part.

    Args:
        results: of the parts measured so far.
        out: a folder that exists.
    """
    checks = [vars(check) for check in check_targets(results)]
    (out / "bench.json").write_text(json.dumps(results | {"targets": checks}, indent=2) + "\n")
    for name, draw in _PLOTS.items():
        if name in results:
            draw(results[name], out / f"bench-{name}.png")
    text = as_markdown(results)
    (out / "bench.md").write_text(text)
    (out / "bench.html").write_text(markdown_to_html(text, out))


def as_markdown(results: Results) -> str:
    """Formats all parts measured so far."""
    sections: list[Callable[[Results], Iterator[str]]] = [
        _machine,
        _targets,
        _throughput,
        _breakdown,
        _step_cost,
        _profile,
        _scaling,
        _reader,
        _quality,
        _fuxictr,
    ]
    blocks = [block for section in sections for block in section(results)]
    return "\n\n".join(["# Training speed", *blocks]) + "\n"


def target_table(results: Results) -> str:
    """Formats results beside their targets; empty where there are none."""
    rows = [
        [check.metric, check.result, check.target, "yes" if check.passed else "**no**"]
        for check in check_targets(results)
    ]
    return _table(["", "result", "target", "reached"], rows) if rows else ""


def _table(header: list[str], rows: list[list[str]]) -> str:
    return markdown_table(header, rows).strip()


def _machine(results: Results) -> Iterator[str]:
    machine, limits = results["machine"], results.get("limits")
    yield (
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}, "
        f"device {machine['device']}."
    )
    if limits:
        yield "## The machine's limits"
        rows = [
            [f"matrix product, {name}", f"{limits[f'gemm_{name}'] / 1e12:.3f} TFLOP/s"]
            for name in ("float32", "bfloat16")
        ]
        rows.append(["copy, read and written", f"{limits['copy'] / 1e9:.1f} GB/s"])
        for direction in ("forward", "backward"):
            speed = limits[f"lookup_{direction}"]
            text = f"{speed / 1e9:.1f} GB/s, {speed / limits['copy']:.0%} of copy"
            rows.append([f"FBGEMM's lookup, {direction}", text])
        yield _table(["", "at most"], rows)


def _targets(results: Results) -> Iterator[str]:
    if table := target_table(results):
        yield "## Targets"
        yield table


def _throughput(results: Results) -> Iterator[str]:
    if not (names := list(results.get("throughput", {}))):
        return
    yield "## Rows a second"
    header = [
        "trainer",
        "rows/s",
        "ms a step",
        "input wait",
        "x reference, median [range]",
        "of float32's limit*",
        "peak GiB",
    ]
    reference = throughput_of(results, REFERENCE)
    yield _table(header, [_throughput_row(results, name, reference) for name in names])
    yield (
        "\\* The method's arithmetic, every row by itself, over the machine's limit in that time: "
        "what a trainer spares counts as done."
    )
    yield "![Rows a second by trainer](bench-throughput.png)"


def _throughput_row(results: Results, name: str, reference: Throughput | None) -> list[str]:
    speed = throughput_of(results, name)
    assert speed is not None
    is_own = reference is not None and name != REFERENCE
    return [
        name,
        f"{speed.median:,.0f}",
        f"{1000 * speed.seconds_per_step:,.0f}",
        f"{speed.input_share:.1%}",
        str(SpeedRatio.between(speed, reference)) if is_own and reference else "",
        _fraction_of_limit(results, name, speed.seconds_per_step),
        f"{speed.peak_bytes / 2**30:.2f}",
    ]


def _fraction_of_limit(results: Results, name: str, seconds: float) -> str:
    cost, limits = results.get("step_cost", {}).get(name), results.get("limits")
    if not cost or not limits:
        return ""
    return f"{sum(cost['flops'].values()) / seconds / limits['gemm_float32']:.0%}"


def _breakdown(results: Results) -> Iterator[str]:
    if breakdown := results.get("breakdown"):
        yield "## Parts of a step, in milliseconds"
        rows = [
            [name, *(f"{1000 * parts[part]:,.1f}" for part in PARTS)]
            for name, parts in breakdown.items()
        ]
        yield _table(["trainer", *PARTS], rows)
        yield "![Parts of a step](bench-breakdown.png)"


def _step_cost(results: Results) -> Iterator[str]:
    if costs := results.get("step_cost"):
        yield "## Arithmetic and bytes of a step, by formula"
        parts = list(dict.fromkeys(part for cost in costs.values() for part in cost["flops"]))
        rows = [
            [
                name,
                *(f"{cost['flops'].get(part, 0) / 1e9:,.1f}" for part in parts),
                f"{cost['lookup_bytes'] / 1e6:,.0f}",
            ]
            for name, cost in costs.items()
        ]
        yield _table(["GFLOP", *parts, "MB of lookups"], rows)


def _profile(results: Results) -> Iterator[str]:
    if found := results.get("profile"):
        yield from profile_tables(found, results["limits"])


def _scaling(results: Results) -> Iterator[str]:
    if scaling := results.get("scaling"):
        yield "## Scaling"
        rows = [_scaling_row(axis, point) for axis, points in scaling.items() for point in points]
        yield _table(["", "value", "rows/s", "ms a step", "peak GiB"], rows)
        yield "![Seconds a step over batch, T, table rows and ranks](bench-scaling.png)"


def _scaling_row(axis: str, point: dict[str, Any]) -> list[str]:
    milliseconds = 1000 * point["seconds_per_step"]
    gigabytes = point["peak_bytes"] / 2**30
    numbers = f"{point['value']:,}", f"{point['median']:,.0f}", f"{milliseconds:,.0f}"
    return [axis, *numbers, f"{gigabytes:.2f}"]


def _reader(results: Results) -> Iterator[str]:
    if found := results.get("reader"):
        yield "## The reader alone, KuaiRand's columns"
        yield _table(["", "rows/s"], [[name, f"{rate:,.0f}"] for name, rate in found.items()])


def _quality(results: Results) -> Iterator[str]:
    if found := results.get("quality"):
        yield "## AUC"
        rows = [
            [name, _mean(each["aucs"]), f"{each['difference']['mean']:+.4f}"]
            for name, each in found.items()
        ]
        yield _table(["trainer", "AUC, mean over seeds", "less the reference's"], rows)


def _fuxictr(results: Results) -> Iterator[str]:
    if found := results.get("fuxictr"):
        yield f"## Beside {found['name']}"
        names = {"ours": "this project, DMR", "theirs": f"{found['name']}, DMR"}
        rows = [
            [name, f"{_median(found[key]['rows_per_second']):,.0f}", _mean(found[key]["auc"])]
            for key, name in names.items()
        ]
        yield _table(["", "rows/s", "AUC"], rows)
        yield f"{found['rows']} training rows, {found['threads']} threads each, in turns."


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.4f}"


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
