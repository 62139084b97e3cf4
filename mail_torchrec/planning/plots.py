"""Plots of a plan: memory of every rank, placement of the tables, parts of a step.

Shape letters: ``R`` ranks, ``T`` tables, ``S`` shards of one table, ``E`` estimates.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mail_torchrec.embeddings.partitioner import Placement
from mail_torchrec.embeddings.sharding_options import FloatArray
from mail_torchrec.planning.estimate import TABLE_PARTS, PlanEstimate
from mail_torchrec.reporting.figure_style import TEXT_COLOUR, plain_text, save_figure, style_axes
from mail_torchrec.train.cost.pair_losses import ALIGNMENT, ITEM_CONTRAST

_GIB = 2**30
_STEP_PARTS = ("lookup", "communication", "dense")
_COLOURS = {
    "table weights": "#2f6690",
    "optimizer state": "#81a4cd",
    "caches, inputs and outputs": "#c9d7e8",
    "copies for checkpoints": "#e4ebf3",
    "towers": "#e0a458",
    "activations": "#c8553d",
    ALIGNMENT: "#8f2d56",
    ITEM_CONTRAST: "#c38ba1",
    "lookup": "#2f6690",
    "communication": "#81a4cd",
    "dense": "#c8553d",
}
_FRAME_COLOUR = "#e4e4e4"
_MOST_TABLES = 30
# Bars of more ranks are too narrow for gaps between them.
_MOST_BARS = 64


def draw_memory(estimate: PlanEstimate, out_png: Path) -> None:
    """Draws the main memory of every rank, stacked by purpose, below its capacity."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    axes = figure.subplots()
    total_R = _stack_memory(axes, _memory_parts_R(estimate))
    style_axes(axes)
    axes.margins(x=0.01)
    axes.set_ylim(0, 1.12 * max(estimate.capacity / _GIB, float(total_R.max())))
    axes.set_xlabel("rank", color=TEXT_COLOUR)
    axes.set_ylabel("GiB", color=TEXT_COLOUR)
    _draw_capacity(axes, estimate)
    suffix = "" if estimate.fits else " (does not fit)"
    _set_title(axes, f"Memory of every rank: {estimate.scenario.name}{suffix}")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside right center", frameon=False, fontsize=8.5
    )
    save_figure(figure, out_png)


def _draw_capacity(axes: Any, estimate: PlanEstimate) -> None:
    hardware = estimate.scenario.hardware
    capacity, total = estimate.capacity / _GIB, hardware.hbm_gib or hardware.host_gib
    axes.axhline(capacity, color=TEXT_COLOUR, linewidth=1.2, linestyle="--")
    axes.annotate(
        f"may be filled: {capacity:.0f} of {total:.0f} GiB",
        (1, capacity),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        color=TEXT_COLOUR,
    )


def _memory_parts_R(estimate: PlanEstimate) -> dict[str, FloatArray]:
    """Returns the GiB of every rank by purpose, the tables' first."""
    of_tables_R = estimate.table_memory_R
    parts_R = {part: of_tables_R[part] / _GIB for part in TABLE_PARTS if of_tables_R[part].any()}
    dense = dict(estimate.dense_memory)
    ones_R = np.ones(estimate.scenario.group.world_size)
    parts_R["activations"] = ones_R * dense.pop("activations") / _GIB
    for purpose in (ALIGNMENT, ITEM_CONTRAST):
        if (num_bytes := dense.pop(purpose, 0.0)) > 0:
            parts_R[purpose] = ones_R * num_bytes / _GIB
    parts_R["towers"] = ones_R * sum(dense.values()) / _GIB
    return parts_R


def _stack_memory(axes: Any, parts_R: dict[str, FloatArray]) -> FloatArray:
    """Stacks the parts of every rank and returns their sum, ``[ranks]``."""
    world_size = len(parts_R["towers"])
    edges = np.arange(world_size + 1) - 0.5
    below_R = np.zeros(world_size)
    for part, gib_R in parts_R.items():
        style = {"color": _COLOURS[part], "label": part}
        if world_size <= _MOST_BARS:
            axes.bar(range(world_size), gib_R, 0.8, bottom=below_R, **style)
        else:
            axes.stairs(below_R + gib_R, edges, baseline=below_R, fill=True, **style)
        below_R = below_R + gib_R
    return below_R


def draw_placement(estimate: PlanEstimate, out_png: Path) -> None:
    """Draws the bytes that every rank holds of each of the largest tables, one table a line."""
    placements = estimate.plan.placements
    largest = _largest_tables(placements)
    bytes_TR = _held_bytes_TR([placements[table] for table in largest], estimate)
    figure = Figure(figsize=(8.4, 1.4 + 0.22 * len(largest)), layout="constrained")
    axes = figure.subplots()
    _draw_bytes(figure, axes, bytes_TR)
    names = [f"{plain_text(table)}  ({placements[table].option.describe()})" for table in largest]
    axes.set_yticks(range(len(largest)), names, fontsize=8, color=TEXT_COLOUR)
    _style_grid(axes, *bytes_TR.shape)
    left_out = len(placements) > len(largest)
    of_all = f", the largest {len(largest)} of {len(placements)} tables" if left_out else ""
    _set_title(axes, f"Placement of the tables: {estimate.scenario.name}{of_all}")
    save_figure(figure, out_png)


