"""The GPU check: its stages end in time, what they found is kept, its references are right."""

import json
import struct
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mail_torchrec.embeddings.settings import TableOptimizerSettings
from tests.support import forked_stages
from tools.benchmark.random_rows import RowSettings
from tools.gpu import runner
from tools.gpu.checks.exact_optimizers import ExactTable
from tools.gpu.checks.profile import device_work
from tools.gpu.checks.tables import optimizer_error
from tools.gpu.record import Fact, Record, StageEnd
from tools.gpu.runner import ROOT, STAGES, Runner, Stage
from tools.gpu.strip_fatbin import MAGIC, strip
from tools.gpu.verdict import is_passed, verdict_lines
from tools.gpu_check import main

STAND_IN = """
import json, os, sys, time
name, seconds, record = sys.argv[1:4]
def found(**fact):
    with open(record, "a") as file:
        file.write(json.dumps({"stage": name, "ok": None, "text": ""} | fact) + "\\n")
if name == "wrong":
    found(name="error", value=2, ok=False, text="two off")
if name == "broken":
    sys.exit("Error: it has no kernel")
if name == "slow":
    found(name="rate", value=5, text="5 rows/s")
    child = os.fork()
    if child:
        found(name="child", value=child)
    time.sleep(600)
found(name="seconds", value=float(seconds))
"""


def test_a_stage_that_fails_or_is_late_takes_nothing_with_it(tmp_path: Path) -> None:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    record = Record(tmp_path / "results.jsonl")
    stages = [
        Stage("broken", "", limit=60, least=0),
        Stage("slow", "", limit=3, least=0),
        Stage("wrong", "", limit=60, least=0),
        Stage("right", "", limit=60, least=0),
        Stage("long", "", limit=9_000, least=9_000),
    ]
    ends: list[StageEnd] = []
    command = (sys.executable, str(tmp_path / "stand_in.py"))
    arguments = (str(tmp_path / "results.jsonl"),)
    log = tmp_path / "log.txt"
    Runner(record, log, arguments, 1_000, time.monotonic(), command=command).run(
        stages, ends.append
    )
    assert [end.outcome for end in ends] == [*("failed", "out of time", "done", "done", "skipped")]
    found = record.results()
    lines = verdict_lines(found, [*(stage.name for stage in stages), "other"])
    assert [line[:8].strip() for line in lines] == [
        *("FAILED", "TIME", "WRONG", "ok", "SKIPPED", "not run")
    ]
    assert "exit status 1: Error: it has no kernel" in lines[0]
    assert "5 rows/s" in lines[1] and "error: two off" in lines[2] and "it needs 9000" in lines[4]
    state = Path(f"/proc/{record.facts('slow')['child'].value}/stat")
    assert not state.exists() or ") Z " in state.read_text()  # nobody may have reaped it
    assert is_passed(found, "right") and not is_passed(found, "slow")


def test_a_line_that_was_not_finished_hides_no_other(tmp_path: Path) -> None:
    record = Record(tmp_path / "results.jsonl")
    record.add(Fact("speed", "float32", {"rows_per_second": 5.0}))
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"stage": "speed", "na')
    assert record.facts("speed")["float32"].value == {"rows_per_second": 5.0}


def test_the_check_has_ten_stages_that_fit_their_time_one_by_one() -> None:
    assert len(STAGES) == 10 and STAGES[-1].name == "uvm"
    assert all(stage.least <= stage.limit < 530 for stage in STAGES)
    folder = ROOT / "tools/gpu/checks"
    assert all((folder / f"{stage.name}.py").exists() for stage in STAGES)


