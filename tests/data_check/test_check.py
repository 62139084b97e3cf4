"""Checks of data: every finding is planted and found, and absent where the data is clean."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.config import load_config
from mail_torchrec.data_check import row_counts
from mail_torchrec.data_check.check import check_data
from mail_torchrec.data_check.check_report import CheckReport, Level
from tests.data_check.conftest import SmallShop

Change = Callable[[pa.Table], pa.Table]
BOTH, TRAIN, TEST = ("train", "test"), ("train",), ("test",)


def with_column(table: pa.Table, name: str, values: object) -> pa.Table:
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    return table.set_column(table.column_names.index(name), name, array)


def changed_lists(table: pa.Table, change: Callable[[list[object], int], list[object]]) -> pa.Table:
    """Changes the histories of a table, each list by its row's number."""
    for name in [name for name in table.column_names if name.startswith("seen_")]:
        lists = [change(values, row) for row, values in enumerate(table[name].to_pylist())]
        table = with_column(table, name, pa.array(lists, table[name].type))
    return table


def click_in_history(table: pa.Table) -> pa.Table:
    own = {"seen_item": table["item_id"].to_pylist()}
    clicked = table["clicked"].to_pylist()

    for name in [name for name in table.column_names if name.startswith("seen_")]:
        lists = table[name].to_pylist()
        for row, values in enumerate(lists):
            if clicked[row] and row % 2:
                values.append(own.get(name, [None] * len(lists))[row])
        table = with_column(table, name, pa.array(lists, table[name].type))
    return table


def impression_in_history(table: pa.Table) -> pa.Table:
    table = with_column(table, "clicked", table["clicked"])
    items = table["item_id"].to_pylist()
    table = changed_lists(table, lambda values, row: [*values, None])
    lists = [
        [*values[:-1], items[row]] for row, values in enumerate(table["seen_item"].to_pylist())
    ]
    return with_column(table, "seen_item", pa.array(lists, table["seen_item"].type))


def padded(table: pa.Table) -> pa.Table:
    table = changed_lists(table, lambda values, _: [*values, *[None] * (30 - len(values))])
    lists = [[value or 0 for value in values] for values in table["seen_item"].to_pylist()]
    return with_column(table, "seen_item", pa.array(lists, table["seen_item"].type))


def misaligned(table: pa.Table) -> pa.Table:
    lists = table["seen_brand"].to_pylist()
    lists[7] = [*lists[7], 1]
    return with_column(table, "seen_brand", pa.array(lists, table["seen_brand"].type))


def nan_in_vector(table: pa.Table) -> pa.Table:
    vectors = table["content"].to_pylist()
    vectors[5] = [float("nan"), *vectors[5][1:]]
    return with_column(table, "content", pa.array(vectors, table["content"].type))


def short_vectors(table: pa.Table) -> pa.Table:
    vectors = [vector[:-1] for vector in table["content"].to_pylist()]
    return with_column(table, "content", pa.array(vectors))


def half_null(table: pa.Table) -> pa.Table:
    is_null = np.arange(len(table)) % 2 == 0
    return with_column(table, "age", pc.if_else(pa.array(is_null), None, table["age"]))


def first_user_null(table: pa.Table) -> pa.Table:
    is_null = np.arange(len(table)) < 3
    return with_column(table, "user_id", pc.if_else(pa.array(is_null), None, table["user_id"]))


def column(name: str, value: Callable[[pa.Table], object]) -> Change:
    return lambda table: with_column(table, name, value(table))


