"""Runs whose rows hold no new user's, or padded lists, say so in training and in evaluation."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.config import Config
from mail_torchrec.data.new_users import no_new_rows
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.small_rows import SCHEMA, config_tree, write_rows

PLAIN = {"zero_shot": None}


def write_old_users(path: Path, num_rows: int, seed: int) -> None:
    """Rows whose histories are filled up with 0 to one length, so that none is empty."""
    write_rows(path, num_rows, seed)
    table = pq.read_table(path)
    for name in ("history", "actions"):
        lists = [(row + [0] * 8)[:8] for row in table[name].to_pylist()]
        values = pa.array(lists, pa.list_(pa.int64(), 8))
        table = table.set_column(table.column_names.index(name), name, values)
    pq.write_table(table, path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for part, seed in (("train", 1), ("test", 2)):
        write_old_users(folder / "padded" / part / "a.parquet", 80, seed)
        write_rows(folder / "lists" / part / "a.parquet", 80, seed)
    return folder


def warnings_of(
    capsys: pytest.CaptureFixture[str], run_dir: Path, root: Path, **sections: dict[str, Any]
) -> list[str]:
    capsys.readouterr()
    train(Config.model_validate(config_tree(root, **sections)), RunDir(run_dir))
    lines = capsys.readouterr().err.splitlines()
    warnings = [line for line in lines if line.startswith("WARNING: ")]
    return [line for line in warnings if "worse than a constant" not in line]


def test_padded_histories_are_told_and_so_is_what_comes_of_them(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    padded, train_rows, test_rows = warnings_of(capsys, tmp_path / "run", root / "padded")
    assert f"'{root}/padded/train': column 'history': every list has 8 values" in padded
    assert padded.endswith("set schema.columns.history: {..., padding: 0}")
    for part, warning in (("train", train_rows), ("test", test_rows)):
        assert f"'{root}/padded/{part}': none of the 80 rows is a new user's" in warning
        assert "all its behaviour sequences together hold at most 0 behaviours" in warning
        assert "(data.cold_start.hide_share=0)" in warning
        assert "set 'padding' where lists are filled up to one length ('history')" in warning
        assert "raise data.new_user_max_behaviours" in warning
    evaluate_run(RunDir(tmp_path / "run"), None, [])
    assert "test': none of the 80 rows is a new user's" in capsys.readouterr().err
    evaluate_run(RunDir(tmp_path / "run"), None, ["data.cold_start.hide_share=0.9"])
    assert "new user" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shares", "remedy"),
    [
        ({"hide_share": 0}, "raise data.cold_start.hide_share, the share"),
        ({"test_share": 0.4}, "raise data.cold_start.hide_share or test_share, the share"),
        (
            {"hide_share": 0.5, "train_share": 0, "test_share": 0.4},
            "raise data.cold_start.train_share or test_share, the share",
        ),
    ],
)
def test_the_shares_that_may_be_raised_are_those_that_hide_someone(
    shares: dict[str, float], remedy: str
) -> None:
    tree = config_tree(Path("rows"), data={"root": "rows", "cold_start": shares})
    config = Config.model_validate(tree)
    said = no_new_rows("rows/train", 80, config.schema_, config.data)
    assert remedy in said
    for name, share in shares.items():
        assert f"data.cold_start.{name}={share:g}" in said


def test_with_the_padding_set_there_are_new_users_and_no_warning(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = SCHEMA["columns"] | {"history": SCHEMA["columns"]["history"] | {"padding": 0}}
    schema = {"columns": columns}
    assert warnings_of(capsys, tmp_path / "run", root / "padded", schema=schema) == []


@pytest.mark.parametrize(
    "sections",
    [
        {"model": PLAIN},
        {"data": {"cold_start": {"hide_share": 0.5}}},
        {"data": {"new_user_max_behaviours": 9}},
    ],
)
def test_where_nothing_is_made_for_new_users_or_there_are_some_only_padding_is_told(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sections: dict[str, Any]
) -> None:
    data = {"root": str(root / "padded")} | sections.get("data", {})
    told = warnings_of(capsys, tmp_path / "run", root / "padded", **sections | {"data": data})
    assert len(told) == 1 and "column 'history'" in told[0]


def test_a_column_of_flags_that_flags_nobody_is_told(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        table = pq.read_table(root / "lists" / part / "a.parquet")
        (tmp_path / "rows" / part).mkdir(parents=True)
        flagged = table.append_column("fresh", pa.array([0] * len(table)))
        pq.write_table(flagged, tmp_path / "rows" / part / "a.parquet")
    columns = SCHEMA["columns"] | {"is_new": {"group": "new_user", "column": "fresh"}}
    told = warnings_of(capsys, tmp_path / "run", tmp_path / "rows", schema={"columns": columns})
    assert len(told) == 2
    for warning in told:
        assert "A row is a new user's where column 'fresh' is 1" in warning
        assert "correct that column" in warning and "padding" not in warning


def test_data_with_new_users_is_not_warned_of(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert warnings_of(capsys, tmp_path / "run", root / "lists") == []
