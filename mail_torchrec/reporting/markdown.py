"""Markdown tables that also read well as plain text."""

import re
from collections.abc import Sequence

_MARKUP = re.compile(r"[|$]|<(?=[A-Za-z/!?])")
"""Characters that end a cell, begin a formula or open an HTML tag."""
_ESCAPED = re.compile(r"\\([|$<])")


def escape_markdown(text: str) -> str:
    """Puts a backslash before the characters of a name that Markdown would take as markup."""
    return _MARKUP.sub(lambda found: f"\\{found[0]}", text)


def unescape_markdown(text: str) -> str:
    """Undoes :func:`escape_markdown`."""
    return _ESCAPED.sub(r"\1", text)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a Markdown table, columns padded, numbers aligned to the right.

    Args:
        header: column titles; the first column is aligned to the left.
        rows: cells of each row, as many as there are titles.
    """
    lines = [[escape_markdown(cell) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [_pad(line, widths) for line in lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in (padded[0], rule, *padded[1:]))


def _pad(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    numbers = zip(line[1:], widths[1:], strict=True)
    return [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in numbers)]
