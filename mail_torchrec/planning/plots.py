"""Pictures of a plan: memory of every rank, where tables lie, and what a step is made of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mail_torchrec.embeddings.sharding_options import describe
from mail_torchrec.planning.estimate import TABLE_PARTS, Answer
from mail_torchrec.reporting.plots import INK, save, tidy

_GIB = 2**30
_COLOURS = {
    "table weights": "#2f6690", "optimizer state": "#81a4cd", "caches, inputs and outputs": "#c9d7e8",
    "towers": "#e0a458", "activations": "#c8553d", "mmd over all ranks": "#8f2d56",
    "lookup": "#2f6690", "communication": "#81a4cd", "dense": "#c8553d",
}  # fmt: skip
_MOST_TABLES = 30


def draw_memory(found: Answer, out_png: Path) -> None:
    """Draws the main memory of every rank, stacked by purpose, under what it may fill."""
    parts = {part: found.table_memory_R[part] / _GIB for part in TABLE_PARTS}
    dense = dict(found.dense_memory)
    ones = np.ones(found.case.ranks)
    parts["activations"] = ones * dense.pop("activations") / _GIB
    if (mmd := dense.pop("mmd over all ranks", 0.0)) > 0:
        parts["mmd over all ranks"] = ones * mmd / _GIB
    parts["towers"] = ones * sum(dense.values()) / _GIB
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    panel = figure.subplots()
    edges = np.arange(found.case.ranks + 1) - 0.5
    below = np.zeros(found.case.ranks)
    width = 1 if found.case.ranks > 64 else 0.8
    for part, gib_R in parts.items():
        if width < 1:
            panel.bar(
                range(found.case.ranks),
                gib_R,
                width,
                bottom=below,
                color=_COLOURS[part],
                label=part,
            )
        else:
            panel.stairs(
                below + gib_R, edges, baseline=below, fill=True, color=_COLOURS[part], label=part
            )
        below = below + gib_R
    capacity, total = (
        found.capacity / _GIB,
        (found.case.machine.hbm_gib or found.case.machine.host_gib),
    )
    panel.axhline(capacity, color=INK, linewidth=1.2, linestyle="--")
    panel.annotate(
        f"may be filled: {capacity:.0f} of {total:.0f} GiB", (1, capacity), xycoords=("axes fraction", "data"),
        xytext=(0, 3), textcoords="offset points", ha="right", fontsize=8.5, color=INK,
    )  # fmt: skip
    tidy(panel)
    panel.margins(x=0.01)
    panel.set_ylim(0, 1.12 * max(capacity, float(below.max())))
    panel.set_xlabel("rank", color=INK)
    panel.set_ylabel("GiB", color=INK)
    panel.set_title(
        f"Memory of every rank: {found.case.name}" + ("" if found.fits else " (does not fit)"),
        loc="left",
        color=INK,
        fontsize=11,
    )
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside right center", frameon=False, fontsize=8.5
    )
    save(figure, out_png)


def draw_placement(found: Answer, out_png: Path) -> None:
    """Draws which rank holds how much of which table: the largest tables, one a line, darker where more lies."""
    size = {
        table: float(choice.sizes_S2.prod(axis=1).sum())
        for table, (choice, _) in found.layout.chosen.items()
    }
    largest = sorted(size, key=lambda table: size[table], reverse=True)[:_MOST_TABLES]
    largest.sort(
        key=lambda table: (
            -len(found.layout.chosen[table][1]),
            int(found.layout.chosen[table][1][0]),
        )
    )
    bytes_TR = np.zeros((len(largest), found.case.ranks))
    for row, table in enumerate(largest):
        choice, ranks = found.layout.chosen[table]
        np.add.at(bytes_TR[row], ranks, 4.0 * choice.sizes_S2.prod(axis=1))
    figure = Figure(figsize=(8.4, 1.4 + 0.22 * len(largest)), layout="constrained")
    panel = figure.subplots()
    held = np.ma.masked_equal(bytes_TR, 0)
    low, high = float(held.min()), float(held.max())
    image = panel.imshow(
        held, aspect="auto", interpolation="nearest", cmap="Blues", norm=LogNorm(low / 30, max(high, low * 1.01)),
        extent=(-0.5, found.case.ranks - 0.5, len(largest) - 0.5, -0.5),
    )  # fmt: skip
    names = [f"{table}  ({describe(found.layout.chosen[table][0])})" for table in largest]
    panel.set_yticks(range(len(largest)), names, fontsize=8, color=INK)
    panel.set_xlabel("rank", color=INK)
    panel.tick_params(length=0, colors=INK)
    for side in panel.spines.values():
        side.set_color("#e4e4e4")
    if found.case.ranks <= 64:
        panel.set_xticks(np.arange(found.case.ranks + 1) - 0.5, minor=True)
    panel.set_yticks(np.arange(len(largest) + 1) - 0.5, minor=True)
    panel.grid(which="minor", color="white", linewidth=1)
    panel.tick_params(which="minor", length=0)
    more = f", the largest {len(largest)} of {len(size)} tables" if len(size) > len(largest) else ""
    panel.set_title(
        f"Where tables lie: {found.case.name}{more}", loc="left", color=INK, fontsize=11
    )
    bar = figure.colorbar(image, ax=panel, pad=0.01, fraction=0.025)
    bar.set_ticks([low, high] if high > 2 * low else [high])
    bar.ax.set_yticklabels(
        [_short(value) for value in ([low, high] if high > 2 * low else [high])],
        fontsize=8,
        color=INK,
    )
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    save(figure, out_png)


def draw_steps(answers: Sequence[Answer], out_png: Path) -> None:
    """Draws the parts of a step for every point, and the rows a second; points that do not fit are hatched."""
    figure = Figure(figsize=(8.4, 1.5 + 0.34 * len(answers)), layout="constrained")
    panel = figure.subplots()
    left = np.zeros(len(answers))
    for part in ("lookup", "communication", "dense"):
        width = np.array([getattr(found.step, part) for found in answers])
        bars = panel.barh(
            range(len(answers)), width, left=left, height=0.7, color=_COLOURS[part], label=part
        )
        for bar, found in zip(bars, answers, strict=True):
            if not found.fits:
                bar.set_alpha(0.35)
        left = left + width
    for place, found in enumerate(answers):
        text = f"  {found.rows_per_second / 1e6:.2f} M rows/s" + (
            "" if found.fits else ", does not fit"
        )
        panel.annotate(text, (left[place], place), va="center", fontsize=8.5, color=INK)
    panel.set_yticks(range(len(answers)), [found.case.name for found in answers], fontsize=8.5)
    panel.invert_yaxis()
    _frame(panel, left)
    panel.set_xlabel("estimated milliseconds a step", color=INK)
    panel.set_title("Parts of a step: ranks x rows a rank", loc="left", color=INK, fontsize=11)
    patches = [
        Patch(color=_COLOURS[part], label=part) for part in ("lookup", "communication", "dense")
    ]
    figure.legend(handles=patches, loc="outside upper right", ncols=3, frameon=False, fontsize=8.5)
    save(figure, out_png)


def _frame(panel: Any, left: Any) -> None:
    tidy(panel, "x")
    panel.margins(y=0.02)
    panel.set_xlim(0, 1.5 * float(left.max()))


def _short(value: float) -> str:
    return f"{value / _GIB:.1f} GiB" if value > 0.1 * _GIB else f"{value / 2**20:.1f} MiB"
