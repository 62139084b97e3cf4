"""Text files as published: what a line must look like, and a line's fields as typed columns.

A line is good when it matches the pattern of all its fields; what does not match is kept, counted
and shown, never parsed by halves. Files are read as lines of Latin-1, in which every byte is a
letter, so that both engines see the same lines whatever is in them.
"""

from dataclasses import dataclass
from pathlib import Path

import ibis
from ibis.expr.types import StringValue, Table, Value

MALFORMED_BUCKET = -1
_TEXT = '(?:"[^"]*"|[^",]*)'


@dataclass(frozen=True)
class Field:
    """One field of a line: its name, its Ibis type, and the pattern (no backslashes, no capturing groups) of a good value."""

    name: str
    type: str
    pattern: str


def whole(name: str) -> Field:
    """An integer of at most 18 digits."""
    return Field(name, "int64", "-?[0-9]{1,18}")


def small(name: str, *, optional: bool = False) -> Field:
    """An integer of at most 9 digits; an optional one may be empty or the word NULL."""
    return Field(name, "int32", "(?:-?[0-9]{1,9}|NULL|)" if optional else "-?[0-9]{1,9}")


def real(name: str, *, optional: bool = False) -> Field:
    """A decimal number; an optional one may be empty or the word NULL."""
    number = "-?[0-9]+(?:[.][0-9]*)?(?:[eE][+-]?[0-9]+)?"
    return Field(name, "float64", f"(?:{number}|NULL|)" if optional else number)


def flag(name: str) -> Field:
    """0 or 1."""
    return Field(name, "int32", "[01]")


def one_of(name: str, *values: str) -> Field:
    """One of a few words."""
    return Field(name, "string", f"(?:{'|'.join(values)})")


def text(name: str, pattern: str = _TEXT) -> Field:
    """Anything without the separator, or anything in quotes; empty and NULL are null."""
    return Field(name, "string", pattern)


@dataclass(frozen=True)
class RawFile:
    """One published file.

    Args:
        name: of the file.
        fields: of a line, in order.
        key: the field that says whose line it is, where the file is to be split by user.
        separator: between fields.
        header: whether the first line names the fields.
    """

    name: str
    fields: tuple[Field, ...]
    key: str | None = None
    separator: str = ","
    header: bool = True

    @property
    def pattern(self) -> str:
        """Of a good line."""
        return f"^{self.separator.join(part.pattern for part in self.fields)}$"

    @property
    def stored(self) -> dict[str, str]:
        """The columns (name -> Ibis type) of the file once parsed: its fields, the text of a malformed line, the bucket."""
        return {part.name: part.type for part in self.fields} | {
            "malformed": "string",
            "bucket": "int64",
        }

    def parsed(self, lines: Table, buckets: int) -> Table:
        """Lines (column ``line``) -> fields, ``malformed`` and ``bucket``, the latter by user, -1 for malformed lines."""
        line = lines.line
        values = {
            part.name: self._value(line, index, part.type) for index, part in enumerate(self.fields)
        }
        bucket = values[self.key].abs() % buckets if self.key else ibis.literal(0, "int64")
        good = line.re_search(self.pattern)
        return lines.filter(line.notnull() & (line != "")).select(
            **values,
            malformed=ibis.ifelse(good, ibis.null("string"), line),
            bucket=ibis.ifelse(good, bucket, MALFORMED_BUCKET).cast("int64"),
        )

    def _value(self, line: StringValue, index: int, kind: str) -> Value:
        if any(
            part.pattern == _TEXT for part in self.fields
        ):  # quotes may hide separators: slower, for small files
            raw = line.re_extract(f"^(?:{_TEXT},){{{index}}}({_TEXT})", 1).replace('"', "")
        else:
            raw = line.split(self.separator)[index]
        return raw.nullif("").nullif("NULL") if kind == "string" else raw.try_cast(kind)

    def find(self, raw: Path, folders: tuple[str, ...]) -> Path:
        """The file in the folder, or in one of the folders that the published archive has, its header checked.

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
            first = file.readline()
        if not first:
            raise ValueError(f"{path} should hold lines: it is empty; download or unpack it again")
        names = [part.name for part in self.fields]
        found = [
            name.strip().strip('"')
            for name in first.removeprefix("ï»¿").strip().split(self.separator)
        ]
        if self.header and found != names:
            raise ValueError(
                f"{path}: the first line should be the header {','.join(names)}, received "
                f"{first.strip()[:200]}"
            )
        return path


@dataclass
class Counts:
    """Lines of one file: good ones, malformed ones, one of the latter."""

    rows: int = 0
    malformed: int = 0
    example: str | None = None

    def check(self, name: str, limit: float) -> None:
        """Compare with the limit.

        Raises:
            ValueError: no good line, or more malformed ones than the limit allows.
        """
        lines = self.rows + self.malformed
        if not self.rows:
            raise ValueError(
                f"{name} should hold rows: {lines} lines, none of them good{self._shown()}; "
                "download or unpack it again"
            )
        if self.malformed > limit * lines:
            raise ValueError(
                f"{name}: {self.malformed:,} of {lines:,} lines are malformed "
                f"({self.malformed / lines:.2%}, the limit is {limit:.2%})"
                f"{self._shown()}; look at the file, or allow more with --max-malformed"
            )

    def _shown(self) -> str:
        return f", such as {self.example[:200]!r}" if self.example else ""