PLANTED: dict[str, tuple[tuple[str, ...], Change, Level, str, str]] = {
    "click in history": (
        TRAIN,
        click_in_history,
        Level.ERROR,
        "leakage",
        "training: the target item is newest entry of 'seen_item' in ",
    ),
    "impression in history": (
        BOTH,
        impression_in_history,
        Level.WARNING,
        "leakage",
        "the target item is the newest entry of 'seen_item' in 100.0% of the rows",
    ),
    "label in disguise": (
        BOTH,
        column("plus", lambda table: table["clicked"].cast(pa.bool_())),
        Level.ERROR,
        "leakage",
        "column 'plus' predicts the label alone (AUC 1.000)",
    ),
    "known after the click": (
        BOTH,
        column(
            "hour",
            lambda table: np.where(np.arange(len(table)) % 8 == 0, 1, table["clicked"].to_numpy()),
        ),
        Level.WARNING,
        "leakage",
        "column 'hour' predicts the label alone (AUC 0.9",
    ),
    "constant": (
        BOTH,
        column("city", lambda table: ["Ulm"] * len(table)),
        Level.WARNING,
        "constant",
        "column 'city' is 'Ulm' in all training rows",
    ),
    "nulls": (TEST, half_null, Level.WARNING, "nulls", "column 'age' is null in 0.0% of the train"),
    "new ids": (
        TEST,
        column("category", lambda table: pc.binary_join_element_wise(table["category"], "x", "")),
        Level.WARNING,
        "coverage",
        "column 'category': 100.0% of the ids in test are not in the training rows",
    ),
    "padding": (BOTH, padded, Level.WARNING, "padding", "training: column 'seen_item': every list"),
    "one label": (
        TEST,
        column("clicked", lambda table: [0] * len(table)),
        Level.ERROR,
        "label",
        "test: all of the ",
    ),
    "label of three values": (
        TRAIN,
        column("clicked", lambda table: [2] * len(table)),
        Level.ERROR,
        "values",
        "column 'clicked' should be 0 or 1, received 2 in row 0",
    ),
    "rates": (
        TEST,
        column("clicked", lambda table: np.arange(len(table)) % 2),
        Level.WARNING,
        "label",
        "the rate of clicks is ",
    ),
    "types": (
        TEST,
        column("brand", lambda table: table["brand"].cast(pa.string())),
        Level.ERROR,
        "files",
        "'brand'",
    ),
    "missing": (
        TRAIN,
        lambda table: table.drop_columns("category"),
        Level.ERROR,
        "files",
        "column 'category' is missing",
    ),
    "alignment": (TRAIN, misaligned, Level.ERROR, "values", "row 7: column 'seen_brand' should be"),
    "weight": (
        TRAIN,
        column("weight", lambda table: [-1.0] * len(table)),
        Level.ERROR,
        "values",
        "column 'weight' should hold weights",
    ),
    "vector": (TRAIN, nan_in_vector, Level.ERROR, "values", "column 'content'"),
    "vectors of test": (TEST, short_vectors, Level.ERROR, "values", "of 16 numbers, received 15"),
    "numbers of test": (
        TEST,
        column("price", lambda table: [float("nan")] * len(table)),
        Level.ERROR,
        "values",
        "column 'price' should be finite, received nan in row 0",
    ),
    "conversions": (
        TRAIN,
        column("bought", lambda table: [2] * len(table)),
        Level.ERROR,
        "values",
        "column 'bought' should be 0 or 1, received 2 in row 0",
    ),
    "time": (
        TEST,
        column(
            "time",
            lambda table: pc.subtract(table["time"], pa.scalar(2 * 86_400_000, "duration[ms]")),
        ),
        Level.WARNING,
        "split",
        "test begins on 2024-05-01, and training goes on until 2024-05-02",
    ),
    "user": (TEST, first_user_null, Level.WARNING, "user", "test: 3 rows have no user"),
    "empty": (
        BOTH,
        lambda table: changed_lists(table, lambda *_: []),
        Level.WARNING,
        "history",
        "training: 'seen_item' is empty in all rows",
    ),
}


def check(shop: SmallShop, root: Path, *overrides: str) -> CheckReport:
    config = load_config(shop.config, [f"data.root={root}", *overrides])
    return check_data(config, 10_000)


def found(report: CheckReport, level: Level, name: str, message: str) -> bool:
    return any(
        finding.level is level and finding.check == name and message in finding.message
        for finding in report.findings
    )


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(name: str, shop: SmallShop, tmp_path: Path) -> None:
    parts, change, level, checked, message = PLANTED[name]
    for path in shop.folder.rglob("*.parquet"):
        table = pq.ParquetFile(path).read()
        below = path.relative_to(shop.folder)
        target = tmp_path / below.parts[0] / f"{below.parts[1].replace('=', '-')}.parquet"
        target.parent.mkdir(exist_ok=True)
        pq.write_table(change(table) if below.parts[0] in parts else table, target)
    report = check(shop, tmp_path)
    assert found(report, level, checked, message), report.text()


def test_clean_data_has_no_findings(shop: SmallShop) -> None:
    report = check(shop, shop.folder)
    assert report.findings == []


def test_days_whose_rate_of_clicks_is_another_are_told(
    shop: SmallShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_counts, "_MIN_ROWS", 100)
    for index, path in enumerate(sorted(shop.folder.rglob("*.parquet"))):
        table = pq.ParquetFile(path).read()
        clicked = np.arange(len(table)) % (2 if index == 1 else 40) == 0
        target = tmp_path / path.relative_to(shop.folder)
        target.parent.mkdir(parents=True)
        pq.write_table(with_column(table, "clicked", clicked.astype(int)), target)
    report = check(shop, tmp_path)
    assert found(report, Level.WARNING, "label", "by day: '2024-05-02' 0.0")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schema.columns.position.position_value=99", "in the training data, received 99; correct"),
        (
            "schema.tables={item_id: {init_from: {path: a.parquet, id: item_id, vector: content}}}",
            "set schema.tables.item_id.init_from.path",
        ),
    ],
)
def test_ids_of_settings_that_the_data_has_not_are_told(
    override: str, message: str, shop: SmallShop
) -> None:
    assert found(check(shop, shop.folder, override), Level.ERROR, "settings", message)


