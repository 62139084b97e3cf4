"""The inference model scores as the trainer's does, whatever the towers and switches."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mail_torchrec.inference.requests import Request
from tests.support.derived_rows import DERIVED, derived_rows, write_derived_rows
from tests.support.sequence_rows import AS_AUTHORS, with_parts
from tests.support.small_rows import SCHEMA, WITH_ID, config_tree
from tests.support.task_rows import PLE, TASK_SCHEMA, TASKS
from tests.support.task_rows import write_task_rows as write_rows
from tests.support.untrained_model import UntrainedModel, requests_of
from tests.support.vector_rows import VECTORED, VECTORS, with_vectors

DIMS = {"hidden_dims": [16, 8]}
MODEL = config_tree(Path())["model"]


def model(tower: str, **changes: Any) -> dict[str, Any]:
    options = {} if tower in ("emblr", "dmr") or ":" in tower else DIMS
    return (
        MODEL
        | {"tower": tower, "tower_options": MODEL["tower_options"] if tower == "dmr" else options}
        | changes
    )


def zero_shot(**changes: Any) -> dict[str, Any]:
    return {"zero_shot": MODEL["zero_shot"] | changes}


WITHOUT: dict[str, Any] = {"zero_shot": None}
OWN: dict[str, Any] = {"cold_loss_weight": 1.0, "new_user_tower": "own"}
BILINEAR: dict[str, Any] = {"attribute_crosses": {"form": "bilinear", "rank": 4}}
FM: dict[str, Any] = {"attribute_crosses": {"form": "fm"}}
FLAG = SCHEMA | {"columns": SCHEMA["columns"] | {"flag": {"group": "new_user"}}}
TWO = SCHEMA | {
    "columns": SCHEMA["columns"]
    | {
        "seen": {
            "group": "behaviour",
            "kind": "list",
            "table": "place",
            "column": "history",
            "max_length": 3,
        }
    }
    | {
        "place": {"group": "item", "column": "item"},
        "home": {"group": "attribute", "table": "place", "column": "age"},
    }
    | {"labels": {"group": "attribute", "kind": "list", "column": "tags", "max_length": 2}}
    | {"noon": {"group": "context", "kind": "numeric"}},
    "dim": 7,
}
CASES: dict[str, dict[str, Any]] = {
    **{
        f"mail-{tower}": {"model": model(tower)}
        for tower in ("dmr", "base_dnn", "deepfm", "wide_deep", "din")
    },
    **{
        tower: {"model": model(tower, **WITHOUT)}
        for tower in ("dmr", "base_dnn", "deepfm", "wide_deep", "din")
    },
    "virtual-items-dmr": {
        "model": model("dmr", virtual_items={}),
        "data": {"new_items": {"max_count": 18}},
        "schema": VECTORED,
    },
    "taught-items-din": {
        "model": model("din", virtual_items={"contrast": {"steps": 1}, "ranking_weight": 1.0}),
        "data": {"new_items": {"max_count": 18}},
        "schema": VECTORED,
    },
    "distilled-items-dmr": {
        "model": model("dmr", virtual_items={"mse_weight": 0.0, "distillation": {}}),
        "data": {"new_items": {"max_count": 18}},
    },
    "mean-items-dmr": {
        "model": model("dmr", virtual_items={"fill": "mean"}),
        "data": {"new_items": {"max_count": 18}},
    },
    "virtual-items-deepfm": {
        "model": model("deepfm", virtual_items={}),
        "schema": SCHEMA
        | {"columns": SCHEMA["columns"] | {"fresh": {"group": "new_item", "column": "bought"}}},
    },
    "mail-emblr": {"model": model("emblr"), "schema": SCHEMA | {"dim": 1}},
    **{
        f"tasks-{tower}": {"model": model(tower, multi_task={})}
        for tower in ("dmr", "base_dnn", "deepfm")
    },
    "tasks-own-dmr": {"model": model("dmr", multi_task={}, **OWN)},
    "tasks-own-dmr-negatives": {
        "model": model("dmr", multi_task={}, **OWN),
        "data": {"negatives_kept": 0.1},
    },
    "tasks-all": {
        "model": model("deepfm", tasks=TASKS, experts=PLE, **OWN),
        "schema": TASK_SCHEMA,
        "data": {"negatives_kept": 0.1},
    },
    "own-plain": {"model": model("base_dnn", **WITHOUT, **OWN)},
    "all_fields-dmr": {
        "model": model("dmr", **zero_shot(input_fields="all_fields", decoders="per_group"))
    },
    "pooled": {
        "model": model(
            "base_dnn",
            **zero_shot(
                reconstruction_target="pooled",
                pooling="concat",
                standardise_targets=True,
                virtual_length="predicted",
            ),
        )
    },
    "none": {"model": model("base_dnn", **zero_shot(variant="none"))},
    **{
        f"mixture-{tower}": {
            "model": model(
                tower,
                **zero_shot(
                    reconstruction_target="mixture",
                    num_prototypes=5,
                    virtual_length="predicted",
                    ranking_weight=1.0,
                ),
                virtual_flag=True,
                **changes,
            )
        }
        for tower, changes in (("din", {}), ("dmr", OWN))
    },
    **{
        f"mixed-{name}": {
            "model": model("dmr", **made, mixing_strength=2.0, virtual_flag=True),
            "data": {"new_user_max_behaviours": 3},
            "schema": TWO,
        }
        for name, made in (
            ("mail", zero_shot(virtual_length="predicted")),
            ("mean_fill", WITHOUT | {"baseline": {"name": "mean_fill"}}),
        )
    },
    **{
        name: {"model": model("base_dnn", **WITHOUT, baseline={"name": name})}
        for name in ("mean_fill", "llae", "cvar", "mwuf")
    },
    "meta_emb": {
        "model": model("base_dnn", **WITHOUT, baseline={"name": "meta_emb"}),
        "schema": WITH_ID,
    },
    "concat": {"model": model("dmr"), "schema": SCHEMA | {"actions": "concat"}},
    "ignore": {"model": model("din"), "schema": SCHEMA | {"actions": "ignore"}},
    "no-match": {"model": model("dmr", tower_options={"match_weight": 0.0, **DIMS})},
    "two-sequences": {"model": model("wide_deep"), "schema": TWO},
    "two-sequences-dmr": {"model": model("dmr"), "schema": TWO},
    "flag": {"model": model("dmr"), "schema": FLAG},
    "few": {"model": model("dmr"), "data": {"new_user_max_behaviours": 3}},
    "hashed": {
        "model": model("base_dnn"),
        "schema": SCHEMA
        | {"tables": {name: {"ids": "hash", "rows": 9} for name in ("item", "city")}},
    },
    "vectors-dmr": {"model": model("dmr"), "schema": VECTORED},
    "vectors-emblr": {"model": model("emblr"), "schema": VECTORED | {"dim": 1}},
    "vectors-meta_emb": {
        "model": model("base_dnn", **WITHOUT, baseline={"name": "meta_emb"}),
        "schema": WITH_ID | {"columns": WITH_ID["columns"] | VECTORS},
    },
    "crosses-tasks-own-base_dnn": {
        "model": model("base_dnn", tasks=TASKS, experts=PLE, **OWN, **BILINEAR),
        "schema": TASK_SCHEMA,
    },
    "crosses-mean_fill": {
        "model": model("base_dnn", **WITHOUT, baseline={"name": "mean_fill"}, **BILINEAR)
    },
    "crosses-mail-deepfm": {"model": model("deepfm", **FM)},
    "crosses-vectors-dmr": {
        "model": model("dmr", **BILINEAR),
        "schema": VECTORED | {"tables": VECTORED["tables"] | {"city": {"dim": 4}}},
    },
    "crosses-meta_emb": {
        "model": model("base_dnn", **WITHOUT, baseline={"name": "meta_emb"}, **FM),
        "schema": WITH_ID | {"tables": WITH_ID["tables"] | {"tags": {"dim": 12}}},
    },
    "crosses-users-own": {"model": model("tests.support.towers_of_users:MeanTower", **BILINEAR)},
    "users-own": {"model": model("tests.support.towers_of_users:MeanTower")},
    **{
        f"parts-{join}-{tower}": {"model": model(tower, **changes), "schema": with_parts(join)}
        for join, tower, changes in (
            ("concat", "dmr", {}),
            ("sum", "din", {}),
            ("product", "deepfm", WITHOUT),
        )
    },
    "parts-as-authors-dmr": {"model": model("dmr"), "schema": AS_AUTHORS},
    "concat-no-match": {
        "model": model("dmr", tower_options={"match_weight": 0.0, **DIMS}),
        "schema": SCHEMA | {"actions": "concat"},
    },
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train" / "a.parquet", 200, seed=1)
    write_rows(folder / "test" / "c.parquet", 300, seed=3)
    table = pq.read_table(folder / "train" / "a.parquet")
    pq.write_table(with_columns(table, unknown=False), folder / "train" / "a.parquet")
    table = pq.read_table(folder / "test" / "c.parquet")
    pq.write_table(with_columns(table, unknown=True), folder / "test" / "c.parquet")
    return folder


def with_columns(table: pa.Table, *, unknown: bool) -> pa.Table:
    """More columns, and in the test rows ids that training never saw and missing numbers."""
    rows = np.arange(len(table))
    table = table.append_column("flag", pa.array(rows % 4 == 0)).append_column(
        "noon", pa.array(np.where(rows % 5, rows / 9, 0))
    )
    table = with_vectors(table, seed=unknown)
    if not unknown:
        return table
    names = table.column_names
    table = table.set_column(
        names.index("item"),
        "item",
        pa.array(np.where(rows % 6, table["item"].to_numpy(), 1000 + rows)),
    )
    return table.set_column(
        names.index("income"), "income", pa.array(rows / 99, mask=rows % 8 == 0)
    )


@pytest.mark.parametrize("case", CASES)
def test_the_inference_model_scores_rows_as_the_trainer_does(
    root: Path, tmp_path: Path, case: str
) -> None:
    whole = UntrainedModel(root, tmp_path, **CASES[case])
    expected = whole.trainer_scores(300)
    requests = requests_of(whole.path, whole.config.schema_, range(300))
    assert expected["pctr"].std() > 0.003
    for num_rows in (1, 2, 17, 300):
        found = whole.inference_outputs(requests[:num_rows])
        for name, values in expected.items():
            relative = 0 if name.startswith("p") else 1e-5
            torch.testing.assert_close(found[name], values[:num_rows], rtol=relative, atol=1e-5)


def test_rows_with_derived_columns_score_as_the_trainer_does(tmp_path: Path) -> None:
    write_derived_rows(tmp_path / "train" / "a.parquet", derived_rows(200))
    write_derived_rows(tmp_path / "test" / "c.parquet", derived_rows(90, 150))
    whole = UntrainedModel(tmp_path, tmp_path, model=model("dmr"), schema=DERIVED)
    expected = whole.trainer_scores(90)
    found = whole.inference_outputs(requests_of(whole.path, whole.config.schema_, range(90)))
    assert expected["pctr"].std() > 0.003
    torch.testing.assert_close(found["pctr"], expected["pctr"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "case",
    [
        *("mail-dmr", "tasks-own-dmr", "all_fields-dmr", "two-sequences", "mail-emblr"),
        *("vectors-dmr", "users-own"),
    ],
)
def test_one_user_with_many_candidates_scores_as_rows_of_that_user(
    root: Path, tmp_path: Path, case: str
) -> None:
    whole = UntrainedModel(root, tmp_path, **CASES[case])
    rows = requests_of(whole.path, whole.config.schema_, range(40))
    candidates = [candidate for request in rows for candidate in request.candidates]
    shared = {"age", "tags"} if "two" in case else set()
    requests = [Request(rows[i].user, candidates[: 11 + i]) for i in (0, 1, 2)]
    if shared:  # a column that is the user's as well
        requests = [
            Request(r.user, [c | {k: r.user[k] for k in shared & c.keys()} for c in r.candidates])
            for r in requests
        ]
    pairs = [
        Request(request.user, [candidate])
        for request in requests
        for candidate in request.candidates
    ]
    together, apart = whole.inference_outputs(requests), whole.inference_outputs(pairs)
    for name in ("pctr", *(["pctcvr"] if "tasks" in case else [])):
        assert len(together[name]) == 11 + 12 + 13
        torch.testing.assert_close(together[name], apart[name], rtol=0, atol=1e-5)


def test_vectors_on_demand(root: Path, tmp_path: Path) -> None:
    whole = UntrainedModel(root, tmp_path, **CASES["mail-dmr"])
    requests = requests_of(whole.path, whole.config.schema_, range(30))
    found = whole.inference_outputs(requests)
    is_new = torch.tensor([not request.user["history"] for request in requests])
    assert 0 < is_new.sum() < 30
    assert (found["history.virtual"].abs().sum((1, 2)) > 0).equal(is_new)
    assert found["history.virtual"].shape == (30, 6, 8)
    item = whole.model.state_dict()["unpooled_tables.embeddings.item_output.weight"][
        torch.from_numpy(whole.encode(requests)["item"])
    ]
    assert found["history.item"].equal(item[:, :8])
    assert found["history.user"].shape == (30, 8)
    assert set(whole.inference_outputs(requests)) == {
        "pctr",
        "history.virtual",
        "history.user",
        "history.item",
    }
