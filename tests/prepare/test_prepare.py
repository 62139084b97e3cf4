"""Logs as published, through the command line, to rows that train."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.config import load_config
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.prepare import pipeline, publish
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support import raw_logs

SMALL = [
    "model.zero_shot.encoder_dims=[16,12]",
    "model.zero_shot.decoder_dims=[12]",
    "model.tower_options={num_negatives: 20}",
]


def prepare(dataset: str, raw: Path, out: Path, *options: str) -> str:
    """Runs the command and returns its output; raises its error where it fails."""
    done = CliRunner().invoke(
        main, ["prepare", dataset, "--raw", str(raw), "--out", str(out), "--threads", "1", *options]
    )
    if done.exit_code:
        raise ValueError(done.output)
    return done.output


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Prepares each data set once: the folder with ``raw`` and ``out``."""
    folders: dict[str, Path] = {}

    def get(dataset: str) -> Path:
        if dataset not in folders:
            folders[dataset] = tmp_path_factory.mktemp(dataset)
            raw_logs.WRITERS[dataset](folders[dataset] / "raw")
            prepare(
                dataset,
                folders[dataset] / "raw",
                folders[dataset] / "out",
                "--buckets",
                "3",
                "--history",
                "7",
            )
        return folders[dataset]

    return get


def rows_of(out: Path, *parts: str) -> list[dict[str, Any]]:
    return [
        row for part in parts or ("train", "test") for row in pq.read_table(out / part).to_pylist()
    ]


@pytest.mark.parametrize("dataset", raw_logs.WRITERS)
def test_the_configuration_that_comes_out_trains(
    prepared: Callable[[str], Path], dataset: str, tmp_path: Path
) -> None:
    out = prepared(dataset) / "out"
    metrics = train(
        load_config(out / "config.yaml", [*SMALL, "train.batch_size=64"]), RunDir(tmp_path / "run")
    )
    assert metrics["all"]["rows"] == pq.read_table(out / "test").num_rows > 0
    assert 0 < metrics["new"]["rows"] < metrics["all"]["rows"]


@pytest.mark.parametrize("dataset", raw_logs.WRITERS)
def test_the_configuration_is_the_papers_setting(
    prepared: Callable[[str], Path], dataset: str
) -> None:
    config = load_config(prepared(dataset) / "out" / "config.yaml", [])
    assert (config.schema_.dim, config.train.batch_size, config.data.cold_start.hide_share) == (
        32,
        1024,
        0.4,
    )
    lengths = {config.schema_.columns[name].max_length for name in config.schema_.sequences}
    assert (config.model.tower, lengths, isinstance(config.schema_, Schema)) == ("dmr", {7}, True)


def test_alimama_rows_are_the_published_ones_with_histories_before_them(
    prepared: Callable[[str], Path],
) -> None:
    raw, out = prepared("alimama") / "raw", prepared("alimama") / "out"
    codes = {"pv": 1, "fav": 2, "cart": 3, "buy": 4}
    log = [
        (int(e["user"]), int(e["time_stamp"]), (codes[e["btag"]], int(e["brand"]), int(e["cate"])))
        for e in raw_logs.read(raw / "behavior_log.csv")
    ]
    ads = {ad["adgroup_id"]: ad for ad in raw_logs.read(raw / "ad_feature.csv")}
    users = {user["userid"]: user for user in raw_logs.read(raw / "user_profile.csv")}
    log.sort(key=lambda event: event[2])
    bought = [event for event in log if event[2][0] == 4]
    expected = []
    for row in raw_logs.read(raw / "raw_sample.csv"):
        user, time = int(row["user"]), int(row["time_stamp"])
        history, buys = (raw_logs.newest_before(events, user, time, 7) for events in (log, bought))
        ad, profile = ads[row["adgroup_id"]], users[row["user"]]
        fields: dict[str, Any] = {
            "user_id": user,
            "time": time,
            "clk": int(row["clk"]),
            "pid": row["pid"],
            "price": float(ad["price"]),
        }
        fields |= {
            "brand": None if ad["brand"] == "NULL" else int(ad["brand"]),
            "cate_id": int(ad["cate_id"]),
        }
        fields |= {"hour": time // 3_600 % 24 + 8 - (24 if time // 3_600 % 24 >= 16 else 0)}
        fields |= {
            "pvalue_level": int(profile["pvalue_level"]) if profile["pvalue_level"] else None,
            "age_level": int(profile["age_level"]),
        }
        fields |= {
            "actions": [a for a, _, _ in history],
            "brands": [b for _, b, _ in history],
            "cates": [c for _, _, c in history],
        }
        expected.append(
            fields
            | {"bought_brands": [b for _, b, _ in buys], "bought_cates": [c for _, _, c in buys]}
        )
    found = [{name: row[name] for name in expected[0]} for row in rows_of(out)]
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert any(row["bought_cates"] for row in found) and any(
        len(row["cates"]) == 7 for row in found
    )


def test_kuairand_histories_come_from_both_logs_by_what_the_user_did(
    prepared: Callable[[str], Path],
) -> None:
    raw, out = prepared("kuairand") / "raw", prepared("kuairand") / "out"
    log = [
        {key: int(float(value)) for key, value in row.items()}
        for name in raw_logs.KUAIRAND_LOGS
        for row in raw_logs.read(raw / "data" / name)
    ]

    def events(keep: Callable[[dict[str, int]], bool]) -> list[tuple[int, int, tuple[int, int]]]:
        code = {True: 3, False: 2}
        chosen = [
            (
                r["user_id"],
                r["time_ms"],
                (code[bool(r["is_like"])] if r["is_like"] or r["long_view"] else 1, r["video_id"]),
            )
            for r in log
            if keep(r)
        ]
        return sorted(chosen, key=lambda event: event[2])

    watched = events(lambda row: bool(row["is_click"] or row["long_view"] or row["is_like"]))
    skipped = events(lambda row: not (row["is_click"] or row["long_view"] or row["is_like"]))
    found = rows_of(out)
    assert len(found) == len(log) == 300
    for row in found:
        history = raw_logs.newest_before(watched, row["user_id"], row["time"], 7)
        assert (row["watch_action_seq"], row["watch_seq"]) == (
            [code for code, _ in history],
            [video for _, video in history],
        )
        # Alone, videos of one instant stand in the order of their ids.
        by_video = sorted(skipped, key=lambda event: event[2][1])
        assert row["skip_seq"] == [
            video for _, video in raw_logs.newest_before(by_video, row["user_id"], row["time"], 7)
        ]


def test_kuairand_quotes_nulls_and_unknown_users_are_read_right(
    prepared: Callable[[str], Path],
) -> None:
    rows = rows_of(prepared("kuairand") / "out")
    by_video = {row["video_id"]: row for row in rows}
    assert (by_video[0]["tag"], by_video[1]["tag"], by_video[2]["tag"]) == ([1, 12], [39], None)
    assert (by_video[2]["video_duration"], by_video[3]["video_duration"]) == (None, 60_000.0)
    for row in rows:
        known = row["user_id"] < 5
        assert (row["follow_user_num_range"], row["onehot_feat1"]) == (
            ("(0,10]", "2.0") if known else (None, None)
        )
        assert row["onehot_feat2"] is None and row["hour"] == row["time"] // 3_600_000 % 24 + (
            8 if row["time"] // 3_600_000 % 24 < 16 else -16
        )


