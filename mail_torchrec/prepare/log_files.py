"""Parses published text files: the pattern of a well-formed line, and its fields as typed columns.

A line is well-formed when it matches the patterns of all its fields and its time lies in the log's
range; a malformed line is kept, counted and shown, never parsed in part. Files are read as lines of
Latin-1, in which every byte is a letter, so that both engines see the same lines whatever is in
them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ibis
from ibis.expr.types import StringValue, Table, Value

from mail_torchrec.prepare.text_lines import MAX_LINE_CHARACTERS, first_line

# Lines that hold no row, each kind in a bucket of its own.
MALFORMED_BUCKET, UNLIKELY_TIME_BUCKET, BLANK_BUCKET, HEADER_BUCKET = -1, -2, -3, -4
_TEXT = '(?:"[ !#-ÿ]*"|[ !#-+.-ÿ-]*)'  # no control characters: zeros are what a crash leaves
_EXAMPLE_CHARACTERS = 200
_END = ";"
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
    number = "-?[0-9]{1,18}(?:[.][0-9]*)?(?:[eE][+-]?[0-9]{1,2})?"  # always finite
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
        time_field: the field that holds the time of an event, where there is one.
        separator: between fields.
        header: whether the first line names the fields.
    """

    name: str
    fields: tuple[LogField, ...]
    user_field: str | None = None
    time_field: str | None = None
    separator: str = ","
    header: bool = True

    @property
    def line_pattern(self) -> str:
        """The regular expression of a well-formed line, up to its end."""
        return f"^{self.separator.join(field.pattern for field in self.fields)}"

    @property
    def stored_columns(self) -> dict[str, str]:
        """The Ibis type of each column of the parsed file: fields, malformed text, bucket."""
        columns = {field.name: field.type for field in self.fields}
        return columns | {"malformed": "string", "bucket": "int64"}

    def header_line(self, path: Path) -> str | None:
        """Reads the header of a file, as :meth:`parse` will see it; None where there is none."""
        return first_line(path).removeprefix(_BYTE_ORDER_MARK) if self.header else None

    def parse(self, lines: Table, num_buckets: int, ticks: range, header: str | None) -> Table:
        """Splits lines into fields, and assigns each line to a bucket of users.

        Args:
            lines: one text column ``line``.
            num_buckets: buckets of users.
            ticks: plausible times.
            header: the first line, where it holds no row.

        Returns:
            The fields, ``malformed`` (the beginning of a line without a row, else null) and
            ``bucket``: below 0 for lines without a row, and 0 where the file is not split by user.
        """
        lines = lines.select(line=_without_ends(lines.line))
        line = lines.line
        values = {
            field.name: self._value(line, index, field.type)
            for index, field in enumerate(self.fields)
        }
        # Java's "$" also stands before a last line end, of which a marked line has none.
        is_match = (line + _END).re_search(f"{self.line_pattern}{_END}$")
        is_valid = is_match & (line.length() <= MAX_LINE_CHARACTERS)
        kinds = [(line == "", BLANK_BUCKET), (~is_valid, MALFORMED_BUCKET)]
        if header is not None:
            kinds.insert(0, (line == header, HEADER_BUCKET))
        if self.time_field is not None:
            time = values[self.time_field]
            is_likely = (time >= ticks.start) & (time < ticks.stop)
            kinds.append((~is_likely, UNLIKELY_TIME_BUCKET))
        user = self.user_field
        bucket = values[user].abs() % num_buckets if user else ibis.literal(0, "int64")
        rows = lines.select(line, **values, bucket=ibis.cases(*kinds, else_=bucket).cast("int64"))
        malformed = ibis.ifelse(rows.bucket < 0, rows.line.left(_EXAMPLE_CHARACTERS), None)
        return rows.select(*values, malformed=malformed, bucket=rows.bucket)

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
        self._check_first_line(path, first_line(path))
        return path

    def _check_first_line(self, path: Path, first: str) -> None:
        if not path.stat().st_size:
            raise ValueError(f"{path} should hold lines: it is empty; download or unpack it again")
        names = [field.name for field in self.fields]
        cells = first.removeprefix(_BYTE_ORDER_MARK).strip().split(self.separator)
        if self.header and [cell.strip().strip('"') for cell in cells] != names:
            raise ValueError(
                f"{path}: the first line should be the header {','.join(names)}, received "
                f"{first.strip()[:200]!r}"
            )


def _without_ends(line: StringValue) -> StringValue:
    """Removes a carriage return behind and a byte order mark before the text."""
    line = ibis.ifelse(line.endswith("\r"), line.left(line.length() - 1), line)
    return ibis.ifelse(line.startswith(_BYTE_ORDER_MARK), line.substr(len(_BYTE_ORDER_MARK)), line)
