"""A tower that a run names by an import path is imported where the user named it, else never."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.towers import registry
from tests.support.small_rows import config_tree, write_rows

TOWER = "foreign_tower:Tower"
MODULE = """
from pathlib import Path
Path("imported").touch()
from mail_torchrec.towers.base_dnn import BaseDNN as Tower
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tower of one's own, whose user named it on the command line."""
    folder = tmp_path_factory.mktemp("foreign")
    write_rows(folder / "rows/train/a.parquet", 120, seed=1)
    write_rows(folder / "rows/test/b.parquet", 60, seed=2)
    (folder / "foreign_tower.py").write_text(MODULE)
    tree = config_tree(folder / "rows")
    tree["model"] = {"tower": "base_dnn", "tower_options": {"hidden_dims": [8]}}
    (folder / "mine.yaml").write_text(yaml.safe_dump(tree))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that says it is of that tower, in a process that never imported it."""
    monkeypatch.syspath_prepend(str(finished))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "foreign_tower", raising=False)
    run = finished / "run"
    if not run.exists():
        invoke(
            "train", "--config", finished / "mine.yaml", "--run-dir", run, f"model.tower={TOWER}"
        )
        (tmp_path / "imported").unlink()
        sys.modules.pop("foreign_tower")
    monkeypatch.setattr(registry, "_allowed", set())
    return Path(shutil.copytree(run, tmp_path / "run"))


def invoke(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


COMMANDS = {
    "evaluate": ["evaluate", "--run-dir", "run"],
    "predict": ["predict", "--run-dir", "run", "--data", "rows", "--out", "out"],
    "export": ["export", "--run-dir", "run", "--out", "out"],
    "plan": ["plan", "--config", "run", "--hardware", "cpu", "--ranks", "1"],
    "plan --compare": ["plan", "--compare", "run"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_tower_of_somebody_else_is_not_imported(run: Path, command: str) -> None:
    assert invoke(*COMMANDS[command], code=1) == (
        f"Error: 'run/config.yaml' names the tower '{TOWER}', and the code of module "
        f"'foreign_tower' would run; add --allow-tower {TOWER} if you know it and trust it\n"
    )
    assert not Path("imported").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--run-dir", "run", "--allow-tower", TOWER],
        ["evaluate", "--run-dir", "run", f"model.tower={TOWER}"],
        ["plan", "--compare", "run", "--allow-tower", TOWER],
    ],
)
def test_it_is_imported_where_the_user_names_it(run: Path, words: list[str]) -> None:
    invoke(*words)
    assert Path("imported").exists()


def test_going_on_with_a_run_needs_no_other_word_than_its_configuration(
    run: Path, finished: Path
) -> None:
    resume = ["train", "--config", finished / "mine.yaml", "--run-dir", "run", "--resume"]
    invoke(*resume, f"model.tower={TOWER}", "train.epochs=2")
    assert Path("imported").exists()


def test_going_on_imports_no_tower_that_the_run_names_instead(run: Path, finished: Path) -> None:
    resume = ["train", "--config", finished / "mine.yaml", "--run-dir", "run", "--resume"]
    assert f"model.tower: {TOWER} there, base_dnn now" in invoke(*resume, code=1)
    invoke("compare", "run")
    assert not Path("imported").exists()