def test_movielens_ratings_become_labels_and_histories(prepared: Callable[[str], Path]) -> None:
    raw, out = prepared("movielens") / "raw", prepared("movielens") / "out"
    ratings = [
        tuple(map(int, line.split("::"))) for line in (raw / "ratings.dat").read_text().splitlines()
    ]
    expected = sorted(
        (user, movie, time, int(rating >= 4)) for user, movie, rating, time in ratings
    )
    found = rows_of(out)
    assert (
        sorted((row["user_id"], row["movie_id"], row["time"], row["liked"]) for row in found)
        == expected
    )
    events = sorted(
        ((user, time, (movie, rating)) for user, movie, rating, time in ratings),
        key=lambda event: event[2],
    )
    for row in found:
        history = raw_logs.newest_before(events, row["user_id"], row["time"], 7)
        assert (row["rated_seq"], row["rating_seq"]) == (
            [movie for movie, _ in history],
            [rating for _, rating in history],
        )
        assert row["genres"] == (["Drama", "War"] if row["movie_id"] % 2 else ["Comedy"])


@pytest.mark.parametrize(
    ("dataset", "second", "offset"),
    [("alimama", 1, 28_800), ("kuairand", 1_000, 28_800), ("movielens", 1, 0)],
)
def test_the_last_day_is_the_test_data(
    prepared: Callable[[str], Path], dataset: str, second: int, offset: int
) -> None:
    days = {
        part: {
            (row["time"] // second + offset) // 86_400
            for row in rows_of(prepared(dataset) / "out", part)
        }
        for part in ("train", "test")
    }
    assert days["test"] == {max(days["train"]) + 1}


@pytest.mark.parametrize("dataset", raw_logs.WRITERS)
@pytest.mark.slow
def test_pyspark_gives_the_rows_that_duckdb_gives(
    prepared: Callable[[str], Path], dataset: str, tmp_path: Path
) -> None:
    pytest.importorskip(
        "pyspark",
        reason=(
            "the extra 'spark' is not installed, by choice: it is 450 MB and wants Java; pip "
            "install -e '.[spark]'"
        ),
    )
    raw, out = prepared(dataset) / "raw", prepared(dataset) / "out"
    prepare(
        dataset, raw, tmp_path / "out", "--engine", "pyspark", "--buckets", "2", "--history", "7"
    )
    for part in ("train", "test"):
        by_spark, by_duckdb = (pq.read_table(folder / part) for folder in (tmp_path / "out", out))
        assert by_spark.column_names == by_duckdb.column_names
        assert sorted(by_spark.to_pylist(), key=str) == sorted(by_duckdb.to_pylist(), key=str)
    records = [
        json.loads((folder / "prepared.json").read_text()) for folder in (tmp_path / "out", out)
    ]
    assert records[0]["files"] == records[1]["files"] and records[0]["rows"] == records[1]["rows"]


@pytest.mark.parametrize(
    "options", [["--buckets", "1"], ["--buckets", "6", "--memory-limit", "500MB"]]
)
def test_rows_do_not_depend_on_the_buckets(
    prepared: Callable[[str], Path], options: list[str], tmp_path: Path
) -> None:
    raw, out = prepared("kuairand") / "raw", prepared("kuairand") / "out"
    prepare("kuairand", raw, tmp_path / "out", "--history", "7", *options)
    assert sorted(rows_of(tmp_path / "out"), key=str) == sorted(rows_of(out), key=str)


def test_preparing_twice_gives_the_same_bytes_in_order_of_time(
    prepared: Callable[[str], Path], tmp_path: Path
) -> None:
    raw, out = prepared("kuairand") / "raw", prepared("kuairand") / "out"
    prepare("kuairand", raw, tmp_path / "out", "--history", "7", "--buckets", "3")
    for path in sorted(out.glob("t*/*.parquet")):
        table = pq.read_table(path)
        assert table.equals(pq.read_table(tmp_path / "out" / path.relative_to(out)))
        assert table["time"].to_pylist() == sorted(table["time"].to_pylist())
        assert not any(pa.types.is_large_list(kind) for kind in table.schema.types)


def test_a_killed_preparation_goes_on_and_keeps_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw_logs.kuairand(raw)
    done: list[str] = []
    rows, read = pipeline._build_rows, pipeline._parse_file

    def counting(*arguments: Any) -> Any:
        folder = arguments[-1]
        done.append(folder.name)
        (folder / "half-written").write_text("left behind by a kill")
        if len(done) == 6:
            raise KeyboardInterrupt
        return (rows if folder.name.startswith("rows") else read)(*arguments)

    monkeypatch.setattr(pipeline, "_build_rows", counting)
    monkeypatch.setattr(pipeline, "_parse_file", counting)
    with pytest.raises(ValueError):
        prepare("kuairand", raw, out, "--buckets", "3")  # Click reports the interruption
    tables = ("user_features_pure.csv", "video_features_basic_pure.csv")
    read_first = [f"read-{name}.half" for name in (*raw_logs.KUAIRAND_LOGS, *tables)]
    assert done == [*read_first, "rows-00000.half", "rows-00001.half"]
    assert not (out / "train").exists() and not (out / "prepared.json").exists()
    prepare("kuairand", raw, out, "--buckets", "3")
    assert done[6:] == ["rows-00001.half", "rows-00002.half"]
    assert len(rows_of(out)) == 300 and sorted(path.name for path in out.iterdir()) == [
        ".lock",
        "config.yaml",
        "prepared.json",
        "test",
        "train",
    ]
    prepare("kuairand", raw, out, "--buckets", "3")  # nothing left to do
    assert len(done) == 8


def test_a_preparation_killed_while_it_publishes_loses_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw_logs.kuairand(raw)
    with monkeypatch.context() as patch:
        patch.setattr(publish, "config_text", lambda *_: 1 / 0)
        with pytest.raises(ValueError):
            prepare("kuairand", raw, out, "--buckets", "2")
    prepare("kuairand", raw, out, "--buckets", "2")
    assert len(rows_of(out)) == 300


def test_other_settings_or_files_are_refused_for_a_begun_folder(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw_logs.movielens(raw)
    prepare("movielens", raw, out)
    with pytest.raises(
        ValueError,
        match=r"begun with other settings or files: history was 100, now 5; choose another --out, "
        r"or delete it",
    ):
        prepare("movielens", raw, out, "--history", "5")
    (raw / "users.dat").write_text((raw / "users.dat").read_text() + "9::F::25::1::4\n")
    with pytest.raises(
        ValueError,
        match=r"begun with other settings or files: users.dat has changed; choose another --out",
    ):
        prepare("movielens", raw, out)


def test_what_is_in_the_way_is_left_alone(tmp_path: Path) -> None:
    raw_logs.movielens(tmp_path / "raw")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(
        ValueError,
        match=r"should be empty or not exist, it holds \['thesis.tex'\]; choose another --out",
    ):
        prepare("movielens", tmp_path / "raw", tmp_path / "out")


def test_the_summary_counts_lines_rows_speed_and_memory(tmp_path: Path) -> None:
    raw_logs.movielens(tmp_path / "raw")
    with (tmp_path / "raw" / "ratings.dat").open("a") as file:
        file.write("1::2::five::978300000\n")
    printed = prepare("movielens", tmp_path / "raw", tmp_path / "out", "--test-days", "2")
    record = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert "ratings.dat: 250 lines, and 1 malformed" in printed and "250 impressions in" in printed
    assert (
        f"{record['lines_per_second']:,} lines/s, peak memory (RSS of this process) "
        f"{record['peak_rss_bytes'] / 1e9:.2f} GB" in printed
    )
    assert record["rows"]["train"] + record["rows"]["test"] == record["rows"]["impressions"] == 250
    assert record["peak_rss_bytes"] < 8e9 and "duckdb" in record["engine"]
