"""A run directory or a checkpoint of another format is refused in one line by every reader."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.config import Config, dump_config
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from mail_torchrec.utils.formats import CHECKPOINT_FORMAT, RUN_FORMAT
from tests.support.small_rows import config_tree, write_rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_rows(folder / "rows/train/a.parquet", 120, seed=1)
    write_rows(folder / "rows/test/b.parquet", 60, seed=2)
    config = Config.model_validate(config_tree(folder / "rows"))
    train(config, RunDir(folder / "run"))
    return folder / "run"


def copy_of(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def commands(run: Path, tmp_path: Path) -> list[list[str]]:
    config = tmp_path / "c.yaml"
    config.write_text((run / "config.yaml").read_text())
    return [
        ["evaluate", "--run-dir", str(run)],
        ["export", "--run-dir", str(run), "--out", str(tmp_path / "out")],
        ["train", "--config", str(config), "--run-dir", str(run), "--resume"],
        ["compare", str(run)],
        ["plan", "--compare", str(run)],
        *(["checkpoint", what, str(run)] for what in ("list", "show", "verify")),
    ]


def refusals(run: Path, tmp_path: Path) -> set[str]:
    """The whole output of every command that reads a run."""
    found = set()
    for command in commands(run, tmp_path):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 1, (command, result.output)
        found.add(result.output)
    return found


def test_a_run_says_its_format_and_the_version_that_made_it(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    assert record.keys() == {"format", "version", "first_checkpoint"}
    assert record["format"] == RUN_FORMAT == 5
    [checkpoint] = RunDir(finished).checkpoints.published()
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert manifest["format"] == CHECKPOINT_FORMAT == 3


@pytest.mark.parametrize("number", [1, 4, 6])
def test_every_reader_refuses_a_run_of_another_format_in_one_line(
    finished: Path, tmp_path: Path, number: int
) -> None:
    run = copy_of(finished, tmp_path)
    if number == 1:
        (run / "run.json").unlink()  # as before there was such a file
    else:
        (run / "run.json").write_text(json.dumps({"format": number, "version": "9"}))
    [refusal] = refusals(run, tmp_path)
    assert refusal == (
        f"Error: run directory '{run}' should have format 5, received format {number}, which "
        "another version of mail-torchrec wrote; use that version, or train the run again\n"
    )


def test_a_checkpoint_of_another_format_is_refused_in_one_line(
    finished: Path, tmp_path: Path
) -> None:
    run = copy_of(finished, tmp_path)
    [checkpoint] = RunDir(run).checkpoints.published()
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    for what in ("list", "show", "verify"):
        for folder in (run, checkpoint):
            result = CliRunner().invoke(main, ["checkpoint", what, str(folder)])
            assert result.exit_code == 1
            assert result.output == (
                f"Error: checkpoint '{checkpoint}' should have format 3, received format 1, which "
                "another version of mail-torchrec wrote; use that version, or train the run again\n"
            )


def test_a_new_run_does_not_mind_what_it_replaces(finished: Path, tmp_path: Path) -> None:
    """A resumed run without a configuration begins anew, and writes its format."""
    (tmp_path / "run").mkdir()
    config = Config.model_validate(yaml.safe_load((finished / "config.yaml").read_text()))
    assert dump_config(config)
    train(config, RunDir(tmp_path / "run"), resume=True)
    assert json.loads((tmp_path / "run/run.json").read_text())["format"] == RUN_FORMAT
