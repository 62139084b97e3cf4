"""Lifts as a picture."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from mail_torchrec.abtest.estimates import Estimate
from mail_torchrec.reporting.plots import INK, NEW, OLD, save, tidy


def draw_lifts(lifts: Mapping[str, Estimate | None], out_png: Path) -> None:
    """Draws each lift as a point with its interval, from above; None is left empty."""
    figure = Figure(figsize=(7.2, 1.1 + 0.36 * len(lifts)), layout="constrained")
    panel = figure.subplots()
    panel.axvline(0, color=INK, linewidth=0.8)
    for place, found in enumerate(lifts.values()):
        if found is None:
            continue
        clear = not found.low <= 0 <= found.high
        panel.plot(
            [found.low * 100, found.high * 100],
            [place, place],
            color=NEW if clear else OLD,
            linewidth=2.2,
        )
        panel.plot(found.value * 100, place, "o", color=NEW if clear else OLD, markersize=6)
    tidy(panel)
    panel.set_yticks(range(len(lifts)), list(lifts))
    panel.set_ylim(len(lifts) - 0.5, -0.5)
    panel.set_xlabel(
        "lift of the candidate over the base, %, 95 % intervals (red: clear of 0)", color=INK
    )
    save(figure, out_png)
