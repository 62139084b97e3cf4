"""The measurement of new items: its methods are configurations, and it goes on where it stopped."""

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mail_torchrec.config import load_config
from tests.support.small_rows import config_tree, write_rows
from tools.new_items import BASE, METHODS, ORACLE, main

ARGUMENTS = ["--seeds", "1", "--method", "clcrec", "--resamples", "20", "--test-share", "0.5"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for part, seed in (("train", 1), ("test", 2)):
        write_rows(tmp_path / part / "a.parquet", 160, seed)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_tree(tmp_path, model={"zero_shot": None})))
    return path


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_configuration(name: str, config: Path) -> None:
    common = ["data.cold_start.items={test_share: 0.4}", "data.new_items={max_count: 0}"]
    found = load_config(config, [*common, *METHODS[name]])
    assert (found.model.virtual_items is None) == (name in (BASE, ORACLE))


@pytest.mark.long
def test_a_table_of_methods_and_what_is_finished_is_kept(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["--config", str(config), "--out", str(out), *ARGUMENTS]
    first = CliRunner().invoke(main, command, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    lines = (out / "new_items.md").read_text().splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    assert rows[2:] == [BASE, "clcrec", ORACLE]
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.json")}
    assert len(before) == 3
    stopped = out / "clcrec-1"
    (stopped / "metrics.json").unlink()  # as if it had been stopped before its end
    again = CliRunner().invoke(main, command, catch_exceptions=False)
    assert again.exit_code == 0 and (stopped / "metrics.json").exists()
    kept = {path for path, time in before.items() if path.stat().st_mtime_ns == time}
    assert {path.parent.name for path in kept} == {"base-1", "oracle-1"}
