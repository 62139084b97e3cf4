"""The first page is short, and the worked example of the pages trains, is exported and served."""

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
from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.reproduce.methods.definitions import METHODS
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.pages import page
from tools.served import running


@pytest.fixture(scope="module")
def worked_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of it in `runs/mine`."""
    tmp_path = tmp_path_factory.mktemp("worked")
    (tmp_path / "mine.yaml").write_text(configuration("mail_torchrec/data/README.md"))
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
    metrics = json.loads(RunDir(worked_example / "runs" / "mine").metrics.read_text())
    assert {part: figure["rows"] for part, figure in metrics.items()} == {
        "new": 20,
        "old": 40,
        "all": 60,
    }


@pytest.mark.long
def test_the_worked_example_is_exported_served_and_scored(
    worked_example: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serving = page("mail_torchrec/serve/README.md")
    [commands] = [b for b in serving.blocks("bash") if b.startswith("mail-torchrec export")]
    [snippet] = [b for b in serving.blocks("python") if 'InferInput("request"' in b]
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


def test_the_first_page_fits_on_220_lines_and_names_the_first_commands() -> None:
    first = page("README.md")
    assert first.text.count("\n") <= 220
    starts = [line.split()[0] for line in first.shell_lines]
    assert starts[:2] == ["./launch/quickstart.sh", "./launch/test.sh"]


def test_the_configuration_on_the_first_page_is_whole_and_a_part_of_the_worked_example(
    worked_example: Path, tmp_path: Path
) -> None:
    text = configuration("README.md")
    assert text.count("\n") <= 10
    (tmp_path / "mine.yaml").write_text(text)
    columns = load_config(tmp_path / "mine.yaml", []).schema_.columns
    known = load_config(worked_example / "mine.yaml", []).schema_.columns
    assert columns.keys() < known.keys()
    assert all(columns[name].group == known[name].group for name in columns)


def configuration(name: str) -> str:
    """The one configuration that a page shows."""
    [found] = [block for block in page(name).blocks("yaml") if block.startswith("name: mine\n")]
    return found


def test_every_method_is_named() -> None:
    text = page("mail_torchrec/reproduce/README.md").text
    assert [name for name in METHODS if f"`{name.removesuffix(' oracle')}`" not in text] == []
