"""Shape buckets: few shapes, few compilations, and the same training on several ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mail_torchrec.config import Config
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.source import Source
from mail_torchrec.train.assembly import AssembledModel, assemble
from mail_torchrec.train.data_splits import negative_samplers
from tests.distributed.test_equal_ranks import MODELS, PLANS, load, root, train_on_ranks
from tests.support.ranks import run_ranks
from tests.support.small_rows import config_tree, write_rows
from tests.support.tower_shapes import compiled_graphs, recorded_shapes

__all__ = ["root"]
CPU = torch.device("cpu")
BATCH_SIZE, NUM_STEPS = 512, 25
BUCKETS = {"shape_buckets": 2}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of an epoch of 25 steps."""
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train/a.parquet", BATCH_SIZE * NUM_STEPS, seed=1, row_group_size=2_000)
    return folder


def build(rows: Path, *, epochs: int = 1, **sections: Any) -> tuple[AssembledModel, list[Batch]]:
    """A model without sharding, and the batches of some epochs."""
    sections["train"] = {"batch_size": BATCH_SIZE} | sections.get("train", {})
    tree = config_tree(rows, sharding={"enabled": False}, **sections)
    config = Config.model_validate(tree)
    source = Source(config.data.path("train"), config.schema_)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    assembled = assemble(config, encoders, CPU)
    reader = Reader(
        source, config.schema_, encoders, assembled.feature_tables, config.data,
        rank_info=RankInfo(), batch_size=BATCH_SIZE, shuffle=True, seed=1,
        samplers=negative_samplers(config, encoders, assembled.feature_tables),
    )  # fmt: skip
    batches: list[Batch] = []
    for epoch in range(epochs):
        reader.set_epoch(epoch)
        batches += reader
    return assembled, batches


def num_shapes(rows: Path, epochs: int, data: dict[str, Any]) -> dict[str, int]:
    """Distinct shapes of the inputs of each dense layer, over some epochs."""
    assembled, batches = build(rows, epochs=epochs, data=data)
    assert len(batches) == NUM_STEPS * epochs
    with recorded_shapes(assembled.model) as found, torch.no_grad():
        for batch in batches:
            assembled.model(batch)
    return {name: len(shapes) for name, shapes in found.items()}


LONG = pytest.mark.long


@pytest.mark.usefixtures("single_process")
@pytest.mark.parametrize(
    ("grouped", "epochs"),
    [(True, 1), pytest.param(True, 4, marks=LONG), pytest.param(False, 4, marks=LONG)],
)
def test_layers_see_a_handful_of_shapes_and_not_one_a_step(
    rows: Path, grouped: bool, epochs: int
) -> None:
    data = {"group_by_user": grouped}
    before, after = num_shapes(rows, epochs, data), num_shapes(rows, epochs, data | BUCKETS)
    print(f"layers: {len(before)}, {sum(before.values())} shapes before, {sum(after.values())} now")
    print(f"at most {max(before.values())} shapes of a layer before, {max(after.values())} now")
    assert before.keys() == after.keys()
    # The attention goes over all behaviours, whose number is a sum over rows.
    assert max(before.values()) > 0.6 * epochs * NUM_STEPS
    assert max(after.values()) <= 6, after


def compile_and_train(
    rows: Path, monkeypatch: pytest.MonkeyPatch, steps: int, data: dict[str, Any]
) -> tuple[int, list[float], dict[str, int]]:
    """Trains some steps, compiled for each shape, without kernels.

    Returns:
        Compiled graphs, the ranking losses, and reasons of graph breaks with their counts.
    """
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiler = torch.compile

    def compile_shape(*args: Any, **options: Any) -> Any:
        return compiler(*args, **(options | {"backend": "eager", "dynamic": False}))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", compile_shape)
        assembled, batches = build(rows, data=data, train={"compile": True})
        losses = []
        for batch in batches[:steps]:
            loss, outputs = assembled.model(batch)
            loss.backward()
            losses.append(float(outputs.losses["L_rt"]))
    breaks = dict(torch._dynamo.utils.counters["graph_break"])
    return compiled_graphs(), losses, breaks


@pytest.mark.long
@pytest.mark.usefixtures("single_process")
@pytest.mark.parametrize(("grouped", "steps"), [(True, 2), (True, 12), (False, 12)])
def test_the_towers_are_compiled_for_each_of_a_few_shapes(
    rows: Path, monkeypatch: pytest.MonkeyPatch, grouped: bool, steps: int
) -> None:
    data = {"group_by_user": grouped}
    assembled, batches = build(rows, data=data)
    expected = float(assembled.model(batches[0])[1].losses["L_rt"])
    after, losses, breaks = compile_and_train(rows, monkeypatch, steps, data | BUCKETS)
    print(f"{after} graphs in {steps} steps")
    assert losses[0] == pytest.approx(expected, rel=1e-5) and breaks == {}
    # The ranking tower, the zero-shot tower's losses, and what it makes: each for a few shapes.
    assert 3 <= after <= (6 if steps == 2 else 14)


def test_cuda_graphs_are_refused_where_there_are_none(
    rows: Path, single_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = {"compile": True, "compile_mode": "reduce-overhead"}
    with pytest.raises(ValueError, match=r"train\.compile_mode: reduce-overhead .* on a CPU"):
        build(rows, train=graphs, data={"shape_buckets": 8})
    with pytest.raises(ValueError, match=r"set train\.compile=true"):
        build(rows, train={"compile_mode": "reduce-overhead"})
    assembled, _ = build(rows)
    with pytest.raises(ValueError, match=r"set data\.shape_buckets=8"):
        assembled.model.towers.compile_parts(torch.device("cuda"), "reduce-overhead")


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("grouped", "model"), [(True, "mail_dmr"), pytest.param(False, "llae", marks=pytest.mark.long)]
)
def test_two_ranks_with_buckets_train_as_one_without(
    root: Path, tmp_path: Path, grouped: bool, model: str
) -> None:
    def trained(ranks: int, plan: str, data: dict[str, Any]) -> Any:
        folder = tmp_path / str(ranks)
        of_run = PLANS[plan], MODELS[model], str(folder / "weights"), None, None
        data = {"root": str(root), "group_by_user": grouped} | data
        results = run_ranks(ranks, train_on_ranks, folder, str(root), *of_run, data)
        return results, load(folder / "weights")

    [expected], expected_weights = trained(1, "table_wise", {})
    results, weights = trained(2, "row_wise", {"shape_buckets": 4})
    for step, losses in enumerate(expected["losses"]):
        for name, value in losses.items():
            mean = np.mean([result["losses"][step][name] for result in results])
            assert mean == pytest.approx(value, rel=1e-4, abs=1e-6), (step, name)
    for key, value in expected_weights.items():
        bound = 6e-4 if key.endswith("running_mean") else 1e-4  # as in tests/distributed
        torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=bound)
