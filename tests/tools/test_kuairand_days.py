"""The tool that trains KuaiRand's days one by one: histories, cohorts, commands, tables."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tools.kuairand_days import SeedRuns, prepare_days
from tools.kuairand_days_report import ARMS, cohorts_by_day, predictions_of, read_scores

DAYS = ["2022-04-25", "2022-04-26", "2022-04-27"]
LISTS = pa.list_(pa.int64())


def write(path: Path, users: list[int], videos: list[int], clicks: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = len(users)
    columns = {"user_id": users, "video_id": videos, "is_click": clicks, "long_view": [0, 1] * rows}
    lists = {"watch_seq": [[90, 91]] * rows, "watch_action_seq": [[3, 1]] * rows}
    pq.write_table(
        pa.table(
            {name: values[:rows] for name, values in columns.items()}
            | {name: pa.array(values, LISTS) for name, values in lists.items()}
        ),
        path,
    )


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    raw = tmp_path / "raw"
    write(raw / "train" / "20220425.parquet", [1, 1, 2], [10, 11, 12], [1, 1, 0])
    write(raw / "train" / "20220426.parquet", [1, 3], [11, 13], [0, 1])
    write(raw / "test" / "20220427.parquet", [1, 3, 2], [13, 10, 14], [1, 0, 0])
    assert prepare_days(raw, tmp_path / "days") == DAYS
    return tmp_path / "days"


def test_histories_hold_the_clicks_of_earlier_days_alone(prepared: Path) -> None:
    days = [pq.read_table(prepared / f"day={day}" / "rows.parquet") for day in DAYS]
    own = [90, 91]
    assert [day["watch_seq"].to_pylist() for day in days] == [
        [own, own, own],
        [[*own, 10, 11], own],
        [[*own, 10, 11], [*own, 13], own],
    ]
    assert days[2]["watch_action_seq"].to_pylist() == [[3, 1, 1, 2], [3, 1, 2], [3, 1]]


def test_new_is_what_no_earlier_day_showed(prepared: Path) -> None:
    cohorts = cohorts_by_day(prepared, DAYS)
    assert cohorts[DAYS[1]]["new users"].tolist() == [False, True]
    assert cohorts[DAYS[2]]["new items"].tolist() == [False, False, True]


def test_every_arm_scores_every_day_by_models_of_the_days_before_it(
    prepared: Path, tmp_path: Path
) -> None:
    runs = SeedRuns(tmp_path / "seed-1", prepared, DAYS, 1, ARMS)
    jobs = {job.name: job for job in runs.jobs()}
    made = {path for job in jobs.values() for path in job.makes}
    for number in (1, 2):
        for arm in ARMS:
            found = predictions_of(runs.folder, arm, DAYS, number)
            assert found in made or found.parent in made
    words = {name: " ".join(job.arguments) for name, job in jobs.items()}
    assert "data.train=[day=2022-04-25]" in words["first"]
    assert "data.train=[day=2022-04-25,day=2022-04-26]" in words["retrained-2022-04-26"]
    assert f"--continue {runs.folder}/first" in words["continued-2022-04-26"]
    assert "data.train=[day=2022-04-26]" in words["continued-2022-04-26"]
    tested = [name for name, text in words.items() if "data.test=day=2022-04-27" in text]
    assert len(tested) == len(ARMS)


def test_the_scores_of_a_day_are_in_the_order_of_its_rows(prepared: Path, tmp_path: Path) -> None:
    folder = predictions_of(tmp_path, "frozen", DAYS, 2)
    folder.mkdir(parents=True)
    shuffled = {"file_row_number": [2, 0, 1], "label": [0, 1, 0], "logit": [0.1, 0.2, 0.3]}
    pq.write_table(pa.table(shuffled), folder / "part.parquet")
    cohorts = {DAYS[2]: {"all": np.array([True] * 3), "first two": np.array([True, True, False])}}
    first = predictions_of(tmp_path, "frozen", DAYS, 1)
    first.parent.mkdir()
    first.symlink_to(folder)
    cohorts[DAYS[1]] = cohorts[DAYS[2]]
    scores = read_scores([tmp_path], ["frozen"], DAYS, cohorts)
    assert scores["frozen", DAYS[2], "all"] == [0.5]
    assert scores["frozen", DAYS[2], "first two"] == [0.0]
