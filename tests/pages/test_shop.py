"""The way from a shop's logs to a served model, run word for word from the page of the data."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset as pads
import pytest
from click.testing import CliRunner

from mail_torchrec.cli import main
from tests.data_check.conftest import write_small_shop
from tests.support.pages import page
from tools.served import running
from tools.update_pages import ROOT

PAGE = "mail_torchrec/data/README.md"


def block(language: str, start: str) -> str:
    [found] = [text for text in page(PAGE).blocks(language) if text.startswith(start)]
    return found


def rows(folder: Path) -> list[dict[str, object]]:
    table = pads.dataset(folder, partitioning="hive").to_table()
    order = ["user_id", "time", "item_id", "position"]
    made: list[dict[str, object]] = table.sort_by([(key, "ascending") for key in order]).to_pylist()
    return made


def steps() -> Iterator[str]:
    """The commands before the server, its own and the request last."""
    *commands, serve, jq, curl = block("bash", "python tools/shop_log.py").strip().split("\n")
    yield from commands
    yield serve
    yield f"{jq}\n{curl}"


@pytest.mark.long
@pytest.mark.distributed
def test_the_commands_of_the_page_run_from_logs_to_a_served_model(tmp_path: Path) -> None:
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    (tmp_path / "events.yaml").write_text(block("yaml", "# events.yaml"))
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": binaries, "OMP_NUM_THREADS": "1"}
    *commands, serve, request = steps()
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if command.startswith("mail-torchrec check"):
            assert "no errors, no warnings" in done.stdout
    made, expected = rows(tmp_path / "prepared/rows"), rows(tmp_path / "shop/rows")
    assert [row | {"hour": None} for row in made] == [row | {"hour": None} for row in expected]
    metrics = json.loads((tmp_path / "runs/shop/metrics.json").read_text())
    assert metrics["all"]["auc"] > 0.7
    words = serve.removesuffix(" &").split()
    model, name = words[words.index("--model") + 1], words[words.index("--name") :]
    with running(tmp_path / model, tmp_path / "log", *name) as server:
        told = subprocess.run(
            ["bash", "-c", request.replace("localhost:8080", server.http)],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
    [golden, *_] = json.loads((tmp_path / model / "golden.json").read_text())
    scores = json.loads(told.stdout)["outputs"][0]["data"]
    assert len(scores) == len(golden["candidates"]) and all(0 < score < 1 for score in scores)


def test_a_drafted_configuration_trains_as_it_stands(tmp_path: Path) -> None:
    config = write_small_shop(tmp_path).config
    small = ["train.batch_size=600", "schema.dim=4"]  # the draft's own would take longer
    command = ["train", "--config", str(config), "--run-dir", str(tmp_path / "run"), *small]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["all"]["rows"] > 500 and metrics["new"]["rows"] > 0