@pytest.mark.parametrize("name", ["adam", "partial_rowwise_adam"])
def test_adam_in_float64_is_torchs(name: str) -> None:
    """With gradients of one size a row, and every row in every batch, both are torch's Adam."""
    random = np.random.default_rng(0)
    start = random.normal(size=(6, 4))
    settings = TableOptimizerSettings(name=name, learning_rate=0.1, eps=1e-6, weight_decay=0.2)
    table = ExactTable(start.copy(), settings, (0.8, 0.9))
    weights = torch.nn.Parameter(torch.from_numpy(start))
    adam = torch.optim.Adam([weights], lr=0.1, betas=(0.8, 0.9), eps=1e-6)
    for _ in range(5):
        signs = random.choice([-1.0, 1.0], size=(6, 4))
        gradients = signs * random.normal(size=(6, 1))
        with torch.no_grad():
            decay = 0.1 * 0.2 * weights
        weights.grad = torch.from_numpy(gradients)
        adam.step()
        with torch.no_grad():
            weights -= decay
        table.update(gradients, np.arange(6))
    np.testing.assert_allclose(table.weights_RD, weights.detach().numpy(), rtol=1e-10)


@pytest.mark.usefixtures("single_process")
def test_a_wrong_optimizer_would_be_told() -> None:
    cpu = torch.device("cpu")
    assert optimizer_error({"name": "rowwise_adagrad"}, cpu) < 1e-5
    with pytest.MonkeyPatch.context() as patch:
        step = ExactTable._step
        patch.setattr(ExactTable, "_step", lambda *given: 1.001 * step(*given))
        assert optimizer_error({"name": "rowwise_adagrad"}, cpu) > 1e-4


def test_the_gpu_is_idle_where_no_stream_works() -> None:
    def work(start: int, length: int, name: str, category: str = "kernel") -> dict[str, Any]:
        return {"ph": "X", "cat": category, "ts": start, "dur": length, "name": name}

    found = device_work(
        [
            work(100, 10, "sum"),
            work(105, 15, "copy", "gpu_memcpy"),  # on another stream, beside it
            work(106, 2, "sum"),
            work(190, 10, "sum"),
            work(0, 1000, "aten::add", "cpu_op"),
        ]
    )
    assert found["kernels"] == 4 and found["idle_share"] == pytest.approx(0.7)
    assert found["longest"] == [["sum", pytest.approx(22 / 37)], ["copy", pytest.approx(15 / 37)]]


def test_images_of_other_architectures_are_dropped(tmp_path: Path) -> None:
    def image(arch: int, payload: bytes) -> bytes:
        head = struct.pack("<HHIQ", 2, 0, 64, len(payload)).ljust(28, b"\0")
        return (head + struct.pack("<I", arch)).ljust(64, b"\0") + payload

    images = [image(80, b"a" * 40), image(90, b"b" * 24), image(100, b"c" * 40)]
    body = b"".join(images)
    region = MAGIC + struct.pack("<HHQ", 1, 16, len(body)) + body
    path = tmp_path / "lib.so"
    path.write_bytes(b"before" + region + b"behind")
    sizes: Counter[int] = Counter()
    strip(path, 90, sizes)
    stripped = MAGIC + struct.pack("<HHQ", 1, 16, len(images[1])) + images[1]
    expected = b"before" + stripped.ljust(len(region), b"\0") + b"behind"
    assert path.read_bytes() == expected and sizes == {80: 40, 90: 24, 100: 40}


def test_an_epoch_of_generated_rows_has_32_batches() -> None:
    assert RowSettings.of_batches(1024) == RowSettings()
    large = RowSettings.of_batches(8192)
    assert large.users * large.rows_per_user == 32 * 8192


@pytest.mark.long
def test_it_all_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first stage in a fresh interpreter, the others in forks."""
    monkeypatch.setattr(runner.subprocess, "Popen", forked_stages.start)
    words = ["--device", "cpu", "--small", "--seconds", "1800", "--out", str(tmp_path)]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output + (tmp_path / "log.txt").read_text()[-5_000:]
    verdict = (tmp_path / "verdict.txt").read_text().splitlines()
    assert len(verdict) == 10 and all(line.startswith("ok ") for line in verdict)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert {json.loads(line)["stage"] for line in lines} == {stage.name for stage in STAGES}
    assert {path.name for path in tmp_path.iterdir()} == {
        *("verdict.txt", "results.jsonl", "log.txt", "trace-rank-0.json.gz")
    }
