"""Days of training data: of each file by the folder above it, and of a run."""

from datetime import date

from mail_torchrec.continuation.newest_time import newest_day
from mail_torchrec.data.parquet.hive import day_of_file
from mail_torchrec.data.parquet.selection import DataPart, DaysSettings
from mail_torchrec.data.settings import DataSettings
from mail_torchrec.data.source import Source

_COLUMN = "day"


def file_days(settings: DataSettings, source: Source) -> list[date | None]:
    """Finds the day of each file of the training data, in the order of the source's files.

    Days stand in the names of folders, ``day=2024-05-31/``; where `data.train` names days of
    another column, in those of that column.
    """
    column = _day_column(settings.train)
    return [day_of_file(file.path, column) for file in source.files]


def training_day(settings: DataSettings, source: Source) -> date | None:
    """Finds the day of training data: that of the settings, of its folders, or of its times.

    None where none is known.
    """
    if settings.day is not None:
        return settings.day
    days = [day for day in file_days(settings, source) if day is not None]
    return max(days) if days else newest_day(source.files, source.schema)


def _day_column(part: DataPart) -> str:
    parts = part if isinstance(part, list) else [part]
    return next((one.column for one in parts if isinstance(one, DaysSettings)), _COLUMN)
