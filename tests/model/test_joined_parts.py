"""Behaviours and targets joined of several parts, and narrow tables projected."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mail_torchrec.config import Config
from mail_torchrec.data.schema.dims import auto_dim
from mail_torchrec.data.schema.schema import Group
from tests.support.sequence_rows import AS_AUTHORS, with_parts
from tests.support.small_rows import SCHEMA, config_tree, write_rows
from tests.support.whole_model import Array, WholeModel

BASE_DNN: dict[str, Any] = {
    "tower": "base_dnn",
    "tower_options": {"hidden_dims": [8], "dropout": 0.0},
    "zero_shot": None,
}


def whole_model(root: Path, schema: dict[str, Any], **model: Any) -> WholeModel:
    write_rows(root / "train" / "a.parquet", 64, seed=1)
    sections = {"schema": schema, "model": BASE_DNN | model, "sharding": {"enabled": False}}
    return WholeModel(Config.model_validate(config_tree(root, **sections)))


def layer(model: WholeModel, name: str, vector: Array) -> Array:
    """Applies the projection of a field or part, where its table is narrower than the others."""
    weights = dict(model.towers.projections.named_parameters())
    if f"{name}_.weight" not in weights:
        return vector
    projected: Array = weights[f"{name}_.weight"].detach().double().numpy() @ vector
    return projected


@pytest.mark.parametrize("join", ["concat", "sum", "product"])
def test_behaviours_and_targets_are_joined_of_their_parts(tmp_path: Path, join: str) -> None:
    model = whole_model(tmp_path, with_parts(join))
    narrow = [] if join == "concat" else ["parts.past_shelf_"]
    found = [
        name.removesuffix(".weight") for name, _ in model.towers.projections.named_parameters()
    ]
    assert found == ["fields.city_", "fields.shelf_", *narrow]
    _, inputs = model.scored()
    sequence = inputs.sequences["past"]
    rows = pq.read_table(model.train_path).slice(0, len(model.batch)).to_pylist()

    def joined(item: object, action: object | None) -> Array:
        shelf = layer(model, "parts.past_shelf", model.vector("shelf", item))
        parts = [model.vector("item", item), shelf]
        if action is not None:
            parts.append(model.vector("actions", action))
        elif join == "concat":
            parts.append(np.zeros(8))
        if join == "concat":
            return np.concatenate(parts)
        result: Array = np.sum(parts, axis=0) if join == "sum" else np.prod(parts, axis=0)
        return result

    for row, values in enumerate(rows):
        newest = list(zip(values["history"], values["actions"], strict=True))[-6:]
        expected = np.zeros((6, 20 if join == "concat" else 8))
        for place, behaviour in enumerate(newest):
            expected[place] = joined(*behaviour)
        np.testing.assert_allclose(sequence.users.real_BTD[row].numpy(), expected, atol=1e-5)
        target = joined(values["item"], None)
        np.testing.assert_allclose(sequence.target_BD[row].numpy(), target, atol=1e-5)
        items = [model.vector("item", values["item"]), model.vector("shelf", values["item"])]
        items = [items[0], layer(model, "fields.shelf", items[1])]
        places = [model.schema.fields(Group.ITEM).index(name) for name in ("item", "shelf")]
        np.testing.assert_allclose(inputs.items_BID[row, places].numpy(), items, atol=1e-5)


def test_the_match_loss_is_about_its_part(tmp_path: Path) -> None:
    options = {"tower": "dmr", "tower_options": {"num_negatives": 7, "hidden_dims": [8]}}
    model = whole_model(tmp_path, AS_AUTHORS, **options)
    _, inputs = model.scored()
    match = inputs.sequences["past"].match
    assert match is not None
    rows = pq.read_table(model.train_path).slice(0, len(model.batch)).to_pylist()
    for row, values in enumerate(rows):
        target = model.vector("shelf", values["item"], "shelf_output")
        np.testing.assert_array_equal(match.target_BD[row].numpy(), target)
        if values["history"]:
            last = values["history"][-1]
            assert int(match.last_ids_U[row]) == model.row("shelf", last)
            newest = model.vector("shelf", last, "shelf_output")
            np.testing.assert_array_equal(match.last_UD[row].numpy(), newest)


def test_automatic_dimensions_follow_the_rule_and_equal_ones_change_nothing(tmp_path: Path) -> None:
    # 6 * rows ** 0.25 (Wang et al. 2017): 12.4 of 18 rows, 60 of 10,000, 189.7 of a million.
    assert [auto_dim(rows, None) for rows in (18, 10_000, 1_000_000)] == [12, 60, 188]
    assert auto_dim(1_000_000, 32) == 32
    tables = SCHEMA["tables"] | {"hour": {"dim": "auto"}}
    model = whole_model(tmp_path, SCHEMA | {"dim": "auto", "tables": tables})
    rows = model.encoders.num_rows
    assert all(model.schema.table(name).dim == auto_dim(rows[name], None) for name in rows)
    explicit = {name: {"dim": model.schema.table(name).dim} for name in rows}
    named = {name: tables.get(name, {}) | explicit[name] for name in rows}
    again = whole_model(tmp_path, SCHEMA | {"tables": named})
    assert again.scored()[0] == model.scored()[0]
    equal = whole_model(tmp_path, SCHEMA)
    assert not list(equal.towers.projections.parameters())


def test_the_ranking_loss_alone_trains_the_projections(tmp_path: Path) -> None:
    model = whole_model(tmp_path, with_parts("sum"), zero_shot={"encoder_dims": [8, 4]})
    model.model.train()
    loss, outputs = model.model(model.batch)
    zero_shot = sum(value for name, value in outputs.losses.items() if name != "L_rt")
    assert loss.requires_grad and not isinstance(zero_shot, int)
    loss.backward()
    for parameter in model.towers.projections.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0
    assert torch.isfinite(loss)
