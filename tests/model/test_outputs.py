"""Declared outputs of the towers: order, axis and size, and the values that follow them."""

from typing import Any

import pytest
import torch

from mail_torchrec.data.schema.feature_tables import build_feature_tables
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.model.builders import ModelSettings
from mail_torchrec.model.cold_rows import ColdUsers
from mail_torchrec.model.mail import Towers
from mail_torchrec.towers.inputs import CandidateInputs, RankingInputs
from mail_torchrec.towers.layers.sequences import BehaviourSequence, MatchInputs
from mail_torchrec.towers.registry import needs_match
from tests.support.small_rows import SCHEMA

SMALL: dict[str, Any] = {"encoder_dims": [8], "decoder_dims": [8], "attention_dim": 4}
SMALL_DMR = {"hidden_dims": [8], "attention_dims": [4], "num_negatives": 5}
VECTORS = "tests.support.towers_of_users:VectorTower"


def towers_of(*, schema: dict[str, Any] = SCHEMA, **model: Any) -> Towers:
    parsed = Schema.model_validate(schema)
    settings = ModelSettings.model_validate(
        {"tower_options": SMALL_DMR, "zero_shot": SMALL} | model
    )
    with_match = needs_match(settings.tower, settings.tower_options)
    feature_tables = build_feature_tables(parsed, needs_match=with_match)
    return Towers(settings, parsed, feature_tables, dict.fromkeys(parsed.table_names, 50)).eval()


def declared(towers: Towers) -> list[tuple[str, str, tuple[int, ...], str, str | None]]:
    return [
        (spec.name, spec.axis, spec.size, spec.role, spec.column) for spec in towers.output_specs()
    ]


PCTR = ("pctr", "candidates", (), "probability", None)
PCVR = ("pcvr", "candidates", (), "probability", None)
PCTCVR = ("pctcvr", "candidates", (), "probability", None)
VIRTUAL = ("history.virtual", "users", (6, 8), "virtual_behaviours", "history")
USER = ("history.user", "users", (8,), "user_vector", "history")
ITEM = ("history.item", "candidates", (8,), "item_vector", "history")


def for_candidates(*specs: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    return [(name, "candidates", *rest) for name, _, *rest in specs]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, [PCTR, VIRTUAL, USER, ITEM]),
        ({"multi_task": {}}, [PCTR, PCVR, PCTCVR, VIRTUAL, USER, ITEM]),
        ({"zero_shot": None}, [PCTR, USER, ITEM]),
        ({"zero_shot": SMALL | {"fill": "infer_only"}}, [PCTR, VIRTUAL, USER, ITEM]),
        (
            {"zero_shot": SMALL | {"input_fields": "all_fields"}},
            for_candidates(PCTR, VIRTUAL, USER, ITEM),
        ),
        ({"zero_shot": None, "baseline": {"name": "mean_fill"}}, [PCTR, VIRTUAL, USER, ITEM]),
        ({"tower": "base_dnn", "tower_options": {}}, [PCTR, VIRTUAL]),
        ({"tower": "base_dnn", "tower_options": {}, "zero_shot": None}, [PCTR]),
        ({"cold_loss_weight": 1.0, "new_user_tower": "own"}, [PCTR, VIRTUAL, USER, ITEM]),
    ],
    ids=str,
)
def test_towers_declare_their_outputs_probabilities_first(
    model: dict[str, Any], expected: list[tuple[Any, ...]]
) -> None:
    assert declared(towers_of(**model)) == expected


def test_the_order_does_not_depend_on_training() -> None:
    towers = towers_of(zero_shot=SMALL | {"fill": "infer_only"})
    assert towers.train().output_specs() == towers.eval().output_specs()


def test_every_output_has_a_meaning_of_its_own() -> None:
    meanings = [spec.meaning for spec in towers_of(multi_task={}).output_specs()]
    assert all(meanings) and len(set(meanings)) == len(meanings)


def test_vectors_are_as_wide_as_the_output_side_table_where_actions_are_concatenated() -> None:
    concatenated = SCHEMA | {"actions": "concat"}
    towers = towers_of(schema=concatenated)
    assert ("history.virtual", "users", (6, 16), "virtual_behaviours", "history") in declared(
        towers
    )
    assert USER in declared(towers) and ITEM in declared(towers)


