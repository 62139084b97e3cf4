"""Drafted configurations: every planted column gets its place, and the reason for it."""

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.config import Config, load_config
from mail_torchrec.data_check.drafted_config import draft_config

USERS, ITEMS = 150, 60
START_MS = 1_714_521_600_000


def planted(num_rows: int, seed: int = 0) -> dict[str, Any]:
    """Columns of one row an impression, each with one place in a schema."""
    random = np.random.default_rng(seed)
    user, sku = random.integers(0, USERS, num_rows), random.integers(1, ITEMS + 1, num_rows)
    clicked = random.random(num_rows) < 0.3
    lengths = random.integers(0, 6, num_rows)
    basket = [random.integers(1, ITEMS + 1, n).tolist() + [0] * (5 - n) for n in lengths]
    seen_lengths = random.integers(0, 9, num_rows)
    seen = [random.integers(1, ITEMS + 1, n) for n in seen_lengths]
    return {
        "uid": [f"u{number}" for number in user],
        "isClick": clicked,
        "bought": (clicked & (random.random(num_rows) < 0.5)).astype(int),
        "play_seconds": np.where(clicked, 9.0, 1.0) + random.random(num_rows),
        "ipw": np.where(clicked, 1.0, 4.0),
        "rank": random.integers(1, 9, num_rows),
        "ts": START_MS + np.arange(num_rows) * 60_000,
        "country": pa.array([None if n % 5 == 0 else f"c{n % 4}" for n in user.tolist()]),
        "a.b": (user % 7).tolist(),
        "device": random.integers(0, 3, num_rows),
        "request_id": np.arange(num_rows) * 7 + seed * 10**6,
        "nothing": pa.nulls(num_rows),
        "always": ["x"] * num_rows,
        "sku": sku,
        "shop": [f"s{number % 9}" for number in sku],
        "price": pa.array([Decimal(int(number)) / 4 for number in sku], pa.decimal128(9, 2)),
        "tags": [[f"t{number % 5}", f"t{number % 3}"][: number % 3] for number in sku.tolist()],
        "emb": pa.array([[n / 7, 1.0, -n] if n % 9 else None for n in sku.tolist()]),
        "since": pa.array((sku * 3_600 * 10**6 + 10**15).tolist(), pa.timestamp("us")),
        "basket": basket,
        "basket_how": [[1 + n % 3 if n else 0 for n in row] for row in basket],
        "seen_sku": [row.tolist() for row in seen],
        "seen_shop": [[f"s{n % 9}" for n in row] for row in seen],
        "seen_at": [sorted((START_MS - row * 10**6).tolist()) for row in seen],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    for day, rows in (("day=2024-05-01", 1500), ("day=2024-05-02", 1200)):
        path = folder / "train" / day / "a.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(planted(rows, len(day) + rows)), path, row_group_size=400)
    pq.write_table(pa.table(planted(50)), folder / "test.parquet")
    return folder


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return draft_config(str(folder), {}, 10_000)


@pytest.fixture(scope="module")
def tree(text: str) -> Any:
    return yaml.safe_load(text)


EXPECTED: dict[str, dict[str, Any]] = {
    "uid": {"group": "group_key"},
    "isClick": {"group": "label"},
    "bought": {"group": "conversion"},
    "ipw": {"group": "weight"},
    "rank": {"group": "position"},
    "country": {"group": "attribute"},
    "a_b": {"group": "attribute", "column": "a.b"},
    "device": {"group": "context"},
    "ts_hour": {"group": "context", "column": "ts", "part": "hour", "time_unit": "millisecond"},
    "sku": {"group": "item"},
    "shop": {"group": "item"},
    "price": {"group": "item", "kind": "numeric"},
    "tags": {"group": "item", "kind": "list", "max_length": 10},
    "emb": {"group": "item", "kind": "vector"},
    "since_age": {
        "group": "item",
        "kind": "numeric",
        "column": "ts",
        "age_of": "since",
        "age_unit": "day",
        "time_unit": "millisecond",
        "transform": "log",
    },
    "basket": {
        "group": "behaviour",
        "kind": "list",
        "max_length": 10,
        "padding": 0,
        "table": "sku",
    },
    "basket_how": {
        "group": "behaviour",
        "kind": "list",
        "action_of": "basket",
        "max_length": 10,
    },
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_planted_column_is_drafted_as_what_it_is(name: str, tree: Any) -> None:
    assert tree["schema"]["columns"][name] == EXPECTED[name]


def test_no_other_column_is_drafted(tree: Any) -> None:
    assert set(tree["schema"]["columns"]) == set(EXPECTED)


def test_aligned_lists_are_one_sequence_whose_parts_share_the_tables_of_the_item(tree: Any) -> None:
    assert tree["schema"]["sequences"] == {
        "seen": {
            "item": {"column": "seen_sku", "table": "sku"},
            "shop": {"column": "seen_shop", "table": "shop"},
            "max_length": 10,
        }
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("play_seconds", "predicts the label alone"),
        ("request_id", "a new value in nearly every row"),
        ("nothing", "it holds no value"),
        ("always", "one value in all sampled rows"),
        ("seen_at", "times of seen_sku, which rise"),
        ("day", "a time"),
    ],
)
def test_a_column_that_is_left_out_says_why(name: str, reason: str, text: str) -> None:
    [line] = [line for line in text.splitlines() if line.startswith(f"    # {name} ")]
    assert f"left out: {reason}" in line


def test_every_column_has_a_comment(text: str) -> None:
    body = text.partition("  columns:\n")[2].partition("  sequences:\n")[0]
    assert len(body.splitlines()) > 20
    assert all("  # " in line or line == "    # Not read:" for line in body.splitlines())


def test_a_draft_loads_and_a_named_column_is_taken(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    command = ["init", "--data", str(folder), "--out", str(out), "--rows", "900"]
    done = CliRunner().invoke(main, [*command, "--label", "bought"])
    assert done.exit_code == 0, done.output
    config = load_config(out, [])
    assert isinstance(config, Config) and config.schema_.label == "bought"
    assert config.data.train == "train" and config.data.test == "test.parquet"
    assert "# 900 of 2,700 training rows" in out.read_text()


def changed(**columns: Any) -> dict[str, Any]:
    """Planted columns of which some are others; None takes one out."""
    rows = planted(300) | columns
    return {name: values for name, values in rows.items() if values is not None}


HISTORIES = dict.fromkeys(("basket", "basket_how", "seen_sku", "seen_shop", "seen_at"))


def faults() -> Iterator[tuple[dict[str, Any], list[str], str]]:
    yield changed(isClick=None, bought=None), [], "no column looks like the label"
    yield changed(uid=None), [], "no column looks like the user's key"
    yield changed(), ["--item", "skus"], "--item skus: no such column; there are uid, isClick"
    yield changed(), ["--item", "price"], "--item price: should be a column of ids"
    yield changed(), ["--user", "isClick"], "--user isClick: that is the label; name another"
    yield changed(), ["--label", "country"], "--label country: should be a column of 0 and 1; there"
    yield changed(), ["--rows", "0"], "0 is not in the range x>=1"
    yield changed(**HISTORIES), [], "no column holds lists of ids of the target item 'sku', and a"
    users = {"country": None, "a.b": None}
    yield changed(**users), [], "no column of ids follows from the user 'uid', and a model needs an"


@pytest.mark.parametrize(("columns", "options", "message"), list(faults()))
def test_what_cannot_be_drafted_is_told_with_a_remedy(
    columns: dict[str, Any], options: list[str], message: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    done = CliRunner().invoke(main, ["init", "--data", str(tmp_path), *options])
    assert done.exit_code != 0 and message in done.output


def test_other_files_and_a_draft_that_is_there_are_told_before_anything_is_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "log.csv").write_text("uid,clicked\n1,0\n")
    with pytest.raises(ValueError, match=r"log\.csv should be Parquet by its name; .*reads CSV"):
        draft_config(str(tmp_path), {}, 10)
    command = ["init", "--data", str(tmp_path), "--out", str(tmp_path / "log.csv")]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1 and "log.csv exists, perhaps with your changes" in done.output


def test_a_column_of_two_types_names_both_files(tmp_path: Path) -> None:
    for name, uid in (("a", None), ("b", list(range(300)))):
        rows = changed() if uid is None else changed(uid=uid)
        pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet")
    pq.write_table(pa.table(changed()), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: column 'uid' is of type int64.* string"):
        draft_config(str(tmp_path), {}, 1_000)


def test_days_in_folders_are_named_as_days_and_the_last_one_is_the_test(tmp_path: Path) -> None:
    for day in (3, 1, 2):
        path = tmp_path / f"log/dt=2024-05-0{day}/a.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(changed(dt=[day] * 300)), path)
    data = yaml.safe_load(draft_config(f"{tmp_path}/log/", {}, 10_000))["data"]
    first, second, last = (date(2024, 5, day) for day in (1, 2, 3))
    of_folder = {"path": "log", "column": "dt"}
    assert data == {
        "root": str(tmp_path),
        "train": of_folder | {"days": [first, second]},
        "test": of_folder | {"days": [last, last]},
    }


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (["train.parquet", "test.parquet"], "train.parquet", "test.parquet"),
        (["training/a.parquet", "eval/a.parquet"], "training", "eval"),
        (["3.parquet", "1.parquet", "2.parquet"], ["1.parquet", "2.parquet"], "3.parquet"),
        (["log/1.parquet", "log/2.parquet"], ["1.parquet"], "2.parquet"),
        (["rows.parquet"], "rows.parquet", "rows.parquet"),
    ],
)
def test_training_and_test_are_told_by_names(
    names: list[str], train: object, test: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(changed()), tmp_path / name)
    text = draft_config(str(tmp_path), {}, 10_000)
    data = yaml.safe_load(text)["data"]
    assert (data["train"], data["test"]) == (train, test)
    assert Path(data["root"], test).exists()
    assert ("ONE FILE" in text) == (train == test)


ODD: dict[str, tuple[pa.Array, str]] = {
    "struct": (pa.array([{"a": 1}] * 300), "of type struct<a: int64>, which no kind of column"),
    "lists of lists": (pa.array([[[1], [2]]] * 300), "of type list<element: list<"),
    "duration": (pa.array(range(300), pa.duration("s")), "of type duration[s]"),
    "64 bits": (pa.array([2**64 - 1] * 300, pa.uint64()), "fit into signed 64-bit integers"),
    "bytes": (pa.array([b"\xff"] * 300), "text in UTF-8"),
    "infinite": (pa.array([1.0, np.inf] * 150), "NaN or infinity"),
    "uneven": (pa.array([[0.5], [0.5, 1.5]] * 150), "lists of numbers of several lengths"),
    "no lists": (pa.array([[]] * 300, pa.list_(pa.int64())), "it holds no value"),
    "two\nlines # :": (pa.array(["x"] * 300), "one value in all sampled rows"),
}


def test_columns_that_nothing_reads_are_left_out_and_the_rest_is_drafted(tmp_path: Path) -> None:
    odd = {name: values for name, (values, _) in ODD.items()}
    kept = {"two\nlines, too": [f"v{number % 3}" for number in range(300)]}
    pq.write_table(pa.table(changed(**odd, **kept)), tmp_path / "rows.parquet")
    (tmp_path / "mine.yaml").write_text(text := draft_config(str(tmp_path), {}, 1_000))
    columns = load_config(tmp_path / "mine.yaml", []).schema_.columns
    assert columns["two_lines, too"].column == "two\nlines, too"
    missing = [
        name
        for name, (_, reason) in ODD.items()
        if name in columns
        or not any("left out" in line and reason in line for line in text.splitlines())
    ]
    assert missing == []
