"""What the README shows runs."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.config import load_config
from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.inference.manifest import read_golden
from mail_torchrec.model.builders import ModelSettings
from mail_torchrec.reproduce.methods import METHODS
from mail_torchrec.settings import Settings
from mail_torchrec.towers.multi_task import MultiTaskSettings
from mail_torchrec.towers.zero_shot import ZeroShotSettings
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tools.served import running

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture(scope="module")
def worked_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of it in `run`."""
    tmp_path = tmp_path_factory.mktemp("worked")
    [config] = re.findall(r"```yaml\n(name: mine\n.*?)```", README, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(config)
    row_1 = {
        "uid": 17,
        "age": "24-30",
        "city": None,
        "seen": [9, 4, 31],
        "seen_how": [1, 3, 1],
        "hour": 22,
        "item": 4,
        "tags": ["food"],
    }
    row_2 = {
        "uid": 18,
        "age": "50+",
        "city": "Ulm",
        "seen": [],
        "seen_how": [],
        "hour": 9,
        "item": 31,
        "tags": [],
    }
    rows = [
        row_1 | {"price": 3.5, "clicked": 1},
        row_2 | {"price": None, "clicked": 0},
        row_1 | {"item": 9, "price": 1.0, "clicked": 0},
    ]
    for folder in ("days=1-6", "day=7"):
        (tmp_path / folder).mkdir()
        pq.write_table(pa.Table.from_pylist(rows * 20), tmp_path / folder / "part.parquet")
    train(
        load_config(tmp_path / "mine.yaml", [f"data.root={tmp_path}"]),
        RunDir(tmp_path / "runs" / "mine"),
    )
    return tmp_path


def test_the_worked_example_trains(worked_example: Path) -> None:
    figures = json.loads(RunDir(worked_example / "runs" / "mine").metrics.read_text())
    assert {part: figure["rows"] for part, figure in figures.items()} == {
        "new": 20,
        "old": 40,
        "all": 60,
    }


def test_the_worked_example_is_exported_served_and_scored(
    worked_example: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section = README[README.index("### Serving it") : README.index("### By Triton or KServe")]
    [commands] = re.findall(r"```bash\n(mail-torchrec export.*?)```", section, re.DOTALL)
    [snippet] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    export, serve, request = commands.split("\n", 2)
    assert CliRunner().invoke(main, at(export, worked_example)).exit_code == 0
    options = at(serve.removesuffix(" &"), worked_example)
    model, others = Path(options[options.index("--model") + 1]), options[options.index("--name") :]
    with running(model, worked_example / "log", *others) as server:
        told = subprocess.run(
            ["bash", "-c", request.replace("localhost:8080", server.http)],
            cwd=worked_example,
            capture_output=True,
            text=True,
            check=True,
        )
        exec(snippet.replace("localhost:8080", server.http), {})
    [(_, golden), *_] = read_golden(model)
    answer = json.loads(told.stdout)
    assert np.abs(np.array(answer["outputs"][0]["data"]) - golden["pctr"]).max() <= 1e-5
    assert re.fullmatch(
        r"\[0\.\d+ +0\.\d+ *\] " + answer["model_version"], capsys.readouterr().out.strip()
    )


def at(command: str, folder: Path) -> list[str]:
    """The arguments of one of our commands, what it reads and writes in this folder."""
    words = shlex.split(command)
    assert words[0] == "mail-torchrec"
    return [
        str(folder / word) if word.startswith(("runs/", "models/")) else word for word in words[1:]
    ]


def test_the_file_tour_names_every_module() -> None:
    tour = README[README.index("## File tour") : README.index("## Your own Parquet")]
    package = Path(__file__).parents[2] / "mail_torchrec"
    quiet = {"__init__.py", "__main__.py", "quiet.py"}
    others = [*(package.parent / "tools").glob("*.py"), *(package / "presets").glob("*.yaml")]
    for path in [*package.rglob("*.py"), *others]:
        if path.name not in quiet and path.parent.name != "losses":
            assert path.name in tour, f"the README's file tour does not name {path}"


@pytest.mark.parametrize(
    "settings", [ModelSettings, ZeroShotSettings, MultiTaskSettings, ColdStartSettings]
)
def test_every_switch_of_the_model_and_of_the_cold_start_is_explained(
    settings: type[Settings],
) -> None:
    for key in settings.model_fields:
        assert re.search(rf"`([a-z_]+\.)*{key}[`=]|`\.{key}`", README), key


def test_every_method_is_named() -> None:
    for name in METHODS:
        assert f"`{name.removesuffix(' oracle')}`" in README, name


def test_files_that_the_readme_names_exist() -> None:
    root = Path(__file__).parents[2]
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", README):
        assert (root / target).exists(), target
