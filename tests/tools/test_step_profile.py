"""Profiles of steps: groups, arithmetic, spans and towers of a trace, and waits of ranks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from mail_torchrec.utils.spans import span
from tools.benchmark.profile import operators
from tools.benchmark.profile.modules import marked_modules
from tools.benchmark.profile.operators import group_of, product_flops
from tools.benchmark.profile.ranks import rank_waits
from tools.benchmark.profile.summary import seconds_at_limit, summarise
from tools.benchmark.profile.tables import profile_tables
from tools.benchmark.profile.trace import read_operations
from tools.benchmark.random_rows import RowSettings, write_rows
from tools.benchmark.step_profile import ProfileExperiment
from tools.benchmark.workload import GROUPED, SMALL, Workload, base_config_tree

LIMITS = {"gemm_float32": 1e9, "gemm_bfloat16": 4e9}


def event(name: str, start: float, duration: float, **arguments: Any) -> dict[str, Any]:
    category = "cpu_op" if "::" in name else "user_annotation"
    thread = arguments.pop("thread", 1)
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "ts": start,
        "dur": duration,
        "tid": thread,
        "args": {key.replace("_", " "): value for key, value in arguments.items()},
    }


def test_operators_have_the_group_of_what_they_do() -> None:
    expected = {
        "aten::addmm": operators.PRODUCTS,
        "aten::sigmoid_backward": operators.ELEMENTWISE,
        "aten::index_select": operators.GATHERS,
        "aten::copy_": operators.COPIES,
        "aten::_softmax": operators.SUMS,
        "fbgemm::split_embedding_nobag_codegen_forward_cpu": operators.TABLES,
        "aten::_fused_adam_": operators.OPTIMIZER,
        "c10d::allreduce_": operators.COLLECTIVES,
        "AddmmBackward0": operators.BETWEEN,
        "aten::as_strided": operators.BETWEEN,
    }
    assert {name: group_of(name) for name in expected} == expected


def test_a_moment_counts_for_the_innermost_event_and_a_gradient_for_its_forward_tower() -> None:
    trace = {
        "traceEvents": [
            event("zero_shot", 0, 100),
            event("module: encoder", 10, 60),
            event("aten::mm", 20, 30, Input_Dims=[[2, 3], [3, 5]], Sequence_number=7),
            event("backward", 100, 100),
            event("autograd::engine::evaluate_function: MmBackward0", 110, 50, Sequence_number=7),
            event("aten::mm", 120, 20, Input_Dims=[[3, 2], [2, 5]]),
            event("aten::mul", 170, 10),
            event("Optimizer.step#Adam.step", 200, 40),
            event("aten::_fused_adam_", 210, 20),
            event("aten::mm", 0, 500, thread=2),
        ]
    }
    found = summarise(read_operations(trace), steps=1)
    assert found["parts"] == {
        "zero_shot": {operators.BETWEEN: approx(70), operators.PRODUCTS: approx(30)},
        "zero_shot, backward": {operators.BETWEEN: approx(30), operators.PRODUCTS: approx(20)},
        "backward, the rest": {operators.BETWEEN: approx(40), operators.ELEMENTWISE: approx(10)},
        "optimizer": {operators.BETWEEN: approx(20), operators.OPTIMIZER: approx(20)},
    }
    assert found["modules"]["zero_shot: encoder"] == {
        "forward": approx(60),
        "backward": approx(50),
        "products": approx(50),
        "flops": {"float32": 120},
    }
    assert found["products"] == {"seconds": approx(50), "flops": {"float32": 120}}


def approx(microseconds: float) -> Any:
    return pytest.approx(1e-6 * microseconds)


def test_products_at_the_limit_take_their_own_number_formats_rate() -> None:
    assert seconds_at_limit({"float32": 3e9, "bfloat16": 2e9}, LIMITS) == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("name", "shapes", "expected"),
    [
        ("aten::addmm", [[5], [2, 3], [3, 5]], 60),
        ("aten::bmm", [[7, 2, 3], [7, 3, 5]], 420),
        ("aten::mv", [[2, 3], [3]], 12),
        ("aten::mul", [[2, 3], [2, 3]], 0),
    ],
)
def test_arithmetic_of_a_product(name: str, shapes: list[list[int]], expected: float) -> None:
    assert product_flops(name, shapes) == expected


class Model(nn.Module):
    """A tower of two layers under the name that profiles look for."""

    def __init__(self) -> None:
        super().__init__()
        self.ranking = nn.ModuleDict({"first": nn.Linear(8, 6), "second": nn.Linear(6, 4)})

    def forward(self, x_BX: torch.Tensor) -> torch.Tensor:
        with span("ranking"):
            hidden = torch.sigmoid(self.ranking["first"](x_BX))
            loss: torch.Tensor = functional.softplus(self.ranking["second"](hidden)).sum()
        return loss


def test_a_real_profile_has_torchs_own_arithmetic_by_module(tmp_path: Path) -> None:
    """Products of the backward pass are those of the module that they are the gradient of."""
    model, x_BX = Model(), torch.randn(32, 8)

    def step() -> None:
        loss = model(x_BX)
        with span("backward"):
            loss.backward()

    with FlopCounterMode(display=False) as counter:
        step()
    activities = [ProfilerActivity.CPU]
    with marked_modules(model), profile(activities=activities, record_shapes=True) as profiler:
        step()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    found = summarise(read_operations(json.loads((tmp_path / "trace.json").read_text())), 1)
    assert found["products"]["flops"] == {"float32": counter.get_total_flops()}
    first, second = (found["modules"][f"ranking: {name}"] for name in ("first", "second"))
    assert first["flops"] == {"float32": 2 * 2 * 32 * 8 * 6}  # its input has no gradient
    assert second["flops"] == {"float32": 3 * 2 * 32 * 6 * 4}


def test_who_calls_a_collective_first_waits_for_who_calls_it_last() -> None:
    early = [
        event("c10d::allreduce_", 100, 1),
        event("gloo:all_reduce", 100, 80, thread=2, Input_Dims=[[2**18]]),
        event("c10d::allreduce_", 300, 1),
        event("gloo:all_reduce", 300, 20, thread=2, Input_Dims=[[3]]),
    ]
    late = [
        event("c10d::allreduce_", 150, 1),
        event("gloo:all_reduce", 150, 30, thread=2, Input_Dims=[[2**18]]),
        event("c10d::allreduce_", 290, 1),
        event("gloo:all_reduce", 290, 30, thread=2, Input_Dims=[[3]]),
    ]
    of_early, of_late = rank_waits([{"traceEvents": early}, {"traceEvents": late}], steps=2)
    assert of_early["all"]["early"] == approx(50 / 2) and of_late["all"]["early"] == approx(10 / 2)
    large = "all_reduce, 1 MiB or more"
    assert of_early[large] == {"calls": 0.5, "seconds": approx(40), "exchange": approx(15)}
    assert of_late["all_reduce, less"]["exchange"] == approx(10)


@pytest.mark.long
@pytest.mark.distributed
@pytest.mark.usefixtures("preloaded_trainers")
def test_trainers_and_ranks_are_profiled_in_processes_of_their_own(tmp_path: Path) -> None:
    workload = Workload.write(tmp_path, base_config_tree(max_length=8), *SMALL)
    write_rows(tmp_path, workload.config().schema_, RowSettings(users=64, test_users=16, items=50))
    found = ProfileExperiment(workload, "cpu", threads=1, steps=2).measure([GROUPED], GROUPED)
    for profile_ in found["trainers"].values():
        times = sum(sum(groups.values()) for groups in profile_["parts"].values())
        assert 0.5 * profile_["profiled_seconds"] < times <= 1.05 * profile_["profiled_seconds"]
        assert profile_["products"]["flops"]["float32"] > 1e6
    grouped = found["trainers"]["grouped"]["modules"]
    assert {"zero_shot: behaviour_decoder", "ranking: item_to_item.0"} <= grouped.keys()
    assert [len(found["ranks"][number]) for number in ("1", "2")] == [1, 2]
    assert all(rank["waits"]["all"]["early"] >= 0 for rank in found["ranks"]["2"])
    text = "\n".join(profile_tables(found, LIMITS))
    assert "| grouped" in text and "2 ranks, rank 1" in text
