"""What an A/B test says: for the terminal, as Markdown, as JSON, as one HTML page."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mail_torchrec.abtest.arms import ARMS, CLICKS, CONVERSIONS, IMPRESSIONS, Arms
from mail_torchrec.abtest.estimates import FIGURES, Comparison, Estimate
from mail_torchrec.abtest.plots import draw_lifts
from mail_torchrec.reporting.comparison import table
from mail_torchrec.reporting.html import as_html

WHOSE = {"all": "all users", "new": "new users", "old": "old users"}
_UNLIKELY = 0.001  # below it the arms' users are not an accident
_MANY_BOTH = 0.01  # share of users who met both arms above which the test itself is doubtful
_FEW = 30  # users with an event, below which no interval is to be trusted


@dataclass(frozen=True)
class Report:
    """Everything that is told."""

    arms: Arms
    comparisons: Mapping[str, Mapping[str, Comparison]]
    """Part -> figure -> comparison."""
    method: str
    """How the intervals were made."""
    unclicked: int
    """Conversions without a click, which count as none."""

    @property
    def warnings(self) -> list[str]:
        """What makes the figures doubtful."""
        arms, found = self.arms, []
        if (mismatch := arms.mismatch) is not None and mismatch.p < _UNLIKELY:
            found.append(
                f"sample ratio mismatch: {_percent(mismatch.found, 3)} of the users met the "
                "candidate, and "
                f"{_percent(mismatch.expected, 3)} should have (p = {mismatch.p:.1g}); find the "
                "cause (lost logs, a changed split, "
                "requests that fail in one arm) before you believe any figure below"
            )
        if arms.num_both:
            share = arms.num_both / arms.num_users
            doubt = "; so many that the test itself is doubtful" if share > _MANY_BOTH else ""
            found.append(
                f"{arms.num_both:,} users ({_percent(share, 2)}) met both arms; they are left "
                f"out{doubt}"
            )
        if arms.num_misplaced:
            found.append(
                f"{arms.num_misplaced:,} users met the version that the split does not give them "
                "(another salt or share, or requests that "
                "named a version); they count where they were"
            )
        found += [
            f"{figure} of {WHOSE[part]}: only {number} users of the {arm} had an event, too few "
            "for its interval"
            for part, of_part in self.comparisons.items() for figure in of_part for arm in ARMS
            if (number := int((arms.sums_U3[part][arm][:, FIGURES[figure][0]] > 0).sum())) < _FEW
        ]  # fmt: skip
        return found

    @property
    def notes(self) -> list[str]:
        """What was done."""
        mismatch = self.arms.mismatch
        lines = [f"Intervals are 95 %, {self.method}; a user's impressions are taken together."]
        if mismatch is None:
            lines.append(
                "The arms' shares of users were not checked: say by --split or --share what they "
                "should be."
            )
        elif mismatch.p >= _UNLIKELY:
            lines.append(
                f"{_percent(mismatch.found, 3)} of the users met the candidate, "
                f"{_percent(mismatch.expected, 3)} should have: by chance "
                f"(p = {mismatch.p:.2g})."
            )
        if self.arms.num_misplaced == 0:
            lines.append("Every user met the version that the split gives them.")
        if left_out := self.arms.left_out:
            lines.append(
                "Left out: "
                + ", ".join(
                    f"{number:,} impressions of version {name}" for name, number in left_out.items()
                )
                + "."
            )
        if self.unclicked:
            lines.append(f"{self.unclicked:,} conversions without a click count as none.")
        return lines

    @property
    def verdicts(self) -> list[str]:
        """A sentence for each figure and part."""
        return [
            f"{figure}, {WHOSE[part]}: {_verdict(found)}"
            for part, of in self.comparisons.items()
            for figure, found in of.items()
        ]

    def text(self) -> str:
        """Markdown that reads well on a terminal."""
        lines = [
            "# A/B test",
            "",
            *(f"**WARNING: {warning}**\n" for warning in self.warnings),
            *(f"- {verdict}" for verdict in self.verdicts),
        ]
        return (
            "\n".join(
                [*lines, "", self._figures(), self._counts(), *(f"{note}\n" for note in self.notes)]
            ).rstrip()
            + "\n"
        )

    def content(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        parts = {
            part: {
                "counts": {arm: self._sums(part, arm) for arm in ARMS},
                "figures": {figure: asdict(found) for figure, found in of_part.items()},
            }
            for part, of_part in self.comparisons.items()
        }
        arms = self.arms
        checks = {
            "mismatch": arms.mismatch and asdict(arms.mismatch),
            "users_of_both": arms.num_both,
            "misplaced_users": arms.num_misplaced,
        }
        others = {
            "left_out_impressions": arms.left_out,
            "conversions_without_click": self.unclicked,
            "intervals": self.method,
        }
        said = {"warnings": self.warnings, "verdicts": self.verdicts}
        return {"versions": arms.versions, "parts": parts, "checks": checks, **others, **said}

    def write(self, out: Path) -> list[Path]:
        """Writes ``report.html``, ``report.md``, ``report.json`` and ``lifts.png``, and returns their paths."""
        out.mkdir(parents=True, exist_ok=True)
        draw_lifts(
            {
                f"{figure}, {WHOSE[part]}": found.lift
                for part, of in self.comparisons.items()
                for figure, found in of.items()
            },
            out / "lifts.png",
        )
        text = (
            self.text()
            + "\n![What the candidate gains over the base, 95 % intervals.](lifts.png)\n"
        )
        bodies = {
            "html": as_html(text, out),
            "md": text,
            "json": json.dumps(self.content(), indent=2, allow_nan=False) + "\n",
        }
        for kind, body in bodies.items():
            (out / f"report.{kind}").write_text(body, encoding="utf-8")
        return [out / "lifts.png", *(out / f"report.{kind}" for kind in bodies)]

    def _figures(self) -> str:
        lines = [
            [f"{figure}, {WHOSE[part]}", *(_cell(each) for each in (found.base, found.candidate)), _cell(found.lift, "+"), _p(found.p)]
            for part, of_part in self.comparisons.items() for figure, found in of_part.items()
        ]  # fmt: skip
        return table(["rate", *ARMS, "lift", "p"], lines)

    def _counts(self) -> str:
        shown = [
            "users",
            "impressions",
            "clicks",
            *(["conversions"] if "CVR" in self.comparisons["all"] else []),
        ]
        lines = []
        for part in self.comparisons:
            for arm in ARMS:
                sums = self._sums(part, arm)
                versions = ", ".join(self.arms.versions[arm])
                lines.append(
                    [f"{arm} ({versions}), {WHOSE[part]}", *(f"{sums[name]:,}" for name in shown)]
                )
        return table(["arm", *shown], lines)

    def _sums(self, part: str, arm: str) -> dict[str, int]:
        sums_U3 = self.arms.sums_U3[part][arm]
        totals = sums_U3.sum(0)
        names = {"impressions": IMPRESSIONS, "clicks": CLICKS, "conversions": CONVERSIONS}
        return {"users": len(sums_U3)} | {
            name: int(totals[column]) for name, column in names.items()
        }


def _verdict(found: Comparison) -> str:
    if found.lift is None:
        return "no lift can be given, as an arm has no such event"
    if found.lift.low <= 0 <= found.lift.high:
        return f"no difference is clear of chance, {_cell(found.lift, '+')}"
    return f"the candidate {'gains' if found.lift.value > 0 else 'loses'}, {_cell(found.lift, '+')}"


def _cell(found: Estimate | None, sign: str = "") -> str:
    if found is None:
        return "-"
    return (
        f"{_percent(found.value, 2, sign)} [{found.low * 100:{sign}.2f}, "
        f"{found.high * 100:{sign}.2f}]"
    )


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _percent(value: float, digits: int, sign: str = "") -> str:
    return f"{value * 100:{sign}.{digits}f} %"
