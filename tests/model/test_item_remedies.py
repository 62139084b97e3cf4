"""Losses that teach the generator of new items: their values by an independent road, and phases."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mail_torchrec.config import Config
from mail_torchrec.model.virtual_items.settings import VirtualItemSettings
from tests.model.test_wall import MODEL, build, tables_and_state
from tests.support.item_reference import entropy, item_info_nce
from tests.support.small_rows import SCHEMA, config_tree

pytestmark = pytest.mark.usefixtures("single_process")

PRICED: dict[str, Any] = SCHEMA | {
    "columns": SCHEMA["columns"]
    | {"price": {"group": "item", "kind": "numeric", "column": "income"}}
}
ALDI: dict[str, Any] = {"mse_weight": 0.0, "ranking_weight": 1.5, "distillation": {}}
CLCREC: dict[str, Any] = {"contrast": {"weight": 0.5, "temperature": 0.3}, "dropout": 0.5}
PROXY: dict[str, Any] = {"mse_weight": 0.0, "ranking_weight": 2.0, "contrast": {"steps": 2}}
LOSSES = {
    "L_item_contrast": CLCREC,
    "L_item_r": ALDI,
    "L_item_ranking": ALDI,
    "L_item_identity": ALDI,
    "L_item_rating": ALDI,
}


def sections(virtual_items: dict[str, Any], **model: Any) -> dict[str, Any]:
    own = MODEL | {"zero_shot": None, "virtual_items": {"hidden_dims": [6]} | virtual_items} | model
    return {"model": own, "data": {"new_items": {"max_count": 27}}, "schema": PRICED}


def whole(root: Path, virtual_items: dict[str, Any]) -> tuple[Any, Any]:
    """An unsharded model after some steps, and a batch with weights, new and old items."""
    assembled, batches = build(root, sharding={"enabled": False}, **sections(virtual_items))
    for _ in range(3):
        assembled.pipeline.progress(batches)
    assembled.model.zero_grad()
    batch = next(batches)
    batch.weights_B[::3] = 2.0
    batch.weights_B[1] = 0.0
    assert 0 < batch.is_cold_item_B.sum() < len(batch)
    return assembled.model, batch


def permuted(ids: KeyedJaggedTensor, names: list[str], order: list[int]) -> KeyedJaggedTensor:
    """The ids of some columns in another order of rows."""
    columns = {}
    for name in ids.keys():
        rows = ids[name].to_dense()
        columns[name] = [rows[i] for i in order] if name in names else rows
    return KeyedJaggedTensor.from_lengths_sync(
        list(columns),
        torch.cat([row for rows in columns.values() for row in rows]),
        torch.tensor([len(row) for rows in columns.values() for row in rows]),
    )


def scores(model: Any, batch: Any, *, virtual: bool) -> Any:
    """Logits of all rows as the evaluation gives them, all items being new or none."""
    kept = batch.is_cold_item_B.clone()
    batch.is_cold_item_B[:] = virtual
    model.eval()
    with torch.no_grad():
        logits = model(batch)[1].logits_B.double().numpy()
    model.train()
    batch.is_cold_item_B[:] = kept
    return logits


def scores_of_others(model: Any, batch: Any, order: list[int], *, virtual: bool) -> Any:
    """The same with the items of other rows."""
    kept = batch.pooled, batch.unpooled, batch.numeric_BN
    keys = model.towers._feature_tables.match["history"]
    batch.pooled = permuted(batch.pooled, ["tags"], order)
    batch.unpooled = permuted(batch.unpooled, ["item", keys.target], order)
    batch.numeric_BN = torch.cat([batch.numeric_BN[:, :1], batch.numeric_BN[order, 1:]], dim=1)
    try:
        return scores(model, batch, virtual=virtual)
    finally:
        batch.pooled, batch.unpooled, batch.numeric_BN = kept


def item_vectors(model: Any, batch: Any) -> tuple[Any, Any]:
    """Generated and real vectors in float64, of the generator's own layers and the tables."""
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def table(name: str) -> Any:
        [found] = [v for key, v in state.items() if key.endswith(f".{name}.weight")]
        return found

    means = [
        table("tags")[ids.numpy()].mean(0) if len(ids) else np.zeros(8)
        for ids in batch.pooled["tags"].to_dense()
    ]
    inputs = np.concatenate([np.stack(means), batch.numeric_BN.double().numpy()[:, 1:]], axis=1)
    (w, b), (v, c) = (
        [state[f"towers.virtual_items.layers.{i}.{part}"] for part in ("weight", "bias")]
        for i in (0, 2)
    )
    hidden = inputs @ w.T + b
    generated = np.where(hidden > 0, hidden, 0.01 * hidden) @ v.T + c
    ids = batch.unpooled["item"].values().numpy()
    return generated, np.concatenate([table("item")[ids], table("item_output")[ids]], axis=1)


