"""Formats a curve as Markdown, and says in words where which gains are real."""

from collections.abc import Callable, Sequence
from functools import partial

from mail_torchrec.reporting.markdown import markdown_table
from mail_torchrec.reproduce.curves.values import CurveContent, CurveValue
from mail_torchrec.reproduce.methods.definitions import METHODS
from mail_torchrec.reproduce.table_text import (
    classify_difference,
    format_difference,
    format_mean,
    format_share,
)


def format_curve(content: CurveContent, verdicts: Sequence[str]) -> str:
    """Formats tables of headroom, of both cohorts' AUC and of the differences.

    Args:
        content: of the curve.
        verdicts: sentences that go below the tables.
    """
    seeds = f"Means over {content.num_seeds} seeds" if content.num_seeds > 1 else "One seed"
    text = (
        f"## {content.title}\n\nEvery method is trained at each point (the {content.over}); the "
        f"test rows are the same for all. {seeds}; 95 % intervals in brackets, by a paired "
        f"bootstrap over users and seeds ({content.num_resamples} resamples). A gain is real where "
        "its interval is clear of 0.\n\n"
    )
    remedies = [name for name in content.methods if _is_remedy(name)]
    headroom = _table(
        content, "headroom recovered", remedies, lambda value: format_share(value.headroom)
    )
    text += headroom if any(value.headroom for value in content.values.values()) else ""
    for cohort in ("new", "old"):
        text += _table(
            content,
            f"{cohort} users' AUC",
            content.methods,
            partial(_auc, cohort),
        )
    for reference in content.references:
        compared = [name for name in content.methods if reference in content.references_of(name)]
        for cohort in ("new", "old"):
            text += _table(
                content,
                f"{cohort} users, less {reference}",
                compared,
                partial(_difference, cohort, reference),
            )
    return text + "".join(f"- {verdict}\n" for verdict in verdicts)


def _auc(cohort: str, value: CurveValue) -> str:
    return format_mean(value.metrics[cohort]["auc"])


def _difference(cohort: str, reference: str, value: CurveValue) -> str:
    return format_difference(value.differences[reference][cohort]["auc"])


def curve_verdicts(content: CurveContent) -> list[str]:
    """Says of each remedy where its gains are real, over its base and each control."""
    plain = [name for name in content.methods if METHODS[name].base is None]
    remedies = [name for name in content.methods if _is_remedy(name)]
    return [
        *(_course(content, name) for name in plain),
        *(_verdict(content, name) for name in remedies if content.references_of(name)),
    ]


def _table(
    content: CurveContent, title: str, methods: Sequence[str], cell: Callable[[CurveValue], str]
) -> str:
    rows = [[name, *map(cell, content.along(name))] for name in methods]
    return markdown_table([title, *content.points.values()], rows) + "\n"


def _is_remedy(name: str) -> bool:
    return METHODS[name].base is not None and not METHODS[name].is_oracle


def _course(content: CurveContent, name: str) -> str:
    """Says what the plain tower has at both ends of the curve."""
    values, titles = content.along(name), list(content.points.values())
    new, old = (
        [format_mean(value.metrics[cohort]["auc"]) for value in values] for cohort in ("new", "old")
    )
    return (
        f"{name} alone: new users' AUC {new[0]} at {titles[0]} and {new[-1]} at {titles[-1]}, old "
        f"users' {old[0]} and {old[-1]}."
    )


def _verdict(content: CurveContent, name: str) -> str:
    gains = [
        f"over {reference} at {_places(content, name, reference, 'new', 'a gain')}"
        for reference in content.references_of(name)
    ]
    base = content.references_of(name)[0]
    found = content.along(name)
    best = max(found, key=lambda value: value.headroom.mean if value.headroom else float("-inf"))
    share = ""
    if best.headroom is not None:
        share = (
            f" Most of the headroom at {content.points[best.point]}: {format_share(best.headroom)}."
        )
    losses = _places(content, name, base, "old", "a loss")
    return (
        f"{name}: gains of new users are real {'; '.join(gains)}; old users lose, against {base}, "
        f"at {losses}.{share}"
    )


def _places(content: CurveContent, name: str, reference: str, cohort: str, kind: str) -> str:
    """Lists the points at which a difference in AUC is a gain, or a loss."""
    places = [
        content.points[value.point]
        for value in content.along(name)
        if classify_difference(value.differences[reference][cohort]["auc"]) == kind
    ]
    return "no point" if not places else ", ".join(places)
