"""Baselines in whole training steps and runs: parameters that their losses train, saved state."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from mail_torchrec.config import Config
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.source import Source
from mail_torchrec.optim.assignment import dense_parameters
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.train.assembly import assemble
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.model.test_wall import build, gradients
from tests.support.small_rows import (
    SCHEMA,
    WITH_ID,
    baseline_tree,
    config_tree,
    make_cold,
    write_rows,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train" / "a.parquet", 250, seed=1)
    write_rows(folder / "test" / "c.parquet", 120, seed=3)
    return folder


def whole(root: Path, name: str, **model: Any) -> tuple[Any, Any]:
    """An unsharded model after some steps, and one more batch, in which users have several rows."""
    sections = baseline_tree(name)
    sections["model"] |= model
    data = {"root": str(root), "group_by_user": True}
    assembled, batches = build(root, sharding={"enabled": False}, data=data, **sections)
    for _ in range(3):
        assembled.pipeline.progress(batches)
    assembled.model.zero_grad()
    return assembled.model, next(batches)


SWITCHES: list[dict[str, Any]] = [
    {},
    {"behaviour_dropout": 0.5},
    {"cold_loss_weight": 1.0},
    {"cold_loss_weight": 1.0, "new_user_tower": "own", "multi_task": {}},
    {"tower": "dmr", "tower_options": {"num_negatives": 20, "hidden_dims": [16, 8]}},
]  # fmt: skip


@pytest.mark.usefixtures("single_process")
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_the_meta_loss_trains_the_generator_and_the_rank_loss_all_else(
    root: Path, switches: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = whole(root, "meta_emb", **switches)
    state = deepcopy(model.state_dict())

    def after(*without: str) -> dict[str, torch.Tensor]:
        model.load_state_dict(
            state
        )  # a step moves the running statistics, with which the generator meets the tower
        model.zero_grad()
        torch.manual_seed(0)
        with monkeypatch.context() as patch:
            if "meta" in without:
                patch.setattr("mail_torchrec.model.mail.meta_emb_terms", lambda *_: {})
            if "rank" in without:
                patch.setattr("mail_torchrec.model.mail.ranking_terms", lambda *_: {})
            model(batch)[0].backward()
        return gradients(model)

    joint, ranking, meta = after(), after("meta"), after("rank")
    assert (
        {name for name in joint if "meta_emb" in name}
        == set(meta)
        == {"towers.meta_emb.layers.0.weight"}
    )
    assert set(ranking) == joint.keys() - meta.keys()
    assert all(torch.equal(joint[name], value) for name, value in (ranking | meta).items())
    assert all(value.abs().sum() > 0 for value in meta.values())


@pytest.mark.usefixtures("single_process")
def test_cold_users_own_ids_get_no_gradient_and_warm_users_do(root: Path) -> None:
    model, batch = whole(root, "meta_emb")
    model(batch)[0].backward()
    gradient = dict(model.named_parameters())["pooled_tables.embedding_bags.uid.weight"].grad
    assert gradient is not None
    ids_B = batch.pooled["uid"].values()
    assert 0 < batch.is_cold_B.sum() < len(batch)
    assert gradient[ids_B[batch.is_cold_B]].abs().max() == 0
    assert (gradient[ids_B[~batch.is_cold_B], : SCHEMA["dim"]].abs().sum(1) > 0).all()


@pytest.mark.usefixtures("single_process")
@pytest.mark.parametrize("kind", ["new", "old", "alone", "weightless"])
def test_with_or_without_pairs_the_meta_loss_and_its_gradients_are_finite(
    root: Path, kind: str
) -> None:
    model, batch = whole(root, "meta_emb")
    make_cold(batch, kind == "new")
    if kind == "alone":
        batch.users_B = torch.arange(len(batch))
    if kind == "weightless":
        batch.weights_B[1:] = 0
    loss, output = model(batch)
    loss.backward()
    assert (output.losses["L_meta"] == 0) == (kind != "old")
    grads = gradients(model)
    assert grads.keys() == {name for name, _ in model.named_parameters()}
    assert all(torch.isfinite(value).all() for value in grads.values())


@pytest.mark.usefixtures("single_process")
def test_the_meta_loss_is_of_rows_without_behaviours(root: Path) -> None:
    model, batch = whole(root, "meta_emb")
    for layer in (
        model.modules()
    ):  # with which the generator meets the tower, and which see the other rows' behaviours
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.momentum = 0.0
    before = model(batch)[1]
    values = batch.unpooled["history"].values()
    values[:] = values.roll(1)
    after = model(batch)[1]
    assert not torch.equal(before.logits_B, after.logits_B)
    assert torch.equal(before.losses["L_meta"], after.losses["L_meta"])


@pytest.mark.usefixtures("single_process")
def test_the_generator_has_the_optimizer_of_the_zero_shot_tower(root: Path) -> None:
    assembled, _ = build(root, **baseline_tree("meta_emb"))
    fused = assembled.model.fused_optimizer
    groups = dense_parameters(assembled.model, fused)  # type: ignore[arg-type]
    assert set(groups["zero_shot"]) == {
        name for name, _ in assembled.model.named_parameters() if "meta_emb" in name
    }
    assert groups["zero_shot"] and groups["ranking"] and not groups["tables"]


OWN_LOSSES = {"meta_emb": {"L_meta"}, "cvar": {"L_v", "L_d", "L_r"}, "mwuf": {"L_r"}}
_LOSSES_OF_BASELINES = {f"loss/{loss}" for losses in OWN_LOSSES.values() for loss in losses}


@pytest.mark.usefixtures("single_process")
@pytest.mark.parametrize("name", ["cvar", "mwuf"])
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_a_fillers_losses_train_it_and_the_rank_loss_all_else(
    root: Path, name: str, switches: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = whole(root, name, **switches)
    state = deepcopy(model.state_dict())

    def after(*without: str) -> dict[str, torch.Tensor]:
        model.load_state_dict(state)
        model.zero_grad()
        torch.manual_seed(0)
        with monkeypatch.context() as patch:
            if "own" in without:
                patch.setattr(model.towers, "_generator_terms", lambda *_: {})
            if "rank" in without:
                patch.setattr("mail_torchrec.model.mail.ranking_terms", lambda *_: {})
            model(batch)[0].backward()
        return gradients(model)

    joint, ranking, own = after(), after("own"), after("rank")
    fillers = {n for n, _ in model.named_parameters() if n.startswith("towers.filler.")}
    assert set(own) == fillers and set(ranking) == joint.keys() - fillers
    assert all(torch.equal(joint[n], value) for n, value in ranking.items())
    assert all(torch.equal(joint[n], own[n]) and own[n].abs().sum() > 0 for n in fillers)


@pytest.mark.parametrize(("name", "model", "dim"), [
    ("mean_fill", {}, 8),
    ("llae", {}, 8),
    ("llae", {"tower": "emblr", "tower_options": {}}, 1),
    ("meta_emb", {}, 8),
    ("meta_emb", {"tower": "dmr", "tower_options": {"num_negatives": 5, "hidden_dims": [8]}}, 8),
    ("llae", {"cold_loss_weight": 1.0, "new_user_tower": "own"}, 8),
    ("cvar", {}, 8),
    ("cvar", {"tower": "emblr", "tower_options": {}}, 1),
    ("mwuf", {"cold_loss_weight": 1.0, "new_user_tower": "own"}, 8),
], ids=str)  # fmt: skip
def test_a_run_is_evaluated_again_with_the_same_metrics(
    root: Path, tmp_path: Path, name: str, model: dict[str, Any], dim: int
) -> None:
    sections = baseline_tree(name, **({"solve_every": 3} if name == "llae" else {}))
    sections["model"] |= model
    sections["schema"] = sections["schema"] | {"dim": dim}
    data = {"root": str(root), "group_by_user": name == "meta_emb"}
    metrics = train(
        Config.model_validate(config_tree(root, data=data, **sections)), RunDir(tmp_path / "run")
    )
    assert evaluate_run(RunDir(tmp_path / "run"), None, []) == metrics
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert OWN_LOSSES.get(name, set()) == {
        key.removeprefix("loss/") for key in lines[0] if key in _LOSSES_OF_BASELINES
    }
    [counts] = [line["counts"] for line in lines if "epoch" in line]
    assert (
        (250 / counts["distinct/user"] > 2) if name == "meta_emb" else "distinct/user" not in counts
    )
    none = dict(sections["model"], baseline=None)
    without = train(
        Config.model_validate(config_tree(root, data=data, **sections | {"model": none})),
        RunDir(tmp_path / "none"),
    )
    assert without["new"]["auc"] != metrics["new"]["auc"]


@pytest.mark.usefixtures("single_process")
def test_a_tower_with_first_order_weights_is_refused(root: Path) -> None:
    sections = baseline_tree("meta_emb")
    sections["model"] |= {"tower": "wide_deep"}
    config = Config.model_validate(config_tree(root, **sections))
    encoders = fit_encoders(
        Source(str(root / "train"), config.schema_), config.schema_, config.data.cold_start
    )
    with pytest.raises(
        ValueError,
        match=(
            "this tower has a weight of each id beside it, which nothing makes; choose a tower "
            "without"
        ),
    ):
        assemble(config, encoders, torch.device("cpu"))


@pytest.mark.usefixtures("single_process")
def test_a_schema_without_the_id_is_refused_where_the_model_is_built(root: Path) -> None:
    with pytest.raises(ValueError, match="meta_emb needs the user's id as an attribute"):
        build(root, **baseline_tree("meta_emb") | {"schema": SCHEMA})
    build(root, **baseline_tree("meta_emb", field="city") | {"schema": WITH_ID})
