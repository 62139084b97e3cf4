"""Tables and picture of ``kuairand_days.py``: AUC by day and cohort, and time by day."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mail_torchrec.daily.chain import read_chains
from mail_torchrec.metrics.auc import auc
from mail_torchrec.reporting.figure_style import TEXT_COLOUR, save_figure, style_axes
from mail_torchrec.reporting.intervals import Interval, seed_interval
from mail_torchrec.reporting.markdown import markdown_table

ARMS = ("continued", "no new ids", "retrained", "frozen")
COHORTS = ("all", "new users", "old users", "new items", "old items")
COLOURS = ("#c8553d", "#e0a458", "#2f6690", "#888888")
BASE = "continued"

Cohorts = dict[str, NDArray[np.bool_]]
Scores = dict[tuple[str, str, str], list[float | None]]
"""Arm, day and cohort -> AUC of each seed."""


def cohorts_by_day(data: Path, days: Sequence[str]) -> dict[str, Cohorts]:
    """Marks the rows of each day whose user, or whose video, no earlier day showed."""
    known = {"users": np.empty(0, np.int64), "items": np.empty(0, np.int64)}
    found = {}
    for day in days:
        columns = {"users": "user_id", "items": "video_id"}
        rows = pq.read_table(data / f"day={day}" / "rows.parquet", columns=list(columns.values()))
        cohorts: Cohorts = {"all": np.ones(len(rows), np.bool_)}
        for kind, column in columns.items():
            ids = rows[column].to_numpy()
            is_old = np.isin(ids, known[kind])
            cohorts |= {f"new {kind}": ~is_old, f"old {kind}": is_old}
            known[kind] = np.union1d(known[kind], ids)
        found[day] = cohorts
    return found


def predictions_of(seed: Path, arm: str, days: Sequence[str], number: int) -> Path:
    """Names the predictions of an arm for the day of that number, from 1 on."""
    before = days[number - 1]
    if number == 1:
        return seed / "first" / "predictions"
    if arm == "frozen":
        return seed / f"frozen-{days[number]}"
    return seed / f"{arm.replace(' ', '-')}-{before}" / "predictions"


def read_scores(
    seeds: Sequence[Path], arms: Sequence[str], days: Sequence[str], cohorts: dict[str, Cohorts]
) -> Scores:
    """Computes the AUC of each arm, day, cohort and seed."""
    scores: Scores = {}
    for number, day in enumerate(days[1:], start=1):
        for arm in arms:
            for seed in seeds:
                table = pq.read_table(predictions_of(seed, arm, days, number))
                order = np.argsort(table["file_row_number"].to_numpy())
                label, logit = (table[name].to_numpy()[order] for name in ("label", "logit"))
                for cohort, rows in cohorts[day].items():
                    value = auc(logit[rows], label[rows]) if rows.any() else np.nan
                    known = None if np.isnan(value) else float(value)
                    scores.setdefault((arm, day, cohort), []).append(known)
    return scores


def read_seconds(
    seeds: Sequence[Path], arm: str, day: str
) -> tuple[Interval | None, Interval | None]:
    """Averages the seconds of an arm's commands of a day, and of the training steps in them."""
    name = f"{arm.replace(' ', '-')}-{day}"
    marks = [json.loads((seed / f"{name}.json").read_text()) for seed in seeds]
    steps = [read_chains([seed / name])[0].runs[-1].seconds for seed in seeds]
    return seed_interval([mark["seconds"] for mark in marks]), seed_interval(steps)


def write_page(
    seeds: Sequence[Path], data: Path, days: Sequence[str], arms: Sequence[str], page: Path
) -> None:
    """Writes the page and its picture.

    Args:
        seeds: folders of the seeds.
        data: folder of the prepared days.
        days: all of them; the first one is not scored.
        arms: that were trained.
        page: the Markdown file; the picture stands beside it.
    """
    cohorts = cohorts_by_day(data, days)
    scores = read_scores(seeds, arms, days, cohorts)
    picture = page.with_suffix(".png")
    page.parent.mkdir(parents=True, exist_ok=True)
    draw(scores, arms, days[1:], picture)
    blocks = [
        *_head(len(seeds), picture.name),
        "**AUC of all rows by day**",
        _day_table(scores, arms, days[1:], "all", cohorts),
        "**AUC by cohort, mean of the days**, and differences from `continued` paired by seed",
        _cohort_table(scores, arms, days[1:]),
        "**Seconds of a day's command** and of its training steps, and rows that it trained on",
        _time_table(seeds, arms, days, cohorts),
    ]
    page.write_text("\n\n".join(block.rstrip() for block in blocks) + "\n", encoding="utf-8")


