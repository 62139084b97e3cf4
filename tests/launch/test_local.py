"""The README's command for this machine."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.hosts import ROOT, environment, ranks_of_plan
from tests.support.pages import commands


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.long
def test_the_readme_s_command_trains_on_two_ranks(folder: Path) -> None:
    [command] = commands(
        "torchx run -s local_cwd components/mail.py:train --config launch/configs/synthetic.yaml "
        "--run_dir runs/local"
    )
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    run = folder / command[command.index("--run_dir") + 1]
    assert json.loads((run / "metrics.json").read_text())["all"]["rows"] > 0
    assert ranks_of_plan(run) == {0, 1}


def test_a_site_s_defaults_reach_the_job() -> None:
    words = "torchx run --dryrun -s slurm components/mail.py:train".split()
    words += "--config my.yaml --run_dir runs/a".split()
    config = {"TORCHXCONFIG": "launch/slurm/torchxconfig"}
    script = subprocess.run(
        words, cwd=ROOT, env=environment() | config, capture_output=True, text=True, check=True
    ).stdout
    assert "--partition=main --time=2-00:00:00" in script and "TORCHX_MAX_RETRIES=3" in script
