"""Towers, baselines, switches and precisions on a GPU that is pretended (support/pretend_gpu.py).

Each configuration trains and evaluates on it as on the CPU; no tensor is made on the wrong device;
and the host waits for the device in no step, so that a real one never runs dry.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.every_kind import every_kind, write_data
from tests.support.pretend_gpu import build_stub, is_available
from tests.support.pretended_steps import write_problems, write_run
from tests.support.ranks import ProcessesFailedError, run_processes
from tests.support.small_rows import SCHEMA, baseline_tree, config_tree
from tests.support.task_rows import MMOE, PLE, TASK_SCHEMA, TASKS, write_task_rows

pytestmark = pytest.mark.skipif(not is_available(), reason="needs g++")

_MODEL = config_tree(Path())["model"]
_SMALL = {"hidden_dims": [16, 8]}
_WIDE = {"tower": "base_dnn", "tower_options": _SMALL | {"dropout": 0.0}}
BFLOAT16, GROUPED = {"precision": "bfloat16"}, {"group_by_user": True}


def of(**sections: Any) -> dict[str, Any]:
    """Sections of a case; ``model`` changes the small DMR with a zero-shot tower."""
    return sections | {"model": _MODEL | sections.get("model", {})}


def zero_shot(**settings: Any) -> dict[str, Any]:
    return {"zero_shot": _MODEL["zero_shot"] | settings}


def baseline(name: str, **sections: Any) -> dict[str, Any]:
    tree = baseline_tree(name, **sections.pop("options", {}))
    return tree | sections | {"model": tree["model"] | sections.get("model", {})}


_OWN = {"cold_loss_weight": 0.5, "new_user_tower": "own"}
_RARE = {
    "alignment": "paired_mse",
    "input_fields": "all_fields",
    "decoders": "per_group",
    "padding": "masked",
    "virtual_length": "predicted",
    "reduction": "sum",
    "loss_sample_share": 0.5,
    "virtual_dropout": False,
    "dropout": 0.3,
}
_OPTIMIZER = {
    "clip_norm": 0.1,
    "ema": {"decay": 0.9},
    "weight_decay": 0.01,
    "schedule": {"name": "cosine", "warmup_steps": 1},
}
CASES: dict[str, dict[str, Any]] = {
    "dmr": of(train=_OPTIMIZER),
    "dmr, grouped, bfloat16": of(data=GROUPED, train=BFLOAT16),
    "din, rare switches, tf32": of(
        model={"tower": "din", "tower_options": {"hidden_dims": [8]}}
        | zero_shot(**{**_RARE, "dropout": 0.0}),
        data=GROUPED, train={"precision": "tf32", "tables": {"name": "adam"}},
    ),
    "base_dnn, all as cold, bfloat16": of(
        model=_WIDE | _OWN | {"behaviour_dropout": 0.5, "multi_task": {}, "virtual_flag": True}
        | {"mixing_strength": 2.0}
        | zero_shot(
            dropout=0.3, reconstruction_target="mixture", virtual_length="predicted",
            ranking_weight=1.0,
        ),
        train=BFLOAT16,
    ),
    "every kind of column": {"every_kind": True},
    "buckets, some as cold, grouped": of(
        model={"behaviour_dropout": 0.3, "mixing_strength": 2.0} | zero_shot(loss_sample_share=0.5),
        data=GROUPED | {"shape_buckets": 4},
    ),
    "meta_emb, grouped": baseline("meta_emb", data=GROUPED),
    "llae, bfloat16": baseline("llae", data=GROUPED, train=BFLOAT16),
}  # fmt: skip
LONG_CASES: dict[str, dict[str, Any]] = {
    "emblr": of(
        model={"tower": "emblr", "tower_options": {}, "zero_shot": None}, schema=SCHEMA | {"dim": 1}
    ),
    "wide_deep": of(model={**_WIDE, "tower": "wide_deep"}, data=GROUPED),
    "deepfm": of(model={**_WIDE, "tower": "deepfm"}, train=BFLOAT16),
    "base_dnn, dropout": of(model={**_WIDE, "tower_options": {"dropout": 0.3}}, data=GROUPED),
    "din, softmax": of(model={"tower": "din", "tower_options": {"normalise": "softmax"}}),
    "dmr, no match loss": of(model={"tower_options": {**_SMALL, "match_weight": 0}}, data=GROUPED),
    "no zero-shot tower": of(model={"zero_shot": None, "behaviour_dropout": 0.5}, data=GROUPED),
    "mean fill": baseline("mean_fill", data=GROUPED, model={"cold_loss_weight": 1.0}),
    "llae, cold loss": baseline("llae", model={"cold_loss_weight": 1.0}),
    "cvar, bfloat16": baseline("cvar", data=GROUPED, train=BFLOAT16),
    "mwuf, own tower": baseline("mwuf", model=_OWN),
    "meta_emb, own tower": baseline("meta_emb", train=BFLOAT16, model=_OWN),
    "tasks, mmoe": of(model={"tasks": TASKS, "experts": MMOE}, schema=TASK_SCHEMA, data=GROUPED),
    "tasks, ple, bfloat16": of(
        model=_WIDE | {"tasks": TASKS, "experts": PLE}, schema=TASK_SCHEMA, train=BFLOAT16
    ),
    "accumulated": of(train={"accumulate": 2}, data=GROUPED),
    "buckets": of(data={"shape_buckets": 4}),
    "buckets, bfloat16": of(data=GROUPED | {"shape_buckets": 4}, train=BFLOAT16),
    "frozen": of(train={"freeze": ["zero_shot", "tables.item"]}),
    "every kind of column, bfloat16": {"every_kind": True, "train": BFLOAT16},
} | {
    f"zero-shot tower, {settings}": of(model=zero_shot(**settings), data=data, train=precision)
    for settings, data, precision in [
        ({"variant": "none"}, {}, {}),
        ({"variant": "single"}, GROUPED, BFLOAT16),
        ({"variant": "dual"}, {}, BFLOAT16),
        ({"fill": "infer_only"}, GROUPED, {}),
        ({"alignment": "contrastive"}, GROUPED, BFLOAT16),
        ({"pooling": "concat", "standardise_targets": True}, {}, BFLOAT16),
        ({"reconstruction_target": "pooled", "standardise_targets": True}, GROUPED, {}),
        *(({name: value}, GROUPED, BFLOAT16) for name, value in _RARE.items()),
    ]
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, and rows."""
    folder = tmp_path_factory.mktemp("pretended")
    build_stub(folder)
    write_task_rows(folder / "small/train/a.parquet", 160, seed=1)
    write_task_rows(folder / "small/test/b.parquet", 40, seed=2)
    write_data(folder / "every_kind")
    return folder


@pytest.mark.parametrize(
    "name", [*CASES, *(pytest.param(name, marks=pytest.mark.long) for name in LONG_CASES)]
)
def test_steps_on_a_pretended_gpu_are_those_of_the_cpu_and_wait_for_nothing(
    name: str, folder: Path, tmp_path: Path
) -> None:
    sections = {"sharding": {"enabled": False}} | (CASES | LONG_CASES)[name]
    is_every_kind = sections.pop("every_kind", False)
    root = folder / ("every_kind" if is_every_kind else "small")
    tree = (every_kind if is_every_kind else config_tree)(root, **sections)
    tree["data"] = {**tree["data"], "root": str(root)}
    # What is dropped is drawn in another way than on the CPU.
    is_drawn_alike = not re.search(r"dropout': 0\.[1-9]", str(tree["model"]))
    lower = tree["train"].get("precision") == "bfloat16"
    tolerance = (5e-2 if lower else 1e-4) if is_drawn_alike else math.inf
    found = tmp_path / "problems.json"
    stub = str(folder / "pretend_gpu.so")
    run_processes(1, tmp_path, write_problems, stub, tree, tolerance, str(found))
    assert json.loads(found.read_text()) == []


def test_a_run_goes_on_from_the_cpu_to_the_gpu_and_waits_only_where_it_reports(
    folder: Path, tmp_path: Path
) -> None:
    """Between two reports neither the steps nor the loop around them wait."""
    data = {"root": str(folder / "small"), "num_workers": 0}
    tree = config_tree(folder / "small", data=data, sharding={"enabled": False})
    run_processes(
        1, tmp_path, write_run, str(folder / "pretend_gpu.so"), tree, str(tmp_path / "runs")
    )
    found = json.loads((tmp_path / "runs/found.json").read_text())
    assert len(found["marks"]) == 2 and found["waits"] == []
    for name in ("cuda", "cuda on cpu"):
        for cohort, metrics in found["cpu"].items():
            assert found[name][cohort] == pytest.approx(metrics, rel=1e-4)


def test_what_waits_and_what_is_on_the_wrong_device_is_told(folder: Path, tmp_path: Path) -> None:
    def problems_of(fault: str) -> list[str]:
        model = {"tower": "tests.support.waiting_tower:WaitingTower", "zero_shot": None}
        tree = config_tree(
            folder / "small",
            model=model | {"tower_options": {"fault": fault}},
            sharding={"enabled": False},
        )
        stub, found = str(folder / "pretend_gpu.so"), tmp_path / f"{fault}.json"
        run_processes(1, tmp_path, write_problems, stub, tree, 1e-4, str(found))
        problems: list[str] = json.loads(found.read_text())
        return problems

    found = problems_of("waits")
    line = r"waits: tests/support/waiting_tower.py:\d+"
    expected = [": aten::index.Tensor", *[": aten::_local_scalar_dense"] * 2]
    expected.append(r" \(backward\): aten::\w*index_put")
    assert len(found) == len(expected), found
    for problem, operation in zip(found, expected, strict=True):
        assert re.match(line + operation, problem), found
    with pytest.raises(ProcessesFailedError, match="aten::add: tensors of two devices: cuda:0"):
        problems_of("host")