def _head(num_seeds: int, picture: str) -> list[str]:
    return [
        "# KuaiRand day by day",
        "DMR on KuaiRand-Pure (Gao et al., CIKM 2022, CC BY-SA 4.0), 25 to 30 April 2022, with the "
        "users' ids as a feature.\nHistories hold what was watched before the day. Each day is "
        "scored by models of the days before it:",
        "- *continued*: `train --continue` with managed ids, one epoch of each day's rows;\n"
        "- *no new ids*: the same with the ids of the first day;\n"
        "- *retrained*: a new model of all days so far, one epoch;\n"
        "- *frozen*: the first day's model.",
        "```bash\npython tools/kuairand_days.py --data FOLDER --out runs/kuairand-days "
        f"--seeds {num_seeds} --jobs 2 --page tools/results/kuairand-days.md\n```",
        f"Means of {num_seeds} seeds; ± is half a 95 % interval over seeds. A new user, or a new "
        "item, has no row on an earlier day. On the second day all are the first day's model.",
        f"![AUC of all rows by day]({picture})",
    ]


def _day_table(
    scores: Scores,
    arms: Sequence[str],
    days: Sequence[str],
    cohort: str,
    cohorts: Mapping[str, Cohorts],
) -> str:
    others = [arm for arm in arms if arm != BASE and BASE in arms]
    header = ["day", "rows", "new users' rows", "new items' rows", *arms]
    header += [f"{BASE} - {arm}" for arm in others]
    lines = []
    for day in days:
        counts = [cohorts[day][name].sum() for name in ("all", "new users", "new items")]
        line = [day, *(f"{count:,}" for count in counts)]
        line += [_value(seed_interval(scores[arm, day, cohort])) for arm in arms]
        line += [_gain(_paired(scores[BASE, day, cohort], scores[o, day, cohort])) for o in others]
        lines.append(line)
    return markdown_table(header, lines)


def _cohort_table(scores: Scores, arms: Sequence[str], days: Sequence[str]) -> str:
    others = [arm for arm in arms if arm != BASE and BASE in arms]
    lines = []
    for cohort in COHORTS:
        means = {arm: _means([scores[arm, day, cohort] for day in days]) for arm in arms}
        line = [cohort, *(_value(seed_interval(means[arm])) for arm in arms)]
        lines.append([*line, *(_gain(_paired(means[BASE], means[arm])) for arm in others)])
    return markdown_table(["rows of", *arms, *(f"{BASE} - {arm}" for arm in others)], lines)


def _time_table(
    seeds: Sequence[Path], arms: Sequence[str], days: Sequence[str], cohorts: Mapping[str, Cohorts]
) -> str:
    trained = [arm for arm in arms if arm != "frozen"]
    rows = {day: len(cohorts[day]["all"]) for day in days}
    shown_of_arm = ("rows", "seconds", "of steps")
    header = ["day", *(f"{arm}: {what}" for arm in trained for what in shown_of_arm)]
    lines = []
    for number, day in enumerate(days[1:-1], start=1):
        line = [day]
        for arm in trained:
            shown = days[: number + 1] if arm == "retrained" else [day]
            line.append(f"{sum(rows[one] for one in shown):,}")
            for one in read_seconds(seeds, arm, day):
                line.append("-" if one is None else f"{one.mean:.1f}{_half(one, 1)}")
        lines.append(line)
    return markdown_table(header, lines)


def _means(by_day: Sequence[list[float | None]]) -> list[float | None]:
    """Averages over days, seed by seed; None where a day has none."""
    found: list[float | None] = []
    for values in zip(*by_day, strict=True):
        known = [value for value in values if value is not None]
        found.append(float(np.mean(known)) if len(known) == len(values) else None)
    return found


def _paired(ours: Sequence[float | None], theirs: Sequence[float | None]) -> Interval | None:
    pairs = zip(ours, theirs, strict=True)
    return seed_interval([None if a is None or b is None else a - b for a, b in pairs])


def _value(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.mean:.4f}{_half(interval, 4)}"


def _gain(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.mean:+.4f}{_half(interval, 4)}"


def _half(interval: Interval, digits: int) -> str:
    half = interval.half_width
    return "" if half is None else f" ± {half:.{digits}f}"


def draw(scores: Scores, arms: Sequence[str], days: Sequence[str], out_png: Path) -> None:
    """Draws the AUC by day, a line an arm, with intervals over seeds."""
    figure = Figure(figsize=(10.0, 3.6), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True)
    for panel, cohort in zip(panels, ("all", "new users", "old users"), strict=True):
        for arm, colour in zip(arms, COLOURS, strict=False):
            found = [seed_interval(scores[arm, day, cohort]) for day in days]
            means = [np.nan if one is None else one.mean for one in found]
            halves = [0.0 if one is None else one.half_width or 0.0 for one in found]
            panel.errorbar(range(len(days)), means, halves, color=colour, label=arm, marker="o")
        panel.set_title(f"AUC, {cohort}", loc="left", fontsize=10, color=TEXT_COLOUR)
        panel.set_xticks(range(len(days)), [day[5:] for day in days])
        style_axes(panel)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(arms), frameon=False)
    save_figure(figure, out_png)
