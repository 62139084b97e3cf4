"""Report of an A/B test, for the terminal and as Markdown, JSON and HTML."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mail_torchrec.abtest import checks
from mail_torchrec.abtest.arms import ARMS, CLICKS, CONVERSIONS, IMPRESSIONS, ExperimentArms
from mail_torchrec.abtest.estimates import MetricComparison
from mail_torchrec.abtest.formatting import estimate_text, p_text, verdict
from mail_torchrec.abtest.plots import draw_lifts
from mail_torchrec.abtest.since_first import SinceFirst
from mail_torchrec.abtest.since_first_plot import draw_since_first
from mail_torchrec.abtest.since_first_text import since_first_content, since_first_text
from mail_torchrec.reporting.cohorts import COHORT_NAMES
from mail_torchrec.reporting.html import markdown_to_html
from mail_torchrec.reporting.markdown import markdown_table
from mail_torchrec.utils.local_path import make_output_dir
from mail_torchrec.utils.run_files import write_report_file

_PLOT, _DAYS_PLOT = "lifts.png", "days.png"


@dataclass(frozen=True)
class AbTestReport:
    """Results of an A/B test."""

    arms: ExperimentArms
    comparisons: Mapping[str, Mapping[str, MetricComparison]]
    """Comparisons by cohort and metric."""
    method: str
    """Method of the intervals."""
    num_unclicked: int
    """Conversions without a click, which count as none."""
    since_first: SinceFirst | None = None
    """Read-out by days since the users' first exposures; None without days in the log."""

    @property
    def warnings(self) -> list[str]:
        """Reasons to doubt the metrics."""
        return list(checks.warnings(self.arms, self.comparisons))

    @property
    def notes(self) -> list[str]:
        """Remarks on the method and on what was left out."""
        return list(checks.notes(self.arms, self.method, self.num_unclicked))

    @property
    def verdicts(self) -> list[str]:
        """One sentence for each metric and cohort."""
        return [f"{name}: {verdict(found)}" for name, found in self._by_name().items()]

    def text(self) -> str:
        """Formats the report as Markdown that reads well on a terminal."""
        lines = [
            "# A/B test",
            "",
            *(f"**WARNING: {warning}**\n" for warning in self.warnings),
            *(f"- {sentence}" for sentence in self.verdicts),
            "",
            self._metrics_table(),
            self._counts_table(),
            *(f"{note}\n" for note in self.notes),
        ]
        if self.since_first is not None:
            lines.append(since_first_text(self.since_first))
        return "\n".join(lines).rstrip() + "\n"

    def content(self) -> dict[str, Any]:
        """Collects all numbers, for JSON."""
        arms = self.arms
        return {
            "versions": arms.versions,
            "cohorts": {cohort: self._cohort_content(cohort) for cohort in self.comparisons},
            "checks": {
                "sample_ratio": arms.sample_ratio and asdict(arms.sample_ratio),
                "users_in_both_arms": arms.num_in_both,
                "misassigned_users": arms.num_misassigned,
            },
            "other_impressions": arms.other_impressions,
            "conversions_without_click": self.num_unclicked,
            "intervals": self.method,
            "warnings": self.warnings,
            "verdicts": self.verdicts,
        } | ({} if self.since_first is None else {"days": since_first_content(self.since_first)})

    def write(self, out: Path) -> list[Path]:
        """Writes the report in every form, with a plot of the lifts; returns the paths."""
        make_output_dir(out)
        pictures = self._draw(out)
        images = [f"![{caption}]({name})\n" for name, caption in pictures.items()]
        text = "\n".join([self.text(), *images])
        bodies = {
            "html": markdown_to_html(text, out),
            "md": text,
            "json": json.dumps(self.content(), indent=2, allow_nan=False) + "\n",
        }
        for kind, body in bodies.items():
            write_report_file(out / f"report.{kind}", body)
        return [*(out / name for name in pictures), *(out / f"report.{kind}" for kind in bodies)]

    def _draw(self, out: Path) -> dict[str, str]:
        """Draws the pictures; returns their names and captions."""
        draw_lifts({name: found.lift for name, found in self._by_name().items()}, out / _PLOT)
        pictures = {_PLOT: "What the candidate gains over the base, 95 % intervals."}
        if self.since_first is not None:
            draw_since_first(self.since_first, out / _DAYS_PLOT)
            pictures[_DAYS_PLOT] = "By days since the first exposure, 95 % intervals."
        return pictures

    def _by_name(self) -> dict[str, MetricComparison]:
        return {
            f"{metric}, {COHORT_NAMES[cohort]}": found
            for cohort, metrics in self.comparisons.items()
            for metric, found in metrics.items()
        }

    def _cohort_content(self, cohort: str) -> dict[str, Any]:
        metrics = self.comparisons[cohort]
        return {
            "counts": {arm: self._counts(cohort, arm) for arm in ARMS},
            "metrics": {metric: asdict(found) for metric, found in metrics.items()},
        }

    def _metrics_table(self) -> str:
        rows = [
            [
                name,
                estimate_text(found.base),
                estimate_text(found.candidate),
                estimate_text(found.lift, "+"),
                p_text(found.p),
            ]
            for name, found in self._by_name().items()
        ]
        return markdown_table(["rate", *ARMS, "lift", "p"], rows)

    def _counts_table(self) -> str:
        shown = ["users", "impressions", "clicks"]
        if "CVR" in self.comparisons["all"]:
            shown.append("conversions")
        rows = []
        for cohort in self.comparisons:
            for arm in ARMS:
                counts = self._counts(cohort, arm)
                versions = ", ".join(self.arms.versions[arm])
                title = f"{arm} ({versions}), {COHORT_NAMES[cohort]}"
                rows.append([title, *(f"{counts[name]:,}" for name in shown)])
        return markdown_table(["arm", *shown], rows)

    def _counts(self, cohort: str, arm: str) -> dict[str, int]:
        sums_U3 = self.arms.sums_U3[cohort][arm]
        columns = {"impressions": IMPRESSIONS, "clicks": CLICKS, "conversions": CONVERSIONS}
        totals = sums_U3.sum(0)
        counts = {name: int(totals[column]) for name, column in columns.items()}
        return {"users": len(sums_U3)} | counts
