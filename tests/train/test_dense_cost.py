"""Estimated cost of steps beside measured steps of far more rows, on one rank and on several.

Shape letters: ``B`` rows, ``W`` warm users, ``H`` elements of a code.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mail_torchrec.config import Config
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.source import Source
from mail_torchrec.embeddings.tables import build_tables
from mail_torchrec.losses.mmd import GPU_BLOCK, mmd
from mail_torchrec.model import loss as model_loss
from mail_torchrec.model.mail import Mail, Towers
from mail_torchrec.model.virtual_items import terms
from mail_torchrec.train.assembly import config_feature_tables
from mail_torchrec.train.cost.dense_cost import DenseCost, dense_cost
from mail_torchrec.train.cost.operator_count import OperatorCounter
from mail_torchrec.train.cost.pair_losses import ALIGNMENT, ITEM_CONTRAST
from mail_torchrec.train.cost.random_batches import RandomIds, random_batch
from mail_torchrec.train.cost.step_cost import QuadraticCost, StepCost
from mail_torchrec.train.data_splits import negative_samplers
from tests.support.small_rows import baseline_tree, config_tree, write_rows

ROWS = {"age": 5, "city": 100, "hour": 24, "item": 40, "actions": 9, "tags": 50, "uid": 30}
ZERO_SHOT = config_tree(Path())["model"]["zero_shot"]
CODE_DIM = ZERO_SHOT["encoder_dims"][-1]
ITEM_DIM = 16  # the item's vector and that of the output-side table
RANKS = 4
COSTS: dict[str, DenseCost] = {}


class Measured(NamedTuple):
    """Cost of a step that was run."""

    kept_bytes: int
    flops: int
    written_bytes: int


def zero_shot(**options: Any) -> dict[str, Any]:
    return {"model": {"zero_shot": ZERO_SHOT | options}}


def contrast(**options: Any) -> dict[str, Any]:
    items = {"contrast": {"temperature": 0.5}} | options
    return {"model": {"virtual_items": items}, "data": {"new_items": {"max_count": 3}}}


MODELS: dict[str, dict[str, Any]] = {
    "mmd": {},
    "mmd within ranks": {"model": {"mmd_over_all_ranks": False}},
    "contrastive": zero_shot(alignment="contrastive"),
    "items": contrast(),
    "items and no L_d": contrast() | {"model": contrast()["model"] | {"zero_shot": None}},
    "distilled items": contrast(ranking_weight=1.0, distillation={}),
}
WITHOUT_PAIRS: dict[str, dict[str, Any]] = {
    "no zero-shot tower": {"model": {"zero_shot": None}},
    "no L_d": zero_shot(variant="dual"),
    "paired": zero_shot(alignment="paired_mse"),
    "mixture": zero_shot(
        alignment="paired_mse", reconstruction_target="mixture", virtual_length="predicted"
    ),
    "llae": baseline_tree("llae"),
    "meta_emb": baseline_tree("meta_emb"),
    "din": {"model": {"tower": "din", "tower_options": {}, "zero_shot": None}},
}


def config_of(sections: dict[str, Any]) -> Config:
    return Config.model_validate(config_tree(Path("nowhere"), **sections))


def cost_of(config: Config, device: str = "cpu") -> DenseCost:
    text = config.model_dump_json() + device
    if text not in COSTS:
        COSTS[text] = dense_cost(config, config_feature_tables(config), ROWS, device=device)
    return COSTS[text]


def measured(config: Config, num_rows: int) -> Measured:
    """A step of so many rows, behind a smaller one."""
    feature_tables = config_feature_tables(config)
    towers = Towers(config.model, config.schema_, feature_tables, ROWS)
    model = Mail(
        *build_tables(config.schema_, feature_tables, ROWS, torch.device("cpu")), towers
    ).train()
    ids = RandomIds(ROWS)
    few, many = (random_batch(config, feature_tables, number, ids, {}) for number in (7, num_rows))
    model(few)[0].backward()
    model.zero_grad()
    return count(lambda: model(many)[0], model)


def count(compute_loss: Callable[[], Tensor], model: torch.nn.Module) -> Measured:
    """Counts a step without the measurement of the code under test."""
    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    flops: Any = FlopCounterMode(display=False)
    with OperatorCounter() as operators, flops:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            loss = compute_loss()
        loss.backward()
    num_bytes = sum(size for address, size in kept.items() if address not in weights)
    return Measured(num_bytes, flops.get_total_flops(), operators.written_bytes)


def assert_same(estimate: StepCost, found: Measured, rel: float = 1e-12) -> None:
    assert estimate.kept_bytes == pytest.approx(found.kept_bytes, rel=rel)
    assert estimate.flops == pytest.approx(found.flops, rel=rel)
    assert estimate.written_bytes == pytest.approx(found.written_bytes, rel=rel)


@pytest.mark.parametrize("name", MODELS | WITHOUT_PAIRS)
def test_a_step_of_200_rows_costs_what_is_estimated_from_16(name: str) -> None:
    config = config_of((MODELS | WITHOUT_PAIRS)[name])
    cost = cost_of(config)
    assert_same(cost.step(200, 1), measured(config, 200))
    assert bool(cost.pairs) == (name in MODELS)
    if name in WITHOUT_PAIRS:
        assert cost.rows.per_pair == StepCost()
    memory = cost.memory(200, 1)
    kept = sum(memory.get(purpose, 0.0) for purpose in ("activations", ALIGNMENT, ITEM_CONTRAST))
    assert kept == pytest.approx(cost.step(200, 1).kept_bytes)


@pytest.mark.parametrize("share", [0.3, 0.07])
def test_a_sample_of_the_warm_users_has_its_own_pairs_alone(share: float) -> None:
    config = config_of(zero_shot(loss_sample_share=share))
    cost = cost_of(config)
    assert_same(cost.step(200, 1), measured(config, 200), rel=2e-3)
    sampled, whole = (of.memory(8000, 1)[ALIGNMENT] for of in (cost, cost_of(config_of({}))))
    assert sampled / whole == pytest.approx(share**2, rel=0.03)


@pytest.mark.parametrize(
    ("name", "kept_bytes", "flops"),
    [
        # 4 kernels with their distances; products of codes, forward and for the gradient of a row.
        ("mmd", 4 * 2 * 4, 4 * 2 * 2 * CODE_DIM),
        ("mmd within ranks", 4 * 2 * 4, 4 * 2 * 2 * CODE_DIM),
        # Similarities; a product forward, and one for the gradient of either code.
        ("contrastive", 4, 3 * 2 * CODE_DIM),
        # Exponentials and which items are the same; a generated vector alone has a gradient.
        ("items and no L_d", 4 + 1, 2 * 2 * ITEM_DIM),
    ],
)
def test_pairs_cost_what_their_formulas_say(name: str, kept_bytes: int, flops: int) -> None:
    """Seen from outside: by the second differences of far larger batches."""
    cost = cost_of(config_of(MODELS[name]))
    few, more, most = (cost.step(rows, 1) for rows in (4000, 8000, 12000))
    for field, expected in (("kept_bytes", kept_bytes), ("flops", flops)):
        bend = getattr(most, field) - 2 * getattr(more, field) + getattr(few, field)
        assert bend / (2 * 4000**2) == pytest.approx(expected)


def on_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the model run as rank 0 of several that have the same rows as it."""

    def gathered(rows: Tensor) -> Tensor:
        return torch.cat([rows.detach()] * RANKS)

    def gathered_with_gradient(rows: Tensor) -> tuple[Tensor, int]:
        return torch.cat([rows, rows.new_zeros((RANKS - 1) * len(rows), rows.shape[1])]), 0

    for module in (model_loss, terms):
        monkeypatch.setattr(module, "gather_rows", gathered)
    monkeypatch.setattr(model_loss, "gather_rows_with_gradient", gathered_with_gradient)
    monkeypatch.setattr(model_loss, "world_size", lambda: RANKS)
    monkeypatch.setattr(terms, "counts_of_ranks", lambda number, _: [number] * RANKS)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_on_four_ranks_costs_what_is_estimated_from_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(MODELS[name])
    cost, alone = cost_of(config), measured(config, 96)
    on_ranks(monkeypatch)
    of_four = measured(config, 96)
    assert cost.step(96, RANKS).flops == of_four.flops
    memory = cost.memory(96, RANKS)
    kept = sum(memory.get(purpose, 0.0) for purpose in ("activations", ALIGNMENT, ITEM_CONTRAST))
    assert kept == pytest.approx(of_four.kept_bytes, rel=0.005)
    assert (of_four.flops > alone.flops) == (name != "mmd within ranks")