def inputs_of(
    num_users: int = 3, num_candidates: int = 5
) -> tuple[RankingInputs, CandidateInputs, torch.Tensor]:
    """Random users, of whom the first is cold, and candidates that share them."""
    inverse_indices_B = torch.arange(num_candidates) % num_users
    users = RankingInputs(
        torch.randn(num_users, 2, 8),
        torch.zeros(num_users, 0, 0),
        torch.zeros(num_users, 0, 0),
        torch.randn(num_users, 1),
        {
            "history": BehaviourSequence(
                torch.randn(num_users, 6, 8),
                torch.full((num_users,), 4),
                torch.ones(num_users, 6, dtype=torch.int64),
                torch.zeros(num_users, 0),
                torch.zeros(num_users, dtype=torch.bool),
            )
        },
    )
    target_BD = torch.randn(num_candidates, 8)
    ids_B = torch.arange(num_candidates)
    match = MatchInputs(
        target_BD, target_BD, target_BD[:0], ids_B, ids_B[:0], target_BD[:, 0], target_BD[:0, 0]
    )
    candidates = CandidateInputs(
        torch.randn(num_candidates, 1, 8),
        torch.randn(num_candidates, 2, 8),
        torch.randn(num_candidates, 1),
        {"history": target_BD},
        {"history": match},
        None,
        inverse_indices_B,
    )
    return users, candidates, torch.arange(num_users) == 0


def values_of(towers: Towers) -> dict[str, torch.Tensor]:
    users, candidates, is_cold_U = inputs_of()
    filled = towers.fill_cold_users(users, ColdUsers(is_cold_U))
    return towers.output_values(towers.rank(candidates.join_users(filled)), filled)


@pytest.mark.parametrize(
    "model",
    [
        {"multi_task": {}},
        {"tower": VECTORS, "tower_options": {}},
        {"tower": "din", "tower_options": {}, "zero_shot": None},
    ],
    ids=str,
)
@torch.no_grad()
def test_values_have_the_order_shape_and_type_of_their_specs(model: dict[str, Any]) -> None:
    towers = towers_of(**model)
    values = values_of(towers)
    specs = towers.output_specs()
    assert list(values) == [spec.name for spec in specs]
    for spec in specs:
        num_rows = 3 if spec.axis == "users" else 5
        assert tuple(values[spec.name].shape) == (num_rows, *spec.size), spec.name
        assert str(values[spec.name].dtype) == f"torch.{spec.dtype}"


@torch.no_grad()
def test_virtual_behaviours_are_zeros_for_users_who_are_not_cold() -> None:
    virtual = values_of(towers_of())["history.virtual"]
    assert virtual[0].ne(0).all() and virtual[1:].eq(0).all()


@torch.no_grad()
def test_probabilities_are_those_of_the_logits() -> None:
    towers = towers_of(multi_task={})
    users, candidates, is_cold_U = inputs_of()
    filled = towers.fill_cold_users(users, ColdUsers(is_cold_U))
    result = towers.rank(candidates.join_users(filled))
    values = towers.output_values(result, filled)
    assert torch.equal(values["pctr"], torch.sigmoid(result.output.logits_B))
    assert torch.equal(values["pcvr"], torch.sigmoid(result.tasks["cvr"]))
    assert torch.equal(values["pctcvr"], torch.sigmoid(result.tasks["ctcvr"]))


def test_a_users_own_tower_declares_vectors() -> None:
    towers = towers_of(tower=VECTORS, tower_options={}, zero_shot=None)
    assert declared(towers) == [
        PCTR,
        ("history.user", "users", (5,), "user_vector", "history"),
        ("history.item", "candidates", (5,), "item_vector", "history"),
    ]


@pytest.mark.parametrize(
    ("declared_dim", "received"), [(4, r"received \[5\]"), (None, "received none")]
)
@torch.no_grad()
def test_a_tower_that_returns_other_vectors_than_it_declares_is_named(
    declared_dim: int | None, received: str
) -> None:
    options = {"declared_dim": declared_dim}
    towers = towers_of(tower=VECTORS, tower_options=options, zero_shot=None)
    with pytest.raises(
        ValueError,
        match=rf"tower '{VECTORS}' should return 'history.user' .*output_specs.*{received}",
    ):
        values_of(towers)
