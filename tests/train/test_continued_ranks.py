"""Continued runs on other numbers of ranks than their parents, and killed for good."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml

from mail_torchrec.config import Config
from mail_torchrec.continuation.progressive_record import read_progressive
from mail_torchrec.train.continuation import ParentRun
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.checkpoint.test_resume import tensors
from tests.support.processes import free_port
from tests.support.ranks import run_ranks
from tests.support.small_rows import config_tree, write_rows


def of_day(root: Path, day: int, batch_size: int = 32) -> Config:
    """A day of 100 rows."""
    data = {"root": str(root), "train": f"day=2024-05-0{day}", "test": "day=2024-05-03"}
    return Config.model_validate(
        config_tree(root, data=data, train={"batch_size": batch_size, "log_every": 2})
    )


def continue_on_ranks(root: str, folder: str, ports: list[str]) -> None:
    """Day 2 on these ranks, from day 1 of one rank."""
    rank, world = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = ports[0]
    parent = ParentRun(Path(folder) / "day1")
    train(of_day(Path(root), 2, batch_size=16), RunDir(Path(folder) / "two"), parent=parent)
    os.environ["MASTER_PORT"] = ports[1]
    dist.init_process_group("gloo")


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_go_on_as_one_rank(tmp_path: Path) -> None:
    """The parent's figures are those of one rank, and rows that nobody looked up its bits."""
    for day in (1, 2, 3):
        write_rows(tmp_path / f"rows/day=2024-05-0{day}/a.parquet", 100, seed=day)
    root, ports = tmp_path / "rows", [str(free_port()) for _ in range(2)]
    train(of_day(root, 1), RunDir(tmp_path / "day1"))
    train(of_day(root, 2), RunDir(tmp_path / "one"), parent=ParentRun(tmp_path / "day1"))
    run_ranks(2, continue_on_ranks, tmp_path / "ranks", str(root), str(tmp_path), ports)
    one, two = (read_progressive(tmp_path / name) for name in ("one", "two"))
    assert one is not None and two is not None
    for cohort, metrics in one.metrics.items():
        known = {name: value for name, value in metrics.items() if value is not None}
        assert two.metrics[cohort].keys() == metrics.keys()
        assert {name: two.metrics[cohort][name] for name in known} == pytest.approx(known, rel=1e-5)
    before = tensors(tmp_path / "day1")
    for name in ("one", "two"):
        now, key = tensors(tmp_path / name), "model.unpooled_tables.embeddings.item.weight"
        assert RunDir(tmp_path / name).checkpoints.published()[-1].name == "step-00000008"
        assert now[key].shape == before[key].shape and not torch.equal(now[key], before[key])
        assert torch.equal(now[key][0], before[key][0])  # no unknown id was looked up


@pytest.mark.long
def test_a_run_killed_between_admission_and_its_first_step_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL as soon as the vocabularies are written, again and again, then to the end."""
    for day in (1, 2, 3):
        write_rows(tmp_path / f"rows/day=2024-05-0{day}/a.parquet", 300, seed=day)
    root = tmp_path / "rows"
    train(of_day(root, 1), RunDir(tmp_path / "day1"))
    config = of_day(root, 2)
    train(config, RunDir(tmp_path / "straight"), parent=ParentRun(tmp_path / "day1"))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", by_alias=True)))
    run = tmp_path / "killed"
    call = [sys.executable, "-m", "mail_torchrec", "train", "--config", str(tmp_path / "c.yaml")]
    call += ["--continue", str(tmp_path / "day1"), "--run-dir", str(run)]
    marks = ["parent.json", "vocabularies/item.parquet", "config.yaml", "progressive.json"]
    for number, mark in enumerate(marks):
        (run / mark).unlink(missing_ok=True)
        again = ["--resume"] if number else []
        process = subprocess.Popen([*call, *again])
        while not (run / mark).exists() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        if list((run / "checkpoints").glob("step-*")):
            break
    subprocess.run([*call, "--resume"], check=True)
    found, wanted = tensors(run), tensors(tmp_path / "straight")
    assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []
