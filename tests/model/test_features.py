"""First-order weights: one an id behind its vector, read and trained by the linear part alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mail_torchrec.config import Config
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.schema.feature_tables import build_feature_tables
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.towers.inputs import RankingInputs
from mail_torchrec.train.assembly import AssembledModel, assemble
from tests.support.small_rows import SCHEMA, config_tree, write_rows

FIELDS = ["age", "city", "hour", "item", "tags"]


def whole_model(root: Path, dim: int) -> tuple[AssembledModel, Batch]:
    """DeepFM over whole tables that SGD trains, and a batch of 32 rows."""
    write_rows(root / "train" / "a.parquet", 64, seed=1)
    sections = {
        "schema": SCHEMA | {"dim": dim},
        "model": {"tower": "deepfm", "tower_options": {"hidden_dims": [8]}, "zero_shot": None},
        "sharding": {"enabled": False},
        "train": {"tables": {"name": "sgd"}},
    }
    config = Config.model_validate(config_tree(root, **sections))
    source = Source(config.data.path("train"), config.schema_)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    assembled = assemble(config, encoders, torch.device("cpu"))
    reader = Reader(
        source, config.schema_, encoders, assembled.feature_tables, config.data,
        rank_info=RankInfo(), batch_size=32, shuffle=False, seed=0, samplers={},
    )  # fmt: skip
    return assembled, next(iter(reader))


def tables(assembled: AssembledModel) -> dict[str, Tensor]:
    """Table name -> its weights as they are stored, not copied."""
    return {
        key.split(".")[2]: value
        for key, value in assembled.model.state_dict().items()
        if "_tables." in key
    }


def ids(batch: Batch, name: str) -> list[list[int]]:
    jagged = (batch.unpooled if name in ("item", "history") else batch.pooled)[name]
    return [row.tolist() for row in jagged.to_dense()]


@pytest.mark.parametrize("dim", [8, 7])
def test_the_tower_gets_the_sum_of_the_ids_weights_beside_their_vectors(
    tmp_path: Path, dim: int
) -> None:
    assembled, batch = whole_model(tmp_path, dim)
    found = tables(assembled)
    for table in found.values():
        table.normal_()
    seen: list[RankingInputs] = []
    assembled.model.towers.ranking.register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[0])
    )  # type: ignore[union-attr]
    with torch.no_grad():
        assembled.model.eval()(batch)
    for row in range(32):
        weights = [[float(found[name][i, dim]) for i in ids(batch, name)[row]] for name in FIELDS]
        assert seen[0].first_order_B is not None
        assert float(seen[0].first_order_B[row]) == pytest.approx(
            sum(np.mean(part) for part in weights if part), abs=1e-5
        )
        assert seen[0].items_BID[row, 0].equal(found["item"][ids(batch, "item")[row][0], :dim])


@pytest.mark.parametrize("dim", [8, 7])
def test_weights_start_at_0_and_only_those_of_fields_are_trained(tmp_path: Path, dim: int) -> None:
    assembled, batch = whole_model(tmp_path, dim)
    found = tables(assembled)
    assert all(
        table[:, dim:].eq(0).all() and table[:, :dim].ne(0).any() for table in found.values()
    )
    assembled.pipeline.progress(iter([batch]))
    for name in FIELDS:
        used = {i for row in ids(batch, name) for i in row}
        assert set(found[name][:, dim].nonzero().squeeze(1).tolist()) == used
        assert found[name][:, dim + 1 :].eq(0).all()
    behaviours = {i for row in ids(batch, "history") for i in row}
    assert behaviours - {i for [i] in ids(batch, "item")}, (
        "some items are behaviours alone, and their weights stay 0"
    )


def test_only_tables_of_fields_hold_weights() -> None:
    schema = Schema.model_validate(SCHEMA)
    feature_tables = build_feature_tables(schema, needs_match=False, needs_first_order=True)
    assert feature_tables.first_order == set(FIELDS)
    assert build_feature_tables(schema, needs_match=True).first_order == set()
