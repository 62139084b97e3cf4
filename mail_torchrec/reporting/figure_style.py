"""Colours and style shared by all plots, and writing a figure as PNG."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mail_torchrec.utils.run_files import atomic_file

NEW_USER_COLOUR, OLD_USER_COLOUR, TEXT_COLOUR = "#c8553d", "#2f6690", "#333333"
_GRID_COLOUR, _SPINE_COLOUR = "#e4e4e4", "#999999"


def style_axes(axes: Any, axis: str = "y") -> None:
    """Removes the box of a panel, and sets a pale grid along one axis and dark grey text.

    Args:
        axes: a Matplotlib ``Axes``.
        axis: ``y``, or ``x`` for horizontal bars and dots.
    """
    axes.grid(axis=axis, color=_GRID_COLOUR, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in ("top", "right", "left" if axis == "x" else "top"):
        axes.spines[spine].set_visible(False)
    for spine in ("bottom", "left"):
        axes.spines[spine].set_color(_SPINE_COLOUR)
    axes.tick_params(colors=TEXT_COLOUR, labelsize=9, length=0)
    axes.margins(x=0.12 if axis == "x" else 0.02)


def plain_text(name: str) -> str:
    """Escapes a name for Matplotlib, which takes what two dollars enclose as a formula."""
    return name.replace("$", r"\$")


def save_figure(figure: Figure, out_png: Path) -> None:
    """Writes a figure as PNG.

    Without pyplot there is no global list of figures: this one is freed with its last reference.
    """
    FigureCanvasAgg(figure)
    with atomic_file(out_png) as file:
        figure.savefig(file, format="png", dpi=150, facecolor="white")
