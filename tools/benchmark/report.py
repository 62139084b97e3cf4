"""A run's figures as Markdown, one HTML page, JSON and pictures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mail_torchrec.reporting.comparison import table
from mail_torchrec.reporting.html import as_html
from tools.benchmark.interleaved import Ratio
from tools.benchmark.pictures import draw_growth, draw_rates, draw_split
from tools.benchmark.sides import REFERENCE
from tools.benchmark.split import PARTS
from tools.benchmark.verdicts import Results, rate, verdicts


def write_report(results: Results, out: Path) -> None:
    """Writes ``bench.json``, ``bench.md``, ``bench.html`` and a picture of each part into a folder that exists."""
    judged = [vars(verdict) for verdict in verdicts(results)]
    (out / "bench.json").write_text(json.dumps(results | {"verdicts": judged}, indent=2) + "\n")
    for name, draw in (("sides", draw_rates), ("split", draw_split), ("growth", draw_growth)):
        if name in results:
            draw(results[name], out / f"bench-{name}.png")
    text = as_markdown(results)
    (out / "bench.md").write_text(text)
    (out / "bench.html").write_text(as_html(text, out))


def as_markdown(results: Results) -> str:
    """All parts that there are."""
    sections = [_machine, _verdicts, _sides, _split, _counts, _growth, _reader, _quality, _peer]
    return (
        "\n\n".join(
            [
                "# How fast training is",
                *(block for section in sections for block in section(results)),
            ]
        )
        + "\n"
    )


def verdict_table(results: Results) -> str:
    """The judged lines; empty where there are none."""
    lines = [
        [verdict.what, verdict.found, verdict.wanted, "yes" if verdict.passed else "**no**"]
        for verdict in verdicts(results)
    ]
    return table(["", "found", "wanted", "reached"], lines).strip() if lines else ""


def _machine(results: Results) -> Iterator[str]:
    machine, limits = results["machine"], results.get("limits")
    yield f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}, device {machine['device']}."
    if limits:
        yield "## The machine's own limits"
        products = [
            [name.removeprefix("gemm_"), f"{limits[name] / 1e12:.3f} TFLOP/s"]
            for name in ("gemm_float32", "gemm_bfloat16")
        ]
        moves = [["copy, read and written", f"{limits['copy'] / 1e9:.1f} GB/s"]]
        for way in ("forward", "backward"):
            found = limits[f"lookup_{way}"]
            moves.append(
                [
                    f"FBGEMM's lookup, {way}",
                    f"{found / 1e9:.1f} GB/s, {found / limits['copy']:.0%} of copy",
                ]
            )
        yield table(
            ["", "at most"], [["matrix product, " + name, text] for name, text in products] + moves
        ).strip()


def _verdicts(results: Results) -> Iterator[str]:
    if judged := verdict_table(results):
        yield "## What was wanted"
        yield judged


def _sides(results: Results) -> Iterator[str]:
    sides = results.get("sides")
    if not sides:
        return
    yield "## Side by side"
    reference, lines = rate(results, REFERENCE), []
    for name in sides:
        found = rate(results, name)
        assert found is not None
        ratio = str(Ratio.of(found, reference)) if reference and name != REFERENCE else ""
        cells = [
            name,
            f"{found.median:,.0f}",
            f"{1000 * found.seconds_per_step:,.0f}",
            f"{found.input_share:.1%}",
            ratio,
        ]
        lines.append(
            [
                *cells,
                _fraction(results, name, found.seconds_per_step),
                f"{found.peak_bytes / 2**30:.2f}",
            ]
        )
    head = [
        "side",
        "rows/s",
        "ms a step",
        "input wait",
        "x reference, median [range]",
        "of float32's limit*",
        "peak GiB",
    ]
    yield table(head, lines).strip()
    yield "\\* The method's arithmetic, every row by itself, over what the machine does in that time: what a side spares counts as done."
    yield "![Rows a second by side](bench-sides.png)"


def _fraction(results: Results, name: str, seconds: float) -> str:
    counts, limits = results.get("counts", {}).get(name), results.get("limits")
    return (
        f"{sum(counts['flops'].values()) / seconds / limits['gemm_float32']:.0%}"
        if counts and limits
        else ""
    )


def _split(results: Results) -> Iterator[str]:
    if split := results.get("split"):
        yield "## Where a step's time goes, in milliseconds"
        lines = [
            [name, *(f"{1000 * parts[part]:,.1f}" for part in PARTS)]
            for name, parts in split.items()
        ]
        yield table(["side", *PARTS], lines).strip()
        yield "![Parts of a step](bench-split.png)"


def _counts(results: Results) -> Iterator[str]:
    if counts := results.get("counts"):
        yield "## Arithmetic and bytes of a step, by formula"
        parts = list(dict.fromkeys(part for found in counts.values() for part in found["flops"]))
        lines = [
            [
                name,
                *(f"{found['flops'].get(part, 0) / 1e9:,.1f}" for part in parts),
                f"{found['bytes_looked_up'] / 1e6:,.0f}",
            ]
            for name, found in counts.items()
        ]
        yield table(["GFLOP", *parts, "MB looked up"], lines).strip()


def _growth(results: Results) -> Iterator[str]:
    if growth := results.get("growth"):
        yield "## How the cost grows"
        lines = [
            [axis, f"{point['value']:,}", f"{point['median']:,.0f}", f"{1000 * point['seconds_per_step']:,.0f}",
             f"{point['peak_bytes'] / 2**30:.2f}"]
            for axis, points in growth.items() for point in points
        ]  # fmt: skip
        yield table(["", "value", "rows/s", "ms a step", "peak GiB"], lines).strip()
        yield "![Seconds a step over batch, T, table rows and ranks](bench-growth.png)"


def _reader(results: Results) -> Iterator[str]:
    if found := results.get("reader"):
        yield "## The reader alone, KuaiRand's columns"
        yield table(
            ["", "rows/s"], [[name, f"{value:,.0f}"] for name, value in found.items()]
        ).strip()


def _quality(results: Results) -> Iterator[str]:
    if found := results.get("quality"):
        yield "## AUC"
        lines = [
            [name, _mean(side["aucs"]), f"{side['difference']['mean']:+.4f}"]
            for name, side in found.items()
        ]
        yield table(["side", "AUC, mean over seeds", "less the reference's"], lines).strip()


def _peer(results: Results) -> Iterator[str]:
    if found := results.get("peer"):
        yield f"## Beside {found['name']}"
        sides: list[tuple[str, Any]] = [
            ("this project, DMR", found["ours"]),
            (f"{found['name']}, DMR", found["theirs"]),
        ]
        lines = [
            [name, f"{_median(side['rows_per_second']):,.0f}", _mean(side["auc"])]
            for name, side in sides
        ]
        yield table(["", "rows/s", "AUC"], lines).strip()
        yield f"{found['rows']} training rows, {found['threads']} threads each, in turns."


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.4f}"


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