def test_labels_of_tasks_are_looked_at_as_others_are(shop: SmallShop) -> None:
    overrides = ["schema.columns.price.group=task_label", "schema.columns.price.transform=none"]
    clicks = ["model.multi_task=null", "schema.columns.bought=null"]
    tasks = "model.tasks={paid: {label: price, type: log_normal}}"
    assert check(shop, shop.folder, *overrides, tasks, *clicks).findings == []
    label = "schema.columns.price={group: task_label}"
    report = check(shop, shop.folder, label, "model.tasks={paid: {label: price}}", *clicks)
    assert found(report, Level.ERROR, "values", "column 'price' (a task's label) should be 0, 1 or")


def test_validation_rows_are_looked_at_where_they_have_files_of_their_own(
    shop: SmallShop, tmp_path: Path
) -> None:
    [path] = sorted((shop.folder / "test").rglob("*.parquet"))
    table = pq.ParquetFile(path).read()
    pq.write_table(with_column(table, "bought", [2] * len(table)), tmp_path / "later.parquet")
    later = os.path.relpath(tmp_path / "later.parquet", shop.folder)
    report = check(shop, shop.folder, f"data.validation={{path: {later}}}")
    assert f"validation: {len(table)} rows in " in report.head
    assert found(report, Level.ERROR, "values", "later.parquet, row group 0: column 'bought'")


def test_names_write_nothing_but_text_to_a_terminal() -> None:
    report = CheckReport()
    report.warn("constant", "column '\x1b[2Jage\r' holds one value")
    assert "column '?[2Jage?' holds one value\n" in report.text()


def test_settings_that_change_nothing_are_told(shop: SmallShop) -> None:
    report = check(shop, shop.folder, "model.multi_task=null")
    assert found(report, Level.WARNING, "unused", "columns.bought: nothing learns this conversion")


def test_rows_users_and_items_are_counted(shop: SmallShop) -> None:
    tables = {table.title: table.rows for table in check(shop, shop.folder).tables}
    read = {
        part: pa.concat_tables(
            pq.ParquetFile(path).read(["user_id", "item_id", "clicked", "seen_item"])
            for path in sorted((shop.folder / part).rglob("*.parquet"))
        )
        for part in BOTH
    }
    users = {part: set(table["user_id"].to_pylist()) for part, table in read.items()}
    items = set(read["train"]["item_id"].to_pylist())
    items |= {item for row in read["train"]["seen_item"].to_pylist() for item in row}
    rows = read["test"].to_pylist()
    new_rows = np.mean([row["user_id"] not in users["train"] for row in rows])
    new_users = len(users["test"] - users["train"]) / len(users["test"])
    new_items = np.mean([row["item_id"] not in items for row in rows])
    assert tables["Training and test"][2:] == [
        ["test: users not in training", f"{new_rows:.1%}", "", f"{new_users:.1%}"],
        ["test: item_id not in training", f"{new_items:.1%}", "", ""],
    ]
    [train, _] = tables["Training and test"][:2]
    assert train[1] == f"{len(read['train']):,}" and train[3] == f"{len(users['train']):,}"
    days = [row[1] for row in tables["Rows of training by day"]]
    assert len(days) == 2 and sum(int(rows) for rows in days) == len(read["train"])


def test_lists_that_are_cut_are_counted(shop: SmallShop) -> None:
    report = check(shop, shop.folder, "schema.sequences.seen.max_length=2")
    lengths = [
        len(row)
        for path in (shop.folder / "test").rglob("*.parquet")
        for row in pq.ParquetFile(path).read(["seen_item"])["seen_item"].to_pylist()
    ]
    [row] = next(table.rows for table in report.tables if table.title == "Lists of test")
    assert row == [
        "seen",
        f"{np.mean(lengths):.1f}",
        str(max(lengths)),
        f"{np.mean(np.array(lengths) == 0):.1%}",
        f"{np.mean(np.array(lengths) > 2):.1%}",
    ]


def test_the_command_ends_with_1_for_errors_alone_and_writes_reports(
    shop: SmallShop, tmp_path: Path
) -> None:
    command = ["check", "--config", str(shop.config), "--out", str(tmp_path / "report.json")]
    clean = CliRunner().invoke(main, command)
    assert clean.exit_code == 0 and "no errors, no warnings" in clean.output
    assert json.loads((tmp_path / "report.json").read_text())["findings"] == []
    same = CliRunner().invoke(main, [*command[:-1], str(tmp_path / "report.md"), "data.test=train"])
    assert same.exit_code == 1 and "ERROR split: training and test both read" in same.output
    assert "- **error** split: training and test both read" in (tmp_path / "report.md").read_text()
    wrong = CliRunner().invoke(main, [*command[:-1], str(tmp_path / "report.txt")])
    assert wrong.exit_code == 1 and "should end in .json or .md" in wrong.output


def test_a_sample_of_the_row_groups_is_said_to_be_one(shop: SmallShop) -> None:
    report = check_data(load_config(shop.config, [f"data.root={shop.folder}"]), 600)
    rows = {table.title: table.rows for table in report.tables}["Training and test"]
    train = int(rows[0][1])
    assert 500 < train < 700 and f"looked at {train}; shares of new users" in report.head
