"""``compare`` on runs as ``train`` leaves them: what they record decides what is refused."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.config import Config
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.small_rows import config_tree, write_rows


def run(root: Path, path: Path, name: str, seed: int = 1, **data: Any) -> None:
    tree = config_tree(root, data={"root": str(root)} | data, train={"seed": seed})
    train(Config.model_validate(tree | {"name": name}), RunDir(path))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that differ in their seed, their cohorts, or their test files."""
    folder = tmp_path_factory.mktemp("runs")
    for root, test_rows in (("rows", 60), ("more", 70)):
        write_rows(folder / root / "train" / "a.parquet", 90, seed=1)
        write_rows(folder / root / "test" / "b.parquet", test_rows, seed=2)
    table = pq.read_table(folder / "rows" / "test" / "b.parquet")
    (folder / "rows" / "split").mkdir()
    for part in range(2):  # the same rows in two files, the last ones first
        rows = table.slice(30 * (1 - part), 30)
        pq.write_table(rows, folder / "rows" / "split" / f"{part}.parquet")
    hidden = {"hide_share": 0.5}
    run(folder / "rows", folder / "a1", "a")
    run(folder / "rows", folder / "a2", "a", seed=2, test="split")
    run(folder / "rows", folder / "hidden", "hidden", cold_start=hidden)
    run(folder / "rows", folder / "oracle", "oracle", cold_start=hidden | {"oracle": True})
    run(folder / "more", folder / "more-rows", "more rows")
    return folder


def compared(folder: Path, *arguments: str) -> tuple[int, str]:
    paths = [
        argument if argument.startswith("-") else str(folder / argument) for argument in arguments
    ]
    done = CliRunner().invoke(main, ["compare", *paths])
    return done.exit_code, done.output


def test_the_same_rows_in_other_files_are_compared(runs: Path) -> None:
    code, text = compared(runs, "a1", "a2")
    assert code == 0 and "*" not in text
    assert [cell.strip() for cell in text.splitlines()[2].split("|")[1:3]] == ["a", "2"]


def test_an_oracle_is_compared_with_its_base(runs: Path) -> None:
    code, text = compared(runs, "hidden", "oracle")
    assert code == 0 and "*" not in text


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ("hidden", "data.cold_start.hide_share: 0.0 and 0.5"),
        ("more-rows", "all rows: 60 of "),
    ],
)
def test_other_rows_and_cohorts_are_refused_or_marked(
    runs: Path, other: str, difference: str
) -> None:
    code, text = compared(runs, "a1", other)
    assert code == 1 and "have other rows" in text and difference in text
    code, text = compared(runs, "a1", other, "--allow-different-data")
    assert code == 0 and " * " in text and difference in text
