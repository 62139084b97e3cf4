"""Files that a setting names: a path or glob, days of Hive partitions, or a list of these."""

from datetime import date, datetime, timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from mail_torchrec.data.parquet.files import parquet_files
from mail_torchrec.data.parquet.parquet_file import ParquetFile
from mail_torchrec.settings import Settings
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.uris import join_path, without_credentials

logger = get_logger(__name__)

_MOST_NAMED = 3


class DaysSettings(Settings):
    """Days of a folder with Hive partitions, such as `day=2024-05-01/`."""

    path: str
    """Folder with a folder of each day."""
    days: tuple[date, date]
    """First and last day, both included."""
    column: str = "day"
    """Partition column that holds the day, as 2024-05-01 or 20240501."""

    @field_validator("days", mode="before")
    @classmethod
    def _check_number(cls, days: Any) -> Any:
        if not isinstance(days, list | tuple) or len(days) != 2:
            raise ValueError(
                f"should be two days, the first and the last one, received {days!r}; name a single "
                "day twice"
            )
        return days

    @model_validator(mode="after")
    def _check(self) -> "DaysSettings":
        if self.days[0] > self.days[1]:
            raise ValueError(f"days should be the first and the last one, received {self}")
        return self

    def __str__(self) -> str:
        return f"{without_credentials(self.path)} ({self.column}={self.days[0]} to {self.days[1]})"


def _kind(value: Any) -> str:
    return "(list)" if isinstance(value, list) else "(path)" if isinstance(value, str) else "(days)"


def _checked(value: Any) -> Any:
    if isinstance(value, str | dict | list | DaysSettings):
        return value
    raise ValueError(
        "should be a path, days of a folder {path: ..., days: [..., ...]}, or a list of these, "
        f"received {value!r}"
    )


_Part = Annotated[
    Annotated[str, Tag("(path)")] | Annotated[DaysSettings, Tag("(days)")], Discriminator(_kind)
]
DataPart = Annotated[
    Annotated[str, Tag("(path)")]
    | Annotated[DaysSettings, Tag("(days)")]
    | Annotated[list[_Part], Field(min_length=1), Tag("(list)")],
    Discriminator(_kind),
    BeforeValidator(_checked),
]
"""Parquet files: a file, a folder, a glob, days of a folder, or a list of these."""


def at_root(root: str, part: DataPart) -> DataPart:
    """Returns a part with its paths below a folder or URI."""
    return [_at_root(root, one) for one in part] if isinstance(part, list) else _at_root(root, part)


def _at_root(root: str, part: str | DaysSettings) -> str | DaysSettings:
    if isinstance(part, str):
        return join_path(root, part)
    return part.model_copy(update={"path": join_path(root, part.path)})


def paths_of(part: DataPart) -> list[str]:
    """Lists the paths of a part."""
    if isinstance(part, list):
        return [path for one in part for path in paths_of(one)]
    return [part if isinstance(part, str) else part.path]


def shown(part: DataPart) -> str:
    """Names a part in messages, without credentials."""
    if not isinstance(part, list):
        return without_credentials(part) if isinstance(part, str) else str(part)
    more = len(part) - _MOST_NAMED
    named = ", ".join(shown(one) for one in part[:_MOST_NAMED])
    return named + (f" and {more} more" if more > 0 else "")


def selected_files(part: DataPart, remedy: str) -> list[ParquetFile]:
    """Lists the Parquet files of a part, in the order of its paths and of the files' names.

    Args:
        part: with whole paths.
        remedy: what the user should do where there is nothing, for the message.

    Raises:
        ValueError: as :func:`~.files.parquet_files`; a file that is named twice; a first or last
            day without files.
    """
    if isinstance(part, str):
        return parquet_files(part, remedy)
    if not isinstance(part, list):
        return _files_of_days(part, remedy)
    files = [file for one in part for file in selected_files(one, remedy)]
    seen: set[str] = set()
    for file in files:
        if file.path in seen:
            raise ValueError(
                f"{file.path}: it is named twice, and its rows would count twice; correct the list "
                f"{shown(part)}"
            )
        seen.add(file.path)
    return files


def _files_of_days(part: DaysSettings, remedy: str) -> list[ParquetFile]:
    by_day: dict[date, list[ParquetFile]] = {}
    for file in parquet_files(part.path, remedy):
        if (day := _day(file, part.column)) is not None:
            by_day.setdefault(day, []).append(file)
    first, last = part.days
    if missing := sorted({first, last} - by_day.keys()):
        there = f"{min(by_day)} to {max(by_day)}" if by_day else "none"
        raise ValueError(
            f"'{without_credentials(part.path)}' should hold files of the first and the last day, "
            f"found none of {' and '.join(map(str, missing))}; the days there are {there}: correct "
            "'days'"
        )
    days = [first + timedelta(days=i) for i in range((last - first).days + 1)]
    if gaps := [str(day) for day in days if day not in by_day]:
        logger.warning("%s: there are no files of %s", shown(part), ", ".join(gaps[:10]))
    return [file for day in days for file in by_day.get(day, [])]


def _day(file: ParquetFile, column: str) -> date | None:
    """Returns the day of a file's partition; None for null."""
    if column not in file.partition_values:
        folders = ", ".join(file.partition_values) or "none"
        raise ValueError(
            f"{file.path}: there should be a folder '{column}=...' above it, its partition columns "
            f"are {folders}; name another one in 'column'"
        )
    value = file.partition_values[column]
    if not value.is_valid:
        return None
    found = value.as_py()
    try:
        if isinstance(found, date):
            return found.date() if isinstance(found, datetime) else found
        return date.fromisoformat(str(found))
    except ValueError as error:
        raise ValueError(
            f"{file.path}: partition column '{column}' should hold days such as 2024-05-01 or "
            f"20240501, received '{found}'; name another one in 'column'"
        ) from error
