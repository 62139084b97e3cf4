"""Users hidden by days: each on a share of them, in fitting, training, evaluation and golden."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.config import Config
from mail_torchrec.data.cold_start import ColdStartSettings, hidden_users
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.history import row_days
from mail_torchrec.data.parquet.arrow import Ints
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.inference.golden import sample_requests
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.predict.predict import predict
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.small_rows import SCHEMA, config_tree, write_rows

BY_DAY: dict[str, Any] = {"by": "user_day", "hide_share": 0.4}
WITH_DAY = SCHEMA | {"columns": SCHEMA["columns"] | {"day": {"group": "day", "column": "date"}}}


def days_of(values: list[Any], kind: pa.DataType | None = None) -> Ints:
    table = pa.table({"date": pa.array(values, kind)})
    days_R = row_days(table, Schema.model_validate(WITH_DAY), "some.parquet")
    assert days_R is not None
    return days_R


def test_a_user_is_hidden_on_a_share_of_the_days_independently_of_one_another() -> None:
    users, days = (values.ravel() for values in np.meshgrid(np.arange(400), np.arange(50)))
    settings = ColdStartSettings(**BY_DAY)
    hidden = hidden_users(pa.array(users), settings, days).reshape(50, 400)
    assert hidden.mean() == pytest.approx(0.4, abs=0.02)
    assert (hidden[0] == hidden[1]).mean() == pytest.approx(0.52, abs=0.1)
    assert hidden.mean(0).std() == pytest.approx((0.24 / 50) ** 0.5, abs=0.02)  # no user always
    fewer = ColdStartSettings(**BY_DAY | {"hide_share": 0.1})
    assert not (hidden_users(pa.array(users), fewer, days).reshape(50, 400) & ~hidden).any()
    assert (hidden_users(pa.array(users[::-1]), settings, days[::-1])[::-1] == hidden.ravel()).all()
    plain = ColdStartSettings(hide_share=0.4)
    by_user = hidden_users(pa.array(users), plain)
    assert (hidden_users(pa.array(users), plain, days) == by_user).all()


def test_days_of_dates_timestamps_and_integers() -> None:
    assert days_of([date(1970, 1, 3)]).tolist() == [2]
    times = [datetime(1970, 1, 3, 23, 59, tzinfo=UTC), datetime(1969, 12, 31, 1, tzinfo=UTC)]
    assert days_of(times, pa.timestamp("us")).tolist() == [2, -1]
    assert days_of([20240531, 20240601]).tolist() == [20240531, 20240601]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([20240531, None], r"some.parquet: column 'date' \(the day\) .* received null in row 1 of"),
        ([1_700_000_000], r"some.parquet: column 'date' .* 1700000000, rather a time; store it as"),
    ],
)
def test_values_that_are_no_days_are_refused(values: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        days_of(values)


def test_settings_that_miss_something_are_refused(tmp_path: Path) -> None:
    data = {"root": str(tmp_path), "cold_start": BY_DAY}
    with pytest.raises(ValueError, match=r"by=user_day needs the day of each row; name its column"):
        Config.model_validate(config_tree(tmp_path, data=data))
    columns = WITH_DAY["columns"] | {"day": {"group": "day", "kind": "numeric"}}
    with pytest.raises(
        ValueError, match=r"schema.columns.day: a column of group 'day' .* takes no"
    ):
        Schema.model_validate(WITH_DAY | {"columns": columns})
    assert "by" not in ColdStartSettings(hide_share=0.4).model_dump()


def test_rows_of_hidden_days_are_reported_and_read_as_new_from_fitting_to_golden_requests(
    tmp_path: Path,
) -> None:
    days = {}
    for part, seed in (("train", 1), ("test", 2)):
        path = tmp_path / part / "a.parquet"
        write_rows(path, 120, seed)
        days[part] = [date(2024, 5, 1 + row % 4) for row in range(120)]
        pq.write_table(pq.read_table(path).append_column("date", pa.array(days[part])), path)
    cold = BY_DAY | {"train_share": 1.0}
    tree = config_tree(tmp_path, data={"root": str(tmp_path), "cold_start": cold}, schema=WITH_DAY)
    config = Config.model_validate(tree)
    metrics = train(config, RunDir(tmp_path / "run"))
    rows = pq.read_table(tmp_path / "test/a.parquet")
    days_R = days_of(days["test"])
    hidden = hidden_users(rows["user"], config.data.cold_start.of_test, days_R)
    is_new = hidden | (np.array([len(items) for items in rows["history"].to_pylist()]) == 0)
    assert metrics["new"]["rows"] == is_new.sum() and 0 < hidden.sum() < len(hidden)
    assert evaluate_run(RunDir(tmp_path / "run"), None, []) == metrics

    source = Source(str(tmp_path / "train"), config.schema_)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    everyone = fit_encoders(source, config.schema_, ColdStartSettings(hide_share=1))
    nobody = fit_encoders(source, config.schema_, ColdStartSettings())
    assert encoders.num_rows == everyone.num_rows != nobody.num_rows

    test = Source(str(tmp_path / "test"), config.schema_, source.types)
    requests, _ = sample_requests(test, config.schema_, encoders, config.data.cold_start.of_test, 0)
    assert any(not request.user["history"] for request in requests)
    assert all("date" not in request.user for request in requests)

    (tmp_path / "served").mkdir()
    pq.write_table(rows.drop_columns(["date", "user"]), tmp_path / "served/a.parquet")
    assert predict(RunDir(tmp_path / "run"), str(tmp_path / "served"), tmp_path / "out", []) == 120
