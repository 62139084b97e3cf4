"""Lines of a text file as Arrow batches, whatever bytes are in it, and a count of them.

A line ends at a line feed or at the end of the file. No quote, NUL byte, encoding or length of a
line changes where the next one begins.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

MAX_LINE_CHARACTERS = 65_536
"""Longer lines are malformed; published ones have hundreds."""
_BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class FileLines:
    """Lines of a file, counted without an engine.

    Args:
        num_lines: all of them, blank ones and the header included.
        ends_with_newline: false where the last line may be cut.
    """

    num_lines: int
    ends_with_newline: bool


def count_lines(path: Path) -> FileLines:
    """Counts the lines of a file."""
    num_newlines, last = 0, b"\n"
    for block in _blocks(path):
        num_newlines += block.count(b"\n")
        last = block[-1:]
    is_ended = last == b"\n"
    return FileLines(num_newlines + (not is_ended), is_ended)


def first_line(path: Path) -> str:
    """Reads the first line, or as much of it as a line may have, without its end."""
    with path.open("rb") as file:
        return file.readline(MAX_LINE_CHARACTERS).rstrip(b"\r\n").decode("latin-1")


def read_lines(path: Path) -> pa.RecordBatchReader:
    """Reads a file, once, as Latin-1 in one text column ``line``, without line feeds.

    A line longer than ``MAX_LINE_CHARACTERS`` may come shortened, to one that is still longer.
    """
    schema = pa.schema([("line", pa.string())])
    return pa.RecordBatchReader.from_batches(
        schema, (pa.record_batch([lines], schema) for lines in _line_arrays(path))
    )


def _line_arrays(path: Path) -> Iterator[pa.Array]:
    begun = b""  # of the line that goes on in the next block
    for block in _blocks(path):
        whole, newline, rest = block.rpartition(b"\n")
        if newline:
            yield _split(begun + whole)
            begun = rest
        else:
            begun += rest
        begun = begun[: MAX_LINE_CHARACTERS + 2]  # one for a carriage return
    if begun:
        yield _split(begun)


def _split(lines: bytes) -> pa.Array:
    text = lines if lines.isascii() else lines.decode("latin-1").encode()
    return pc.split_pattern(pa.array([text], pa.binary()), b"\n").flatten().cast(pa.string())


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
