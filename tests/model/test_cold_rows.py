"""Rows ranked as cold: behaviour dropout, the second loss, a tower of cold users' own."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mail_torchrec.losses.ranking import ranking_loss
from mail_torchrec.model.builders import ModelSettings
from tests.model.test_wall import gradients, whole
from tests.support.small_rows import make_cold

pytestmark = pytest.mark.usefixtures("single_process")
OWN: dict[str, Any] = {"cold_loss_weight": 1.0, "new_user_tower": "own"}


def without_histories(batch: Any) -> Any:
    """Returns the batch with every history empty, as the reader would have made it."""
    behaviours = {"history", "actions"}
    parts = {key: batch.unpooled[key] for key in batch.unpooled.keys()}
    lengths = torch.cat([parts[key].lengths() * (key not in behaviours) for key in parts])
    values = torch.cat([parts[key].values() for key in parts if key not in behaviours])
    changed = batch.to(torch.device("cpu"))
    changed.unpooled = type(batch.unpooled)(list(parts), values, lengths=lengths)
    return changed


def test_the_second_loss_is_that_of_warm_rows_without_their_behaviours(small_root: Path) -> None:
    model, batch = whole(small_root, zero_shot=None, cold_loss_weight=0.5)
    output = model(batch)[1]
    logits_B = model(without_histories(batch))[1].logits_B
    warm_B = ~batch.is_cold_B
    expected = ranking_loss(logits_B, batch.labels_B)[warm_B].mean()
    assert 0 < warm_B.sum() < len(batch)
    torch.testing.assert_close(output.losses["L_new_rt"], expected)


def test_the_second_loss_counts_with_its_weight(small_root: Path) -> None:
    model, batch = whole(small_root, cold_loss_weight=0.25)
    loss, output = model(batch)
    named = output.losses
    expected = (
        named["L_rt"]
        + 0.5 * named["L_match"]
        + named["L_a"]
        + named["L_v"]
        + named["L_d"]
        + 0.25 * named["L_new_rt"]
    )
    torch.testing.assert_close(loss.detach(), expected)


def test_a_tower_of_their_own_leaves_the_ranking_towers_gradients_as_they_are(
    small_root: Path,
) -> None:
    own, batch = whole(small_root, **OWN)
    shared, _ = whole(small_root)
    shared.load_state_dict(
        {key: value for key, value in own.state_dict().items() if "cold_" not in key}
    )
    for model in (own, shared):
        model(batch)[0].backward()
    found, expected = gradients(own), gradients(shared)
    assert all(
        torch.equal(found[name], expected[name]) for name in expected if "tables." not in name
    )
    assert any(
        not torch.equal(found[name], expected[name]) for name in expected if "tables." in name
    )
    assert all(
        found[name].abs().sum() > 0
        for name in found
        if "cold_" in name and "weight" in name and "position" not in name
    )


def test_cold_rows_are_scored_by_their_own_tower_and_warm_ones_by_the_other(
    small_root: Path,
) -> None:
    model, batch = whole(small_root, **OWN, multi_task={})
    model.eval()
    before = model(batch)[1]
    with torch.no_grad():
        for name, parameter in model.towers.named_parameters():
            if "cold_" in name and "weight" in name:
                parameter.mul_(1.5)
    after = model(batch)[1]
    for first, second in [
        (before.logits_B, after.logits_B),
        *((before.tasks[name], after.tasks[name]) for name in before.tasks),
    ]:
        assert torch.equal(first[~batch.is_cold_B], second[~batch.is_cold_B])
        assert (first[batch.is_cold_B] != second[batch.is_cold_B]).all()


def test_virtual_behaviours_of_a_second_pass_are_constants_too(
    small_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = whole(small_root, **OWN)
    monkeypatch.setattr(model.towers, "_zero_shot_losses", lambda *_: None)
    model(batch)[0].backward()
    assert not [name for name in gradients(model) if "zero_shot" in name]


@pytest.mark.parametrize("kind", ["new", "old"])
@pytest.mark.parametrize(
    "switches",
    [OWN, {"cold_loss_weight": 1.0}, {"behaviour_dropout": 0.5}, {**OWN, "multi_task": {}}],
    ids=str,
)
def test_with_rows_of_one_kind_every_parameter_gets_a_finite_gradient(
    small_root: Path, kind: str, switches: dict[str, Any]
) -> None:
    model, batch = whole(small_root, **switches)
    make_cold(batch, kind == "new")
    loss, output = model(batch)
    loss.backward()
    assert all(torch.isfinite(value) for value in output.losses.values())
    grads = gradients(model)
    assert grads.keys() == {name for name, _ in model.named_parameters()}
    assert all(torch.isfinite(value).all() for value in grads.values())


def test_dropped_rows_are_ranked_as_without_behaviours_and_the_others_as_they_are(
    small_root: Path,
) -> None:
    model, batch = whole(
        small_root,
        zero_shot=None,
        tower="tests.support.towers_of_users:MeanTower",
        tower_options={},
        behaviour_dropout=0.5,
    )
    torch.manual_seed(0)
    found = model(batch)[1].logits_B
    without = model(without_histories(batch))[1].logits_B
    plain = model.eval()(batch)[1].logits_B
    dropped_B = ~torch.isclose(found, plain)
    torch.testing.assert_close(found[dropped_B], without[dropped_B])
    warm_B = ~batch.is_cold_B
    assert 0.2 < dropped_B[warm_B].float().mean() < 0.8 and not dropped_B[batch.is_cold_B].any()


def test_without_virtual_behaviours_cold_rows_keep_the_few_behaviours_that_they_have(
    small_root: Path,
) -> None:
    model, batch = whole(small_root, zero_shot=None, **OWN)
    model.eval()
    make_cold(batch, True)
    assert not torch.equal(model(batch)[1].logits_B, model(without_histories(batch))[1].logits_B)


@pytest.mark.parametrize("made", [{}, {"zero_shot": None, "baseline": {"name": "mean_fill"}}])
def test_few_real_behaviours_are_mixed_with_virtual_ones_by_count(
    small_root: Path, made: dict[str, Any]
) -> None:
    """With n real ones of mean m a virtual v becomes (k v + n m) / (k + n) behind them."""
    model, batch = whole(small_root, mixing_strength=1.5, **made)
    make_cold(batch, True)
    step = _step_of(model, batch)
    real = step.users.sequences["history"]
    filled = model.towers.fill_cold_users(step.users, step.cold).sequences["history"]
    source, fields = model.towers.virtual_source, model.towers.zero_shot_fields(step.users)
    virtual, lengths = source.virtual_behaviours(fields, step.users.numeric_BN)["history"]
    counts = real.lengths_B.tolist()
    assert {0, 1, 6} <= set(counts) and filled.is_virtual_B.all()
    for row, n in enumerate(counts):
        length = max(n, int(lengths[row]))
        assert filled.lengths_B[row] == length
        assert torch.equal(filled.values_BTD[row, :n], real.values_BTD[row, :n])
        assert torch.equal(filled.actions_BT[row, :n], real.actions_BT[row, :n])
        assert not filled.actions_BT[row, n:].any()
        mean = real.values_BTD[row, :n].double().mean(0) if n else 0
        expected = (1.5 * virtual[row, n:length].double() + n * mean) / (1.5 + n)
        found = filled.values_BTD[row, n:length].double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert not filled.values_BTD[row, length:].any()


def test_real_behaviours_of_cold_users_train_the_tables_and_virtual_ones_do_not(
    small_root: Path,
) -> None:
    model, batch = whole(small_root, mixing_strength=1.5)
    make_cold(batch, True)
    step = _step_of(model, batch)
    filled = model.towers.fill_cold_users(step.users, step.cold).sequences["history"]
    has_any = step.users.sequences["history"].lengths_B > 0
    table = model.unpooled_tables.embeddings["item"].weight
    (slope,) = torch.autograd.grad(filled.values_BTD[has_any].sum(), table, retain_graph=True)
    assert slope.abs().sum() > 0
    (slope,) = torch.autograd.grad(filled.values_BTD[~has_any].sum(), table, allow_unused=True)
    assert slope is None or not slope.any()


def _step_of(model: Any, batch: Any) -> Any:
    unpooled = model.unpooled_tables(batch.unpooled)
    return model.towers._step_inputs(batch, model.pooled_tables(batch.pooled), unpooled)


@pytest.mark.parametrize("tower", ["dmr", "tests.support.towers_of_users:MeanTower"])
def test_the_ranking_tower_is_told_whose_behaviours_are_virtual(
    small_root: Path, tower: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {} if ":" in tower else {"num_negatives": 20, "hidden_dims": [16, 8]}
    model, batch = whole(
        small_root, tower=tower, tower_options=options, virtual_flag=True, behaviour_dropout=0.3
    )
    seen: list[Any] = []
    model.towers.ranking.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    plain = batch.numeric_BN
    model(batch)
    is_virtual_B = next(iter(seen[0].sequences.values())).is_virtual_B
    assert is_virtual_B[batch.is_cold_B].all() and 0 < is_virtual_B.sum() < len(batch)
    assert is_virtual_B.sum() > batch.is_cold_B.sum()  # dropped users too
    expected = torch.cat([plain, is_virtual_B.float().unsqueeze(1)], dim=1)  # one attribute
    assert torch.equal(seen[0].numeric_BN, expected)


@pytest.mark.parametrize("name", ["virtual_flag", "mixing_strength"])
@pytest.mark.parametrize("baseline", [None, {"name": "meta_emb"}])
def test_what_needs_virtual_behaviours_is_refused_without_them(
    name: str, baseline: dict[str, Any] | None
) -> None:
    tree = {"zero_shot": None, "baseline": baseline, name: True if "flag" in name else 1.5}
    with pytest.raises(ValueError, match=f"{name} needs virtual behaviours, and nothing makes any"):
        ModelSettings.model_validate(tree)


def test_contradicting_settings_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=(
            "new_user_tower 'own' is trained by rows ranked as cold alone; set "
            "cold_loss_weight above 0"
        ),
    ):
        ModelSettings(new_user_tower="own")
    with pytest.raises(
        ValueError,
        match="baseline 'mean_fill' stands in the zero-shot tower's place; set zero_shot null",
    ):
        ModelSettings.model_validate({"baseline": {"name": "mean_fill"}})
