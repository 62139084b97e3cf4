"""Findings and tables of a check of data, as text, Markdown and JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from mail_torchrec.utils.uris import redact

_MAX_LINES = 40


class Level(StrEnum):
    """Weight of a finding; only an error makes the exit code 1."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """Something that is, or may be, wrong with the data.

    Args:
        level: error or warning.
        check: name of what was looked at, for programs that read the report.
        message: what was found where, and what to do.
    """

    level: Level
    check: str
    message: str


@dataclass(frozen=True)
class FoundTable:
    """Table of a report; the first column is text, the others are numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass
class CheckReport:
    """Findings, and the tables that they were found in."""

    head: str = ""
    tables: list[FoundTable] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def has_errors(self) -> bool:
        """True where a finding is an error."""
        return any(finding.level is Level.ERROR for finding in self.findings)

    def error(self, check: str, message: str) -> None:
        """Adds an error."""
        self._add(Level.ERROR, check, message)

    def warn(self, check: str, message: str) -> None:
        """Adds a warning."""
        self._add(Level.WARNING, check, message)

    def _add(self, level: Level, check: str, message: str) -> None:
        finding = Finding(level, check, redact(message))
        if finding not in self.findings:
            self.findings.append(finding)

    def text(self) -> str:
        """Formats the report for a terminal, findings last."""
        parts = [self.head]
        parts += [f"{table.title}\n{_aligned(table)}" for table in self.tables]
        parts += [
            f"{finding.level.upper()} {finding.check}: {finding.message}"
            for finding in self._sorted()
        ]
        text = "\n\n".join([*parts, self._summary()])
        # Names of columns and files may hold commands of terminals.
        return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)

    def markdown(self) -> str:
        """Formats the report as Markdown, findings first."""
        lines = [
            f"- **{finding.level}** {finding.check}: {finding.message}"
            for finding in self._sorted()
        ]
        parts = ["# Check of the data", self.head, self._summary(), "\n".join(lines)]
        parts += [f"## {table.title}\n\n{_markdown(table)}" for table in self.tables]
        return "\n\n".join(part for part in parts if part) + "\n"

    def json(self) -> str:
        """Formats the report as JSON: ``head``, ``findings``, ``tables``."""
        tables = [asdict(table) for table in self.tables]
        findings = [asdict(finding) for finding in self._sorted()]
        tree = {"head": self.head, "findings": findings, "tables": tables}
        return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"

    def _sorted(self) -> list[Finding]:
        return sorted(self.findings, key=lambda finding: finding.level is not Level.ERROR)

    def _summary(self) -> str:
        errors = sum(finding.level is Level.ERROR for finding in self.findings)
        warnings = len(self.findings) - errors
        return f"{_plural(errors, 'error')}, {_plural(warnings, 'warning')}"


def _plural(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"


def _shortened(rows: Sequence[list[str]]) -> list[list[str]]:
    """Leaves out the middle of a long table, which the JSON report has whole."""
    if len(rows) <= _MAX_LINES:
        return list(rows)
    half = _MAX_LINES // 2
    gap = [f"... {len(rows) - 2 * half} more"] + [""] * (len(rows[0]) - 1)
    return [*rows[:half], gap, *rows[-half:]]


def _aligned(table: FoundTable) -> str:
    rows = [table.header, *_shortened(table.rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        numbers = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  " + "  ".join([first.ljust(widths[0]), *numbers]).rstrip())
    return "\n".join(lines)


def _markdown(table: FoundTable) -> str:
    mark = ["---", *["---:"] * (len(table.header) - 1)]
    rows = [table.header, mark, *_shortened(table.rows)]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows
    )
