"""Parses published text files: the pattern of a well-formed line, and its fields as typed columns.

A line is well-formed when it matches the patterns of all its fields; a malformed line is kept,
counted and shown, never parsed in part. Files are read as lines of Latin-1, in which every byte is
a letter, so that both engines see the same lines whatever is in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ibis
from ibis.expr.types import StringValue, Table, Value

MALFORMED_BUCKET = -1
_TEXT = '(?:"[^"]*"|[^",]*)'
_BYTE_ORDER_MARK = "ï»¿"  # of UTF-8, read as Latin-1


@dataclass(frozen=True)
class LogField:
    """One field of a line.

    Args:
        name: of the column.
        type: of the column, an Ibis type.
        pattern: regular expression of a valid value, without backslashes or capturing groups.
    """

    name: str
    type: str
    pattern: str


def int64_field(name: str) -> LogField:
    """Declares an integer of at most 18 digits."""
    return LogField(name, "int64", "-?[0-9]{1,18}")


def int32_field(name: str, *, optional: bool = False) -> LogField:
    """Declares an integer of at most 9 digits; an optional one may be empty or the word NULL."""
    return LogField(name, "int32", "(?:-?[0-9]{1,9}|NULL|)" if optional else "-?[0-9]{1,9}")


def float_field(name: str, *, optional: bool = False) -> LogField:
    """Declares a decimal number; an optional one may be empty or the word NULL."""
    number = "-?[0-9]+(?:[.][0-9]*)?(?:[eE][+-]?[0-9]+)?"
    return LogField(name, "float64", f"(?:{number}|NULL|)" if optional else number)


def binary_field(name: str) -> LogField:
    """Declares a 0 or 1."""
    return LogField(name, "int32", "[01]")


def enum_field(name: str, *values: str) -> LogField:
    """Declares one of a few words."""
    return LogField(name, "string", f"(?:{'|'.join(values)})")


def text_field(name: str, pattern: str = _TEXT) -> LogField:
    """Declares text without the separator, or any text in quotes; empty and NULL are null."""
    return LogField(name, "string", pattern)


@dataclass(frozen=True)
class LogFile:
    """One published file.

    Args:
        name: of the file.
        fields: of a line, in order.
        user_field: the field that holds the user, where the file is to be split by user.
        separator: between fields.
        header: whether the first line names the fields.
    """

    name: str
    fields: tuple[LogField, ...]
    user_field: str | None = None
    separator: str = ","
    header: bool = True

    @property
    def line_pattern(self) -> str:
        """The regular expression of a well-formed line."""
        return f"^{self.separator.join(field.pattern for field in self.fields)}$"

    @property
    def stored_columns(self) -> dict[str, str]:
        """The Ibis type of each column of the parsed file: fields, malformed text, bucket."""
        columns = {field.name: field.type for field in self.fields}
        return columns | {"malformed": "string", "bucket": "int64"}

    def parse(self, lines: Table, num_buckets: int) -> Table:
        """Splits lines into fields, and assigns each line to a bucket of users.

        Args:
            lines: one text column ``line``.
            num_buckets: buckets of users.

        Returns:
            The fields, ``malformed`` (the text of a malformed line, else null) and ``bucket``,
            which is -1 for malformed lines and 0 where the file is not split by user.
        """
        line = lines.line
        values = {
            field.name: self._value(line, index, field.type)
            for index, field in enumerate(self.fields)
        }
        user = self.user_field
        bucket = values[user].abs() % num_buckets if user else ibis.literal(0, "int64")
        is_valid = line.re_search(self.line_pattern)
        return lines.filter(line.notnull() & (line != "")).select(
            **values,
            malformed=ibis.ifelse(is_valid, ibis.null("string"), line),
            bucket=ibis.ifelse(is_valid, bucket, MALFORMED_BUCKET).cast("int64"),
        )

    def _value(self, line: StringValue, index: int, kind: str) -> Value:
        if any(field.pattern == _TEXT for field in self.fields):
            # Quotes may hide separators: the regular expression is slower, and meant for small
            # files.
            raw = line.re_extract(f"^(?:{_TEXT},){{{index}}}({_TEXT})", 1).replace('"', "")
        else:
            raw = line.split(self.separator)[index]
        return raw.nullif("").nullif("NULL") if kind == "string" else raw.try_cast(kind)

    def find(self, raw: Path, folders: Sequence[str]) -> Path:
        """Finds the file in a folder or in the published archive's folders, and checks its header.

        Raises:
            ValueError: no such file, an empty one, another header.
        """
        candidates = [raw / folder / self.name for folder in ("", *folders)]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            raise ValueError(
                f"no file '{self.name}' in '{raw}' (looked at {', '.join(map(str, candidates))}); "
                "--raw names the unpacked folder"
            )
        with path.open(encoding="latin-1") as file:
            self._check_first_line(path, file.readline())
        return path

    def _check_first_line(self, path: Path, first: str) -> None:
        if not first:
            raise ValueError(f"{path} should hold lines: it is empty; download or unpack it again")
        names = [field.name for field in self.fields]
        cells = first.removeprefix(_BYTE_ORDER_MARK).strip().split(self.separator)
        if self.header and [cell.strip().strip('"') for cell in cells] != names:
            raise ValueError(
                f"{path}: the first line should be the header {','.join(names)}, received "
                f"{first.strip()[:200]}"
            )


@dataclass
class LineCounts:
    """Well-formed and malformed lines of one file, and an example of a malformed one."""

    rows: int = 0
    malformed: int = 0
    example: str | None = None

    def check(self, name: str, limit: float) -> None:
        """Compares the share of malformed lines with a limit.

        Raises:
            ValueError: no well-formed line, or more malformed ones than the limit allows.
        """
        lines = self.rows + self.malformed
        if not self.rows:
            raise ValueError(
                f"{name} should hold rows: {lines} lines, none of them good{self._such_as()}; "
                "download or unpack it again"
            )
        if self.malformed > limit * lines:
            raise ValueError(
                f"{name}: {self.malformed:,} of {lines:,} lines are malformed "
                f"({self.malformed / lines:.2%}, the limit is {limit:.2%})"
                f"{self._such_as()}; look at the file, or allow more with --max-malformed"
            )

    def _such_as(self) -> str:
        return f", such as {self.example[:200]!r}" if self.example else ""
