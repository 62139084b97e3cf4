"""Counts of a file's lines: each one is a row, malformed, blank or the header, and none is lost."""

from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import ibis
from ibis.expr.types import Table

from mail_torchrec.prepare.engine import QueryEngine
from mail_torchrec.prepare.log_files import (
    BLANK_BUCKET,
    HEADER_BUCKET,
    MALFORMED_BUCKET,
    UNLIKELY_TIME_BUCKET,
)
from mail_torchrec.prepare.resumable_steps import StepRecord
from mail_torchrec.prepare.text_lines import count_lines


@dataclass(frozen=True)
class LineCounts:
    """Lines of one file by kind, and an example of a malformed one.

    Args:
        rows: well-formed lines.
        malformed: lines that are left out.
        unlikely_times: those of the malformed lines whose time alone is not plausible.
        blank: lines without a character.
        ends_with_newline: false where the last line may be cut.
        example: beginning of a malformed line.
    """

    rows: int
    malformed: int = 0
    unlikely_times: int = 0
    blank: int = 0
    ends_with_newline: bool = True
    example: str | None = None

    def record(self) -> StepRecord:
        """Returns the counts as JSON."""
        return asdict(self)

    def check(self, name: str, limit: float, days: tuple[date, date]) -> None:
        """Compares the share of malformed lines with a limit.

        Args:
            name: of the file, for messages.
            limit: maximum share of malformed lines.
            days: first and last plausible day, for messages.

        Raises:
            ValueError: no well-formed line, or more malformed ones than the limit allows.
        """
        lines = self.rows + self.malformed
        if not self.rows:
            raise ValueError(
                f"{name} should hold rows: {lines} lines, none of them good{self._such_as(days)}; "
                f"download or unpack it again{self._remedy()}"
            )
        if self.malformed > limit * lines:
            raise ValueError(
                f"{name}: {self.malformed:,} of {lines:,} lines are malformed "
                f"({self.malformed / lines:.2%}, the limit is {limit:.2%})"
                f"{self._such_as(days)}; look at the file{self._remedy()}, or allow more with "
                "--max-malformed"
            )

    def _such_as(self, days: tuple[date, date]) -> str:
        times = (
            f", {self.unlikely_times:,} of them by a time outside {days[0]} to {days[1]}"
            if self.unlikely_times
            else ""
        )
        return times + (f", such as {self.example!r}" if self.example else "")

    def _remedy(self) -> str:
        return ", or give the log's days with --time-range" if self.unlikely_times else ""


def count_parsed_lines(engine: QueryEngine, parts: Table, path: Path) -> LineCounts:
    """Counts what became of each line of a file.

    Args:
        engine: engine that parsed the file.
        parts: the parsed file.
        path: the file itself.

    Raises:
        ValueError: not every line of the file is among the parsed ones.
    """
    counted = parts.group_by(kind=ibis.least(parts.bucket, 0)).agg(
        lines=parts.count(), example=parts.malformed.max()
    )
    lines, examples = {}, {}
    for kind, num_lines, example in engine.rows(counted.select("kind", "lines", "example")):
        lines[kind], examples[kind] = num_lines, example
    in_file = count_lines(path)
    if sum(lines.values()) != in_file.num_lines:
        raise ValueError(
            f"{path}: {sum(lines.values()):,} of {in_file.num_lines:,} lines were read; a file "
            "should not change while it is read; run the command again"
        )
    repeated_headers = max(lines.get(HEADER_BUCKET, 0) - 1, 0)
    unlikely = lines.get(UNLIKELY_TIME_BUCKET, 0)
    kinds = (MALFORMED_BUCKET, UNLIKELY_TIME_BUCKET, *([HEADER_BUCKET] if repeated_headers else []))
    return LineCounts(
        rows=lines.get(0, 0),
        malformed=lines.get(MALFORMED_BUCKET, 0) + unlikely + repeated_headers,
        unlikely_times=unlikely,
        blank=lines.get(BLANK_BUCKET, 0),
        ends_with_newline=in_file.ends_with_newline,
        example=next((examples[kind] for kind in kinds if kind in examples), None),
    )
