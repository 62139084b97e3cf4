"""Virtual vectors of new items: who gets them, their loss, and the wall around their generator."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mail_torchrec.config import Config
from tests.model.test_wall import MODEL, build, gradients
from tests.support.small_rows import SCHEMA, config_tree

pytestmark = pytest.mark.usefixtures("single_process")


ALL_LOSSES: dict[str, Any] = {"contrast": {}, "distillation": {}, "ranking_weight": 1.0}


@pytest.fixture(params=[{}, ALL_LOSSES], ids=["mse", "all losses"])
def model_and_batch(small_root: Path, request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """An unsharded model after some steps, and a batch with new and old items."""
    assembled, batches = build(
        small_root,
        sharding={"enabled": False},
        data={"new_items": {"max_count": 27}},
        model=MODEL | {"virtual_items": {"hidden_dims": [6], "dropout": 0.2} | request.param},
    )
    for _ in range(3):
        assembled.pipeline.progress(batches)
    assembled.model.zero_grad()
    batch = next(batches)
    assert 0 < batch.is_cold_item_B.sum() < len(batch)
    return assembled.model, batch


def backward(model: Any, batch: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(4)
    model(batch)[0].backward()
    return gradients(model)


def test_neither_loss_reaches_over_the_wall(
    model_and_batch: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = model_and_batch
    state = {name: value.clone() for name, value in model.state_dict().items()}
    joint = backward(model, batch)
    model.load_state_dict(state)  # batch norm has learnt from the batch
    name = "mail_torchrec.model.mail.virtual_item_terms"
    with monkeypatch.context() as patch:
        patch.setattr(name, lambda *_: {})
        alone = backward(model, batch)
    assert joint.keys() - alone.keys() == {
        name for name, _ in model.named_parameters() if "virtual_items" in name
    }
    assert all(torch.equal(joint[name], alone[name]) for name in alone)
    monkeypatch.setattr("mail_torchrec.model.mail.ranking_terms", lambda *_: {})
    model.load_state_dict(state)
    generator = backward(model, batch)
    for name, gradient in generator.items():
        if "virtual_items" in name:
            assert torch.equal(gradient, joint[name]) and gradient.abs().sum() > 0
        assert "zero_shot" in name or "virtual_items" in name or not gradient.abs().sum(), name


def expected_vectors(model: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The generated and the real vectors [B, 2 D] in float64, from the tables themselves."""
    state = {name: value.double() for name, value in model.state_dict().items()}

    def weights(table: str) -> torch.Tensor:
        [found] = [v for name, v in state.items() if name.endswith(f"embeddings.{table}.weight")]
        return found

    [bags] = [v for name, v in state.items() if name.endswith("embedding_bags.tags.weight")]
    lists = batch.pooled["tags"].to_dense()
    mean_BD = torch.stack(
        [bags[ids].mean(0) if len(ids) else torch.zeros(8).double() for ids in lists]
    )
    parts = ("weight", "bias")
    (into, into_bias), (out, out_bias) = (
        [state[f"towers.virtual_items.layers.{i}.{part}"] for part in parts] for i in (0, 2)
    )
    hidden = torch.nn.functional.leaky_relu(mean_BD @ into.T + into_bias)
    generated = hidden @ out.T + out_bias
    ids_B = batch.unpooled["item"].values()
    return generated, torch.cat([weights("item")[ids_B], weights("item_output")[ids_B]], dim=1)


def test_the_loss_is_the_mean_error_of_warm_items_vectors(
    model_and_batch: tuple[Any, Any],
) -> None:
    model, batch = model_and_batch
    batch.weights_B[::3] = 2.0
    generated, real = expected_vectors(model, batch)
    weights = batch.weights_B.double() * ~batch.is_cold_item_B
    expected = ((generated - real).square().mean(1) * weights).sum() / weights.sum()
    found = model(batch)[1].losses["L_virtual_item"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_new_items_are_scored_by_generated_vectors_and_no_others(
    model_and_batch: tuple[Any, Any],
) -> None:
    model, batch = model_and_batch
    model.eval()
    generated, real = expected_vectors(model, batch)
    expected = torch.where(batch.is_cold_item_B[:, None], generated, real).float()
    tables = model.pooled_tables(batch.pooled), model.unpooled_tables(batch.unpooled)
    candidates = model.towers._step_inputs(batch, *tables).candidates
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(candidates.items_BID[:, 0], expected[:, :8], **close)
    torch.testing.assert_close(candidates.targets["history"], expected[:, :8], **close)
    torch.testing.assert_close(candidates.matches["history"].target_BD, expected[:, 8:], **close)


def test_the_generator_reads_nothing_that_tells_the_id(small_root: Path) -> None:
    """A new item's cross is an unknown id, which no known item's is."""
    told = {
        "both": {"group": "item", "cross": ["item", "city"]},
        "same": {"group": "item", "column": "item"},
    }
    assembled, batches = build(
        small_root,
        sharding={"enabled": False},
        data={"new_items": {"max_count": 27}},
        model=MODEL | {"virtual_items": {"contrast": {}}},
        schema=SCHEMA | {"columns": SCHEMA["columns"] | told},
    )
    model, batch = assembled.model, next(batches)
    tables = model.pooled_tables(batch.pooled), model.unpooled_tables(batch.unpooled)
    given = model.towers._step_inputs(batch, *tables).items

    def generated(*names: str) -> torch.Tensor:
        fields = given.embeddings.fields
        changed = fields | {name: fields[name] + 1 for name in names}
        embeddings = replace(given.embeddings, fields=changed)
        made: torch.Tensor = model.towers.virtual_items(embeddings, {}, batch.numeric_BN)
        return made

    assert torch.equal(generated(*told, "item"), given.generated_BG)
    assert not torch.equal(generated("tags"), given.generated_BG)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": {"virtual_items": {}}}, "nothing says which items of a request are new"),
        (
            {
                "model": {"virtual_items": {"item": "other"}},
                "data": {"new_items": {"max_count": 0}},
            },
            "virtual_items.item should be the column whose ids are new or not, 'item', rec",
        ),
    ],
)
def test_a_generator_needs_a_rule(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate(config_tree(Path(), **changes))