def test_on_a_gpu_the_mmd_keeps_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of({})
    cost = cost_of(config, "cuda")
    monkeypatch.setattr(model_loss, "mmd", partial(mmd, blocked=True))
    assert_same(cost.step(200, 1), measured(config, 200))
    on_ranks(monkeypatch)
    assert cost.step(96, RANKS).flops == measured(config, 96).flops
    # Two codes of other ranks' rows and their weights, and a block of a matrix at most.
    block, kept = (cost.memory(8192, ranks)[ALIGNMENT] for ranks in (1, RANKS))
    assert kept - block == RANKS * 8192 * 4 * (2 * CODE_DIM + 1)
    assert block - 4 * GPU_BLOCK < 8192 * 4 * 10 * CODE_DIM
    lower = cost_of(config_of({"train": {"precision": "bfloat16"}}))
    assert lower.memory(8192, 1)[ALIGNMENT] == block - 4 * GPU_BLOCK


def test_what_ranks_receive_to_compare_rows() -> None:
    """A ring sends a sum twice, and of a sum over ranks the gradients are summed too."""
    ranks, rows = 3, 64
    others, float_bytes = (ranks - 1) * rows, 4
    expected = {
        "mmd": 2 * CODE_DIM + 1,
        "mmd within ranks": 0,
        "contrastive": 4 * CODE_DIM + 1,
        "items and no L_d": ITEM_DIM + 4 + (8 + 1) / 4,
    }
    for name, floats in expected.items():
        cost = cost_of(config_of(MODELS[name]))
        assert cost.pair_bytes(rows, ranks) == others * float_bytes * floats, name
        assert cost.pair_bytes(rows, 1) == 0