def expected_losses(model: Any, batch: Any, order: list[int]) -> dict[str, float]:
    """Each loss over its rows, in numpy; ``order`` gives the rows of the negative items."""
    generated, real = item_vectors(model, batch)
    weights, labels = batch.weights_B.double().numpy(), batch.labels_B.double().numpy()
    warm = ~batch.is_cold_item_B.numpy()
    ids, is_counted = batch.unpooled["item"].values().numpy(), warm & (weights > 0)
    contrast = item_info_nce(real, generated, ids, is_counted, 0.3)
    ways = {}
    for virtual in (False, True):
        own = scores(model, batch, virtual=virtual)
        others = scores_of_others(model, batch, order, virtual=virtual)
        ways[virtual] = own, others
    (t, t_other), (s, s_other) = ways[False], ways[True]
    is_own = ids == ids[order]
    assert is_own.any()  # a negative that is the row's own item
    paired = weights * labels * warm * warm[order] * ~is_own
    chosen = [i for i in range(len(order)) if paired[i] > 0]
    trust = np.minimum(np.tanh(4 * batch.item_frequency_B.double().numpy()), np.tanh(4))

    def stands_out(vectors: Any) -> Any:
        others = vectors[[order[i] for i in chosen]]
        return np.array([x @ x - np.mean(others @ x) for x in vectors])

    identity = trust * entropy(stands_out(generated), stands_out(real))

    def mean(losses: Any, over: Any) -> float:
        return float((losses * over).sum() / over.sum())

    return {
        "L_item_contrast": mean(contrast, weights * warm),
        "L_item_r": mean(np.log1p(np.exp(-(2 * labels - 1) * s)), weights),
        "L_item_ranking": mean(trust * entropy(s - s_other, t - t_other), paired),
        "L_item_identity": mean(identity, paired),
        "L_item_rating": mean(abs(t - s) + abs(t_other - s_other), paired),
    }


@pytest.mark.parametrize("settings", [CLCREC, ALDI], ids=["clcrec", "aldi"])
def test_losses_are_those_of_scoring_each_row_as_new_and_as_old(
    small_root: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = whole(small_root, settings)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: order)
    found = model(batch)[1].losses
    # Batch norm's statistics are those behind the step's other passes.
    expected = expected_losses(model, batch, order.tolist())
    names = {name for name in LOSSES if LOSSES[name] is settings}
    assert names <= found.keys() and ("L_virtual_item" in found) == (settings is CLCREC)
    for name in names:
        assert found[name].item() == pytest.approx(expected[name], rel=1e-4), name


