"""Files by globs, ranges of days and lists."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from mail_torchrec.config import parse_settings
from mail_torchrec.data.parquet.selection import DataPart, at_root, selected_files, shown
from mail_torchrec.data.settings import DataSettings

PART = TypeAdapter(DataPart)
FILES = [
    *(f"log/day=2024-05-0{day}/hour={hour}/a.parquet" for day in (1, 2, 4) for hour in (7, 9)),
    "log/day=__HIVE_DEFAULT_PARTITION__/hour=7/a.parquet",
    "plain/day=20240501/a.parquet",
    "plain/day=20240503/_hidden.parquet",
    "odd[1]/a.parquet",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for file in FILES:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"x": [1]}), root / file)
    return root


def files(root: Path | str, part: Any) -> list[str]:
    found = selected_files(at_root(str(root), PART.validate_python(part)), "name it")
    return [file.path.removeprefix(str(root)).strip("/") for file in found]


def days(first: str, last: str, **given: str) -> dict[str, Any]:
    return {"path": "log", "days": [first, last]} | given


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("log/day=2024-05-0[12]", [0, 1, 2, 3]),
        ("log/day=2024-05-0?/hour=9", [1, 3, 5]),
        ("**/hour=07", []),
        ("**/hour=7/*.parquet", [0, 2, 4, 6]),
        ("*/day=2*", [0, 1, 2, 3, 4, 5, 7]),
        ("odd[1]", [9]),
        (days("2024-05-02", "2024-05-04"), [2, 3, 4, 5]),
        (days("2024-05-01", "2024-05-01", path="plain"), [7]),
        (["plain", days("2024-05-01", "2024-05-01")], [7, 0, 1]),
    ],
)
def test_paths_name_these_files(root: Path, part: Any, expected: list[int]) -> None:
    if expected:
        assert files(root, part) == [FILES[i] for i in expected]
    else:
        with pytest.raises(ValueError, match="should hold Parquet files: it holds none"):
            files(root, part)


def test_partition_columns_of_a_glob_are_those_below_its_fixed_part(root: Path) -> None:
    [file] = selected_files(f"file://{root}/log/day=2024-05-01/hour=*9", "")
    assert {name: value.as_py() for name, value in file.partition_values.items()} == {"hour": 9}
    found = selected_files(f"{root}/log/day=2024-05-01*", "")
    assert [file.partition_values["day"].as_py() for file in found] == ["2024-05-01"] * 2


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (days("2024-05-02", "2024-05-09"), "found none of 2024-05-09; the days .* to 2024-05-04"),
        (days("2024-05-01", "2024-05-02", column="dt"), "a folder 'dt=...' above it, .* day, hour"),
        (days("2024-05-01", "2024-05-02", column="hour"), "should hold days such as .* '7'"),
        (["log", "log/day=2024-05-01"], "named twice, and its rows would count twice"),
        ("nothing/a*", "no data at '.*/nothing': name it"),
    ],
)
def test_files_that_are_not_there_are_told(root: Path, part: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        files(root, part)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("train=5", "  train: should be a path, days of a folder"),
        ("train={path: log}", "  train.days: "),
        ("train=[a, {path: log, days: [2024-05-02, 2024-05-01]}]", "  train.1: days should be the"),
        ("train=[]", "  train: List should have at least 1 item"),
        ("validation={path: {path: log, day: 3}}", "  validation.path.day: unknown key; known"),
    ],
)
def test_faults_are_told_at_their_place(part: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_settings(DataSettings, [part])


def test_a_missing_day_between_others_is_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    files(root, days("2024-05-01", "2024-05-04"))
    assert "there are no files of 2024-05-03" in caplog.text


def test_messages_and_saved_settings_show_no_credentials() -> None:
    part = PART.validate_python([{"path": "s3://key:secret@b/log", "days": ["2024-05-01"] * 2}])
    assert shown(part) == "s3://b/log (day=2024-05-01 to 2024-05-01)"
    for data in ({"train": part}, {"test": part}, {"validation": {"path": part}}):
        with pytest.raises(ValueError, match="'s3://b/log' was given with credentials"):
            DataSettings.model_validate(data).check_no_credentials()
