"""Files of training and of test below a path whose layout nobody has told."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import PurePosixPath
from typing import Any

from mail_torchrec.data.parquet.files import parquet_files
from mail_torchrec.data.parquet.parquet_file import ParquetFile
from mail_torchrec.utils.uris import without_credentials

_TRAIN, _TEST = ("train", "training"), ("test", "testing", "eval", "evaluation")


@dataclass(frozen=True)
class Layout:
    """Files of a data set, and how a configuration names them.

    Args:
        root: folder or URI.
        train: setting ``data.train``: a path, days, or a list of paths.
        test: setting ``data.test``.
        reason: what the comment says.
        files: of training.
    """

    root: str
    train: Any
    test: Any
    reason: str
    files: list[ParquetFile]


def find_layout(path: str) -> Layout:
    """Finds training and test files: by their names, else the last day or file is the test.

    Args:
        path: folder, file or URI.

    Raises:
        ValueError: there are no Parquet files.
    """
    files = parquet_files(path, "name a folder of Parquet files, a file, or a URI, with --data")
    for file in files:
        if file.path.lower().endswith((".csv", ".csv.gz", ".tsv", ".json", ".jsonl", ".txt")):
            raise ValueError(
                f"{file.path} should be Parquet by its name; leave it out, or make Parquet of it "
                "(`mail-torchrec prepare events` reads CSV)"
            )
    base, _, options = path.partition("?")
    base = base.rstrip("/")
    suffix = f"?{options}" if options else ""
    below = [_below(file.path, without_credentials(base)) for file in files]
    tops = list(dict.fromkeys(parts[0] for parts in below if parts))
    if not tops or len(tops) == 1:
        return _one_place(path, base, suffix, tops, below, files)
    if (days := _days(tops)) is not None and _has_parent(base):
        return _of_days(base, suffix, days, files)
    named = {PurePosixPath(top).name.partition(".")[0].lower(): top for top in tops}
    train = next((named[word] for word in _TRAIN if word in named), None)
    test = next((named[word] for word in _TEST if word in named), None)
    if train is None or test is None:
        *older, test = sorted(tops)
        reason = f"'{test}' is the last by name, the others are training"
        return Layout(base + suffix, older, test, reason, _of(files, below, older))
    reason = f"named '{train}' and '{test}'"
    return Layout(base + suffix, train, test, reason, _of(files, below, [train]))


def _has_parent(base: str) -> bool:
    """Returns whether something lies above a folder: not above a bucket or the root."""
    _, is_uri, path = base.rpartition("://")
    return "/" in path.strip("/") or not is_uri


def _days(tops: Sequence[str]) -> tuple[str, list[date]] | None:
    """Reads folders such as ``day=2024-05-01``: their column, and the days in order."""
    columns, texts = zip(
        *((top.partition("=")[0], top.partition("=")[2]) for top in tops), strict=True
    )
    try:
        days = sorted(date.fromisoformat(text) for text in texts)
    except ValueError:
        return None
    return (columns[0], days) if len(set(columns)) == 1 else None


def _of_days(
    base: str, suffix: str, found: tuple[str, list[date]], files: list[ParquetFile]
) -> Layout:
    """Describes folders of days: the last one is the test."""
    column, days = found
    root, _, path = base.rpartition("/")
    settings = {"path": path} | ({} if column == "day" else {"column": column})
    train = settings | {"days": [days[0], days[-2]]}
    test = settings | {"days": [days[-1], days[-1]]}
    last = f"/{column}={days[-1]}/"
    older = [file for file in files if last not in file.path]
    reason = f"{len(days)} days, of which the last one is the test"
    return Layout((root or "/" * base.startswith("/")) + suffix, train, test, reason, older)


def _one_place(
    path: str,
    base: str,
    suffix: str,
    tops: Sequence[str],
    below: Sequence[Sequence[str]],
    files: list[ParquetFile],
) -> Layout:
    """Describes a path with one file, or with one folder below it."""
    if tops and len(below[0]) > 1:
        return find_layout(f"{base}/{tops[0]}{suffix}")
    root, name = (base, tops[0]) if tops else base.rsplit("/", 1) if "/" in base else ("", base)
    reason = (
        "ONE FILE: its rows are training and test, so that metrics say nothing; write rows of "
        "later days apart"
    )
    return Layout(root + suffix, name, name, reason, files)


def _below(file: str, base: str) -> tuple[str, ...]:
    """Returns the parts of a file's path below the folder that was named; none for itself."""
    _, found, rest = file.partition(base)
    return PurePosixPath(rest.lstrip("/")).parts if found else PurePosixPath(file).parts[-1:]


def _of(
    files: Sequence[ParquetFile], below: Sequence[tuple[str, ...]], tops: Sequence[str]
) -> list[ParquetFile]:
    return [file for file, parts in zip(files, below, strict=True) if parts[0] in tops]