def _held_bytes_TR(placements: Sequence[Placement], estimate: PlanEstimate) -> FloatArray:
    """Returns the bytes of weights that every rank holds of each table."""
    bytes_TR = np.zeros((len(placements), estimate.scenario.group.world_size))
    for row, (option, ranks_S) in enumerate(placements):
        np.add.at(bytes_TR[row], ranks_S, 4.0 * option.sizes_S2.prod(axis=1))
    return bytes_TR


def _largest_tables(placements: dict[str, Placement]) -> list[str]:
    """Returns the largest tables, those with most shards first, then by their first rank."""

    def num_values(table: str) -> float:
        return float(placements[table].option.sizes_S2.prod(axis=1).sum())

    def order(table: str) -> tuple[int, int]:
        ranks_S = placements[table].ranks_S
        return -len(ranks_S), int(ranks_S[0])

    return sorted(sorted(placements, key=num_values, reverse=True)[:_MOST_TABLES], key=order)


def _draw_bytes(figure: Figure, axes: Any, bytes_TR: FloatArray) -> None:
    """Draws more bytes darker, with a colour bar."""
    held_TR = np.ma.masked_equal(bytes_TR, 0)
    low, high = float(held_TR.min()), float(held_TR.max())
    num_tables, world_size = bytes_TR.shape
    image = axes.imshow(
        held_TR,
        aspect="auto",
        interpolation="nearest",
        cmap="Blues",
        norm=LogNorm(low / 30, max(high, low * 1.01)),
        extent=(-0.5, world_size - 0.5, num_tables - 0.5, -0.5),
    )
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.025)
    ticks = [low, high] if high > 2 * low else [high]
    labels = [_format_bytes(value) for value in ticks]
    bar.set_ticks(ticks)
    bar.ax.set_yticklabels(labels, fontsize=8, color=TEXT_COLOUR)
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)


def _style_grid(axes: Any, num_tables: int, world_size: int) -> None:
    axes.set_xlabel("rank", color=TEXT_COLOUR)
    axes.tick_params(length=0, colors=TEXT_COLOUR)
    for spine in axes.spines.values():
        spine.set_color(_FRAME_COLOUR)
    if world_size <= _MOST_BARS:
        axes.set_xticks(np.arange(world_size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(num_tables + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)


def draw_steps(estimates: Sequence[PlanEstimate], out_png: Path) -> None:
    """Draws the parts of a step and the rows a second of every scenario.

    Scenarios that do not fit are pale.
    """
    figure = Figure(figsize=(8.4, 1.5 + 0.34 * len(estimates)), layout="constrained")
    axes = figure.subplots()
    total_E = _stack_steps(axes, estimates)
    for place, (total, estimate) in enumerate(zip(total_E, estimates, strict=True)):
        text = f"  {estimate.rows_per_second / 1e6:.2f} M rows/s"
        text += "" if estimate.fits else ", does not fit"
        axes.annotate(text, (total, place), va="center", fontsize=8.5, color=TEXT_COLOUR)
    names = [estimate.scenario.name for estimate in estimates]
    axes.set_yticks(range(len(estimates)), names, fontsize=8.5)
    axes.invert_yaxis()
    style_axes(axes, "x")
    axes.margins(y=0.02)
    axes.set_xlim(0, 1.5 * float(total_E.max()))
    axes.set_xlabel("estimated milliseconds a step", color=TEXT_COLOUR)
    _set_title(axes, "Parts of a step: ranks x rows a rank")
    patches = [Patch(color=_COLOURS[part], label=part) for part in _STEP_PARTS]
    figure.legend(handles=patches, loc="outside upper right", ncols=3, frameon=False, fontsize=8.5)
    save_figure(figure, out_png)


def _stack_steps(axes: Any, estimates: Sequence[PlanEstimate]) -> FloatArray:
    """Stacks the parts of every step as bars and returns their sum, ``[estimates]``."""
    left_E = np.zeros(len(estimates))
    for part in _STEP_PARTS:
        ms_E = np.array([getattr(estimate.step_time, part) for estimate in estimates])
        style = {"height": 0.7, "color": _COLOURS[part], "label": part}
        bars = axes.barh(range(len(estimates)), ms_E, left=left_E, **style)
        for bar, estimate in zip(bars, estimates, strict=True):
            if not estimate.fits:
                bar.set_alpha(0.35)
        left_E = left_E + ms_E
    return left_E


def _set_title(axes: Any, title: str) -> None:
    axes.set_title(plain_text(title), loc="left", color=TEXT_COLOUR, fontsize=11)


def _format_bytes(value: float) -> str:
    return f"{value / _GIB:.1f} GiB" if value > 0.1 * _GIB else f"{value / 2**20:.1f} MiB"