def test_within_ranks_l_d_compares_own_rows_and_items_those_of_all_ranks() -> None:
    both = cost_of(config_of(contrast()))
    within = both.aligned_within_ranks()
    assert within.memory(64, 4)[ALIGNMENT] == both.memory(64, 1)[ALIGNMENT]
    assert within.memory(64, 4)[ITEM_CONTRAST] == both.memory(64, 4)[ITEM_CONTRAST]
    stated = cost_of(config_of({"model": {"mmd_over_all_ranks": False}}))
    assert stated.step(64, 4) == cost_of(config_of({})).aligned_within_ranks().step(64, 4)


def test_what_lies_on_no_parabola_is_taken_for_a_line() -> None:
    """Work of every other step would be a huge square."""
    for square, found in ((0.0, 0.0), (0.5, 0.5)):
        costs = [StepCost(flops=7 + 3 * rows + square * rows**2) for rows in (4, 8, 12, 16)]
        exact = QuadraticCost.through(costs, 4)
        assert exact.per_pair.flops == found
        assert exact.at(1000).flops == 7 + 3000 + square * 1000**2
    noisy = [StepCost(flops=7 + 3 * rows + 100 * (rows % 8 == 0)) for rows in (4, 8, 12, 16)]
    line = QuadraticCost.through(noisy, 4)
    assert line.per_pair.flops == 0 and 0 < line.per_row.flops - 3 < 100 / 16


def test_users_who_are_grouped_share_a_code_and_so_cost_no_more_than_estimated(
    tmp_path: Path,
) -> None:
    """The products of L_d are those of the warm users' pairs; the estimate counts each row."""
    write_rows(path := tmp_path / "train" / "a.parquet", 90, seed=1)
    rows = pq.read_table(path)
    income = rows.column_names.index("income")  # the one attribute that rows of a user differ in
    pq.write_table(rows.set_column(income, "income", rows["age"].cast("double")), path)
    for grouped in (False, True):
        aligned, plain = (
            flops_of_data(tmp_path, grouped, alignment) for alignment in ("mmd", "paired_mse")
        )
        num_warm = len((aligned[0].dedup or aligned[0]).sets.weighted)
        assert aligned[1] - plain[1] == 4 * 2 * 2 * CODE_DIM * num_warm**2
        assert num_warm < (30 if grouped else 90)
        assert aligned[1] < cost_of(config_of({})).step(90, 1).flops


def flops_of_data(root: Path, grouped: bool, alignment: str) -> tuple[Batch, int]:
    """A batch of all rows of some data, and what its step multiplies."""
    sections = zero_shot(alignment=alignment)
    config = config_of(sections | {"data": {"root": str(root), "group_by_user": grouped}})
    source, tables = Source(str(root / "train"), config.schema_), config_feature_tables(config)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    [batch] = Reader(
        source, config.schema_, encoders, tables, config.data,
        rank_info=RankInfo(), batch_size=source.num_rows, shuffle=False, seed=1,
        samplers=negative_samplers(config, encoders, tables),
    )  # fmt: skip
    towers = Towers(config.model, config.schema_, tables, encoders.num_rows)
    of_run = config.schema_, tables, encoders.num_rows, torch.device("cpu")
    model = Mail(*build_tables(*of_run), towers).train()
    return batch, count(lambda: model(batch)[0], model).flops
