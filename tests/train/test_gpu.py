"""The same run on CUDA and on CPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mail_torchrec.config import Config
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.small_rows import config_tree, write_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_rows(tmp_path / "rows/train/a.parquet", 300, seed=1)
    write_rows(tmp_path / "rows/test/b.parquet", 101, seed=2)
    return tmp_path / "rows"


def losses(root: Path, run_dir: Path, train_settings: dict[str, Any]) -> list[dict[str, float]]:
    config = Config.model_validate(
        config_tree(root, train={"batch_size": 50, "log_every": 1, "epochs": 3} | train_settings)
    )
    train(config, RunDir(run_dir))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key.startswith("loss/")}
        for line in lines
        if "loss/L_rt" in line
    ]


def test_cuda_and_cpu_begin_alike_and_the_weights_move_between_them(
    root: Path, tmp_path: Path
) -> None:
    """Initial table weights differ by device, so the curves are compared, not the weights."""
    on_cpu, on_cuda = (
        losses(root, tmp_path / device, {"device": device}) for device in ("cpu", "cuda")
    )
    assert len(on_cpu) == len(on_cuda) == 18
    assert on_cuda[0]["loss/L_rt"] == pytest.approx(on_cpu[0]["loss/L_rt"], abs=0.1)
    assert on_cuda[-1]["loss/L_rt"] < on_cuda[0]["loss/L_rt"]
    metrics = json.loads((tmp_path / "cuda/metrics.json").read_text())
    again = evaluate_run(RunDir(tmp_path / "cuda"), None, ["train.device=cpu"])
    for part in ("new", "old", "all"):
        assert again[part] == pytest.approx(metrics[part], abs=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "partial_rowwise_adam", "rowwise_adagrad"])
def test_cuda_has_every_fused_optimizer(root: Path, tmp_path: Path, optimizer: str) -> None:
    curve = losses(
        root,
        tmp_path / "run",
        {"device": "cuda", "tables": {"name": optimizer, "learning_rate": 0.01}},
    )
    assert curve[-1]["loss/L_rt"] < curve[0]["loss/L_rt"]


def test_cuda_graphs_of_shape_buckets_train_as_the_towers_do(root: Path, tmp_path: Path) -> None:
    graphs = {"compile": True, "compile_mode": "reduce-overhead"}
    curves = []
    for name, of_run in (("plain", {}), ("graphs", graphs)):
        data = {"group_by_user": True, "shape_buckets": 4}
        settings = {"batch_size": 50, "log_every": 1, "epochs": 3, "device": "cuda"} | of_run
        train(
            Config.model_validate(config_tree(root, train=settings, data=data)),
            RunDir(tmp_path / name),
        )
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        curves.append([line["loss/L_rt"] for line in found if "loss/L_rt" in line])
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)


@pytest.mark.parametrize(
    ("kernel", "prefetch"),
    [("fused_uvm", False), ("fused_uvm_caching", False), ("fused_uvm_caching", True)],
)
def test_tables_may_lie_in_host_memory(
    root: Path, tmp_path: Path, kernel: str, prefetch: bool
) -> None:
    """The same losses as from the GPU's own memory; what the run took is written down."""
    curves = {}
    for name, sharding in (
        ("fused", {}),
        (
            kernel,
            {"compute_kernels": [kernel], "cache_load_factor": 0.1, "prefetch": prefetch},
        ),
    ):
        tree = config_tree(
            root, train={"batch_size": 50, "log_every": 1, "device": "cuda"}, sharding=sharding
        )
        train(Config.model_validate(tree), RunDir(tmp_path / name))
        lines = [
            json.loads(line)
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        curves[name] = [line["loss/L_rt"] for line in lines if "loss/L_rt" in line]
        [usage] = [line["usage"] for line in lines if "usage" in line]
        assert usage["device"] == "cuda" and usage["peak"][0] > usage["table_weights"][0] * (
            name == "fused"
        )
        plan = json.loads((tmp_path / name / "plan.json").read_text())["tables"]
        assert {table["compute_kernel"] for table in plan.values()} == {name}
    assert curves[kernel] == pytest.approx(curves["fused"], abs=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_copies_of_the_tables_train_as_one_copy_does(root: Path, tmp_path: Path) -> None:
    """With SGD, whose step by the mean gradient is the mean of the copies' steps."""
    curves = {}
    for name, sharding in (("shared", {}), ("copied", {"replicas": 2})):
        train_settings = {"batch_size": 50, "log_every": 1, "device": "cuda"}
        train_settings["tables"] = {"name": "sgd", "learning_rate": 0.05}
        tree = config_tree(root, train=train_settings, sharding=sharding)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        words = ["--config", str(tmp_path / f"{name}.yaml"), "--run-dir", str(tmp_path / name)]
        subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node", "2", "-m", "mail_torchrec", "train", *words),
            ],
            check=True,
            timeout=300,
        )
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        curves[name] = [line["loss/L_rt"] for line in found if "loss/L_rt" in line]
    assert curves["copied"] == pytest.approx(curves["shared"], abs=1e-3)
