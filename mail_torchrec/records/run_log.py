"""Lines of a run's log, ``metrics.jsonl``: bounded, and each checked when it is read."""

import json
import math
from pathlib import Path
from typing import Any, TypeGuard

from mail_torchrec.utils.safe_paths import read_document

_Record = dict[str, Any]


def read_log(path: Path) -> list[_Record]:
    """Reads the records of a run, each with its finite ``step``.

    Raises:
        OSError: the log cannot be read.
        ValueError: it is missing, no regular file, too large, or a line is no record; the message
            is one line.
    """
    try:
        text = read_document(path)
    except FileNotFoundError as error:
        raise ValueError(f"'{path}' does not exist; has the run logged a step?") from error
    lines = text.splitlines()
    return [_parse_record(path, number, line) for number, line in enumerate(lines, start=1)]


def _parse_record(path: Path, number: int, line: str) -> _Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"'{path}', line {number}, is not JSON: {error}; was the run stopped while writing?"
        ) from error
    if not isinstance(record, dict) or not is_number(record.get("step")):
        raise ValueError(
            f"'{path}', line {number}, should be an object with a 'step', received {line[:80]!r}"
        )
    return record


def is_number(value: object) -> TypeGuard[float]:
    """Returns whether a value of a record is a finite number that a float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**1000 and math.isfinite(value)