def test_the_sum_weighs_each_loss(small_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ALDI | {"mse_weight": 3.0, "contrast": {"weight": 0.25}}
    model, batch = whole(small_root, given)
    loss, output = model(batch)
    weights = {"L_virtual_item": 3, "L_item_contrast": 0.25, "L_item_r": 1.5}
    weights |= {"L_item_ranking": 0.9, "L_item_identity": 0.05, "L_item_rating": 0.1}
    weights |= {"L_rt": 1, "L_match": 0.5}
    assert output.losses.keys() == weights.keys()
    expected = sum(weight * output.losses[name].item() for name, weight in weights.items())
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("settings", [CLCREC, ALDI, PROXY], ids=["clcrec", "aldi", "proxy"])
def test_these_losses_keep_every_bit_of_tables_and_their_state(
    small_root: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, batches = build(small_root, **sections(settings))
    for _ in range(3):
        first.pipeline.progress(batches)
    monkeypatch.setattr("mail_torchrec.model.mail.ranking_terms", lambda *_: {})
    second, batches = build(small_root, **sections(settings))
    second.model.load_state_dict(first.model.state_dict())
    saved = first.model.fused_optimizer.state_dict()  # type: ignore[union-attr,operator]
    second.model.fused_optimizer.load_state_dict(saved)  # type: ignore[union-attr,operator]
    before = tables_and_state(second)
    dense = {name: value.clone() for name, value in second.model.named_parameters()}
    for _ in range(20):
        output = second.pipeline.progress(batches)
    assert all(name.startswith(("L_item", "L_virtual_item")) for name in output.losses)
    after = tables_and_state(second)
    assert any("momentum" in key for key in after) and before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    for name, value in second.model.named_parameters():
        assert torch.equal(value, dense[name]) == ("virtual_items" not in name), name


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_teaches_the_generator_alone_and_lowers_itself(
    small_root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = whole(small_root, LOSSES[name])
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: order)
    generator = [value for key, value in model.named_parameters() if "virtual_items" in key]
    optimizer = torch.optim.Adam(generator, 0.005)
    found = []
    for _ in range(8):
        model.zero_grad()
        tables = model.pooled_tables(batch.pooled), model.unpooled_tables(batch.unpooled)
        step = model.towers._step_inputs(batch, *tables)
        terms = model.towers._generator_terms(
            step, batch, model.towers.zero_shot_fields(step.users)
        )
        loss = (terms[name].losses_N * terms[name].weights_N).sum() / terms[name].weights_N.sum()
        found.append(loss.item())
        loss.backward()
        others = [v.grad for key, v in model.named_parameters() if "virtual_items" not in key]
        assert all(gradient is None for gradient in others)
        optimizer.step()
    assert found[-1] < found[0]


def test_a_content_proxy_is_aligned_first_and_then_trained_by_the_ranking_loss(
    small_root: Path,
) -> None:
    assembled, batches = build(small_root, **sections(PROXY))
    found = [assembled.pipeline.progress(batches).losses for _ in range(4)]
    is_aligned = [losses["L_item_contrast"].item() > 0 for losses in found]
    is_ranked = [losses["L_item_r"].item() > 0 for losses in found]
    assert is_aligned == [True, True, False, False] and is_ranked == [False, False, True, True]
    [steps] = [v for k, v in assembled.model.state_dict().items() if k.endswith("num_steps")]
    assert steps == 4  # a resumed run goes on in its phase


def test_a_frozen_generator_stays_as_it_is_and_in_its_phase(small_root: Path) -> None:
    frozen = sections(PROXY) | {"train": {"freeze": ["zero_shot"]}}
    assembled, batches = build(small_root, **frozen)
    assembled.train_mode()
    state = {n: v.clone() for n, v in assembled.model.state_dict().items() if "virtual_items" in n}
    found = [assembled.pipeline.progress(batches).losses for _ in range(4)]
    assert all(losses["L_item_contrast"].item() > 0 == losses["L_item_r"] for losses in found)
    after = assembled.model.state_dict()
    assert len(state) == 5 and all(torch.equal(after[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"fill": "mean", "contrast": {}}, "fill 'mean' learns a mean and nothing of an item"),
        ({"mse_weight": 0}, "mse_weight is 0, and nothing else teaches the generator"),
        ({"contrast": {"steps": 9}}, "whose ranking_weight is 0; give one"),
    ],
)
def test_losses_that_teach_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VirtualItemSettings.model_validate(settings)


def test_teachers_are_weighed_by_ids_that_are_counted() -> None:
    hashed = {"tables": SCHEMA["tables"] | {"item": {"ids": "hash", "rows": 9}}}
    fresh = {"columns": SCHEMA["columns"] | {"fresh": {"group": "new_item", "column": "bought"}}}
    tree = config_tree(Path(), schema=hashed | fresh, model={"virtual_items": {"distillation": {}}})
    with pytest.raises(ValueError, match="frequency_cap needs counts of the ids"):
        Config.model_validate(tree)
    tree["model"]["virtual_items"]["distillation"] = {"frequency_cap": None}
    Config.model_validate(tree)
