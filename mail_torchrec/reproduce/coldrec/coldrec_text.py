"""Rankings of methods by ColdRec's metrics as Markdown, and which gains are real."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mail_torchrec.reporting.intervals import Interval
from mail_torchrec.reporting.markdown import markdown_table
from mail_torchrec.reproduce.coldrec.held_out import SETTINGS
from mail_torchrec.reproduce.coldrec.ranking_metrics import RANKING_METRICS
from mail_torchrec.reproduce.table_text import (
    classify_difference,
    format_difference,
    format_mean,
)

Values = Mapping[tuple[str, str], Interval | None]
"""By setting and metric."""
_TITLES = {"recall": "recall", "ndcg": "NDCG"}
_COLUMNS = [(setting, metric) for setting in SETTINGS for metric in RANKING_METRICS]


@dataclass(frozen=True)
class ColdRecContent:
    """Rankings of all methods."""

    counts: str
    """Numbers of clicks, users, items and seeds, in words."""
    k: int
    """Length of the rankings."""
    means: Mapping[str, Values]
    differences: Mapping[str, Values]
    """From the first method, of all others."""
    base: str
    """The first method."""
    title: str = "New items by ColdRec's split and metrics"

    @property
    def verdicts(self) -> list[str]:
        """A sentence a method: whether its recall of cold items is clear of the base's."""
        return [
            f"{method} against {self.base}, recall@{self.k} of cold items: "
            f"{format_difference(found)}, {classify_difference(found)}."
            for method, values in self.differences.items()
            for found in [values["cold", "recall"]]
        ]

    def record(self) -> dict[str, Any]:
        """Returns the numbers, for JSON."""

        def plain(values: Values) -> dict[str, Any]:
            return {
                f"{setting}_{metric}": found and asdict(found)
                for (setting, metric), found in values.items()
            }

        parts = {"means": self.means, "differences": self.differences}
        return {"counts": self.counts, "k": self.k, "base": self.base} | {
            name: {method: plain(values) for method, values in part.items()}
            for name, part in parts.items()
        }


def _rows(
    of_methods: Mapping[str, Values], text: Callable[[Interval | None], str]
) -> list[list[str]]:
    return [
        [method, *(text(values[key]) for key in _COLUMNS)] for method, values in of_methods.items()
    ]


def format_coldrec(content: ColdRecContent) -> str:
    """Formats means, differences from the first method, and verdicts as Markdown."""
    titles = [f"{setting} {_TITLES[metric]}@{content.k}" for setting, metric in _COLUMNS]
    means = _rows(content.means, format_mean)
    differences = _rows(content.differences, format_difference)
    text = (
        f"## {content.title}\n\n{content.counts}.\n\n{markdown_table(['method', *titles], means)}"
    )
    if differences:
        header = [f"less {content.base}", *titles]
        text += f"\n{markdown_table(header, differences)}\n"
        text += "".join(f"- {verdict}\n" for verdict in content.verdicts)
    return text
