"""Day of the training data: the setting, else the newest folder, else the newest time."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.continuation.days import training_day
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.settings import DataSettings
from mail_torchrec.data.source import Source
from tests.support import plain

LATE = datetime(2024, 5, 31, 23, 30, tzinfo=UTC)


def day_of(root: Path, times: Any = None, **settings: Any) -> date | None:
    table = pa.Table.from_pylist(plain.some_rows(2), plain.TYPES)
    hour = {"group": "context", "part": "hour", "column": "time"} | settings.pop("column", {})
    columns = plain.TREE["columns"] | ({} if times is None else {"hour": hour})
    if times is not None:
        table = table.append_column("time", times)
    for folder in settings.pop("folders", ["train"]):
        path = root / folder / "a.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, write_statistics=settings.get("statistics", True))
    settings.pop("statistics", None)
    data = DataSettings.model_validate({"root": str(root)} | settings)
    schema = Schema.model_validate(plain.TREE | {"columns": columns})
    return training_day(data, Source(data.path(data.train), schema))


def stamps(kind: pa.DataType) -> pa.Array:
    return pa.array([LATE.replace(day=3), LATE], kind)


@pytest.mark.parametrize(
    ("times", "column"),
    [
        (stamps(pa.timestamp("us")), {}),
        (stamps(pa.timestamp("ms", "Asia/Tokyo")), {"zone": "Asia/Tokyo"}),
        (pa.array([date(2024, 5, 3), date(2024, 5, 31)]), {}),
        (pa.array([0, int(LATE.timestamp())]), {"time_unit": "second"}),
        (pa.array([0, int(LATE.timestamp() * 1000)]), {"time_unit": "millisecond"}),
    ],
)
def test_the_newest_time_of_the_schema_tells_it(
    times: pa.Array, column: dict[str, Any], tmp_path: Path
) -> None:
    assert day_of(tmp_path, times, column=column) == date(2024, 5, 31)


def test_folders_are_before_times_and_the_setting_before_both(tmp_path: Path) -> None:
    times, folders = stamps(pa.timestamp("us")), ["train/day=2024-06-01", "train/day=2024-06-02"]
    assert day_of(tmp_path, times, folders=folders) == date(2024, 6, 2)
    assert day_of(tmp_path, times, folders=folders, day="2024-07-01") == date(2024, 7, 1)


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert day_of(tmp_path) is None
    assert day_of(tmp_path, stamps(pa.timestamp("us")), statistics=False) is None
