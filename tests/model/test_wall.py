"""The wall between the two optimizers, stated as properties of whole training steps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mail_torchrec.config import Config
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.source import Source
from mail_torchrec.optim.assignment import dense_parameters
from mail_torchrec.train.assembly import AssembledModel, assemble
from mail_torchrec.train.data_splits import negative_samplers
from tests.support.small_rows import baseline_tree, config_tree, find_sets, make_cold

pytestmark = pytest.mark.usefixtures("single_process")
CPU = torch.device("cpu")


def build(small_root: Path, **sections: dict[str, Any]) -> tuple[AssembledModel, Any]:
    """A model and an endless supply of its batches."""
    config = Config.model_validate(config_tree(small_root, **sections))
    source = Source(config.data.path("train"), config.schema_)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    assembled = assemble(config, encoders, CPU)
    reader = Reader(
        source, config.schema_, encoders, assembled.feature_tables, config.data,
        rank_info=RankInfo(), batch_size=32, shuffle=True, seed=1,
        samplers=negative_samplers(config, encoders, assembled.feature_tables),
    )  # fmt: skip

    def endless() -> Iterator[Any]:
        for epoch in range(1_000):
            reader.set_epoch(epoch)
            yield from reader

    return assembled, endless()


def with_head(small_root: Path, multi_task: dict[str, Any] | None) -> dict[str, Any]:
    return config_tree(small_root)["model"] | {"multi_task": multi_task}


def tables_and_state(assembled: AssembledModel) -> dict[str, torch.Tensor]:
    """Copies every table and the fused optimizer's state."""
    weights = {
        key: value for key, value in assembled.model.state_dict().items() if "tables." in key
    }
    fused = assembled.model.fused_optimizer
    state = fused.state_dict()["state"]  # type: ignore[union-attr,operator]
    flat = weights | {
        f"{key}/{name}": value for key, part in state.items() for name, value in part.items()
    }
    return {
        key: (value.local_tensor() if hasattr(value, "local_tensor") else value).clone()
        for key, value in flat.items()
    }


MODEL: dict[str, Any] = config_tree(Path())["model"]
MAIL: dict[str, Any] = {}
HEAD: dict[str, Any] = {"model": config_tree(Path())["model"] | {"multi_task": {}}}
TAUGHT: dict[str, Any] = {
    "model": MODEL
    | {"virtual_flag": True}
    | {
        "zero_shot": MODEL["zero_shot"]
        | {"ranking_weight": 2.0, "virtual_length": "predicted"}
        | {"reconstruction_target": "mixture"}
    }
}
META: dict[str, Any] = baseline_tree("meta_emb")
CONTRASTED: dict[str, Any] = {
    "model": MODEL
    | {"zero_shot": MODEL["zero_shot"] | {"alignment": "contrastive", "temperature": 0.2}}
}


@pytest.mark.parametrize(
    ("optimizer", "method", "losses"),
    [
        ("adagrad", MAIL, {"L_a", "L_v", "L_d"}),
        ("rowwise_adagrad", MAIL, {"L_a", "L_v", "L_d"}),
        ("adagrad", HEAD, {"L_a", "L_v", "L_d"}),
        ("adagrad", TAUGHT, {"L_a", "L_v", "L_d", "L_r"}),
        ("adagrad", META, {"L_meta"}),
        ("adagrad", CONTRASTED, {"L_a", "L_v", "L_d"}),
        ("adagrad", baseline_tree("cvar"), {"L_v", "L_d", "L_r"}),
        ("adagrad", baseline_tree("mwuf"), {"L_r"}),
    ],
    ids=[
        *("mail-adagrad", "mail-rowwise_adagrad", "multi_task", "ranking_weight", "meta_emb"),
        *("contrastive", "cvar", "mwuf"),
    ],
)
def test_without_the_rank_loss_tables_and_their_state_keep_every_bit(
    small_root: Path,
    optimizer: str,
    method: dict[str, Any],
    losses: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sections = {"train": {"tables": {"name": optimizer}}} | method
    first, batches = build(small_root, **sections)
    for _ in range(5):
        first.pipeline.progress(batches)
    # A new pipeline: DistributedDataParallel learns in its first step that the ranking tower gets
    # no gradient.
    monkeypatch.setattr("mail_torchrec.model.mail.ranking_terms", lambda *_: {})
    second, batches = build(small_root, **sections)
    second.model.load_state_dict(first.model.state_dict())
    saved = first.model.fused_optimizer.state_dict()  # type: ignore[union-attr,operator]
    second.model.fused_optimizer.load_state_dict(saved)  # type: ignore[union-attr,operator]
    before, dense = (
        tables_and_state(second),
        {
            name: value.clone()
            for name, value in second.model.named_parameters()
            if any(part in name for part in ("zero_shot", "meta_emb", "filler"))
        },
    )
    for _ in range(20):
        output = second.pipeline.progress(batches)
    assert set(output.losses) == losses
    after = tables_and_state(second)
    assert before.keys() == after.keys()
    assert any("momentum" in key for key in after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    moved = [
        name
        for name, value in second.model.named_parameters()
        if name in dense and not torch.equal(value, dense[name])
    ]
    assert len(moved) == len(dense) > 0


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def whole(small_root: Path, **model: Any) -> tuple[Any, Any]:
    """An unsharded model, whose tables have gradients, after some steps, and one more batch."""
    assembled, batches = build(
        small_root, sharding={"enabled": False}, model=config_tree(small_root)["model"] | model
    )
    for _ in range(3):
        assembled.pipeline.progress(batches)
    assembled.model.zero_grad()
    return assembled.model, next(batches)


@pytest.mark.parametrize(
    "changes",
    [
        {"multi_task": None},
        {"multi_task": {}},
        {"zero_shot": MODEL["zero_shot"] | {"ranking_weight": 3.0}},
        {"tower": "base_dnn", "tower_options": {"dropout": 0.0}, **TAUGHT["model"]},
        CONTRASTED["model"],
    ],
    ids=["mail", "multi_task", "ranking_weight", "mixture", "contrastive"],
)
def test_zero_shot_losses_leave_the_ranking_gradients_as_they_are(
    small_root: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = whole(small_root, **changes)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model(batch)[0].backward()
    joint = gradients(model)
    model.zero_grad()
    model.load_state_dict(state)  # prototypes have learnt from the batch
    monkeypatch.setattr(model.towers, "_zero_shot_losses", lambda *_: None)  # the fill stays
    monkeypatch.setattr(model.towers, "_generator_terms", lambda *_: {})
    model(batch)[0].backward()
    alone = gradients(model)
    assert {name for name in joint if "zero_shot" not in name} == set(alone)
    assert all(torch.equal(joint[name], alone[name]) for name in alone)
    assert any("tables." in name for name in alone)
    assert all(
        joint[name].abs().sum() > 0 for name in joint if "zero_shot" in name and "weight" in name
    )


@pytest.mark.parametrize("multi_task", [None, {}])
def test_one_backward_of_the_sum_equals_two_separate_ones(
    small_root: Path, multi_task: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = whole(small_root, multi_task=multi_task)
    model(batch)[0].backward()
    joint = gradients(model)
    model.zero_grad()
    with monkeypatch.context() as patch:
        patch.setattr(model.towers, "_zero_shot_losses", lambda *_: None)
        model(batch)[0].backward()
    with monkeypatch.context() as patch:
        patch.setattr("mail_torchrec.model.mail.ranking_terms", lambda *_: {})
        model(batch)[0].backward()
    separate = gradients(model)
    assert joint.keys() == separate.keys()
    assert all(torch.equal(joint[name], separate[name]) for name in joint)


def test_the_ranking_loss_of_virtual_behaviours_is_that_of_scoring_every_row_as_cold(
    small_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero_shot = MODEL["zero_shot"] | {"ranking_weight": 3.0}
    model, batch = whole(small_root, zero_shot=zero_shot, cold_loss_weight=1.0)
    batch.weights_B[::3] = 2.0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss, output = model(batch)
    # Batch norm's statistics are those behind the step's other passes.
    after = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr(model.towers, "_generator_terms", lambda *_: {})
    model.load_state_dict(before)
    without = model(batch)[0]
    # An independent road: all rows cold, in evaluation mode, and the cross-entropy in float64.
    model.load_state_dict(after)
    make_cold(batch, True)
    logits = model.eval()(batch)[1].logits_B.double()
    labels, weights = batch.labels_B.double(), batch.weights_B.double()
    entropies = torch.log1p(torch.exp(-(2 * labels - 1) * logits))
    expected = ((entropies * weights).sum() / weights.sum()).item()
    assert output.losses["L_r"].item() == pytest.approx(expected, rel=1e-5)
    assert (loss - without).item() == pytest.approx(3 * expected, rel=1e-4)


def test_the_ranking_loss_of_virtual_behaviours_lowers_itself(small_root: Path) -> None:
    """It reaches the zero-shot tower: without other losses its own steps make it smaller."""
    zero_shot = MODEL["zero_shot"] | {"ranking_weight": 1.0, "variant": "single"}
    model, batch = whole(small_root, zero_shot=zero_shot)
    generator = [v for name, v in model.named_parameters() if "zero_shot" in name]
    others = {n: v.clone() for n, v in model.named_parameters() if "zero_shot" not in n}
    optimizer = torch.optim.SGD(generator, 0.3)
    found = []
    for _ in range(8):
        model.zero_grad()
        terms = model.towers._generator_terms(*_step_of(model.towers, batch, model))
        loss = terms["L_r"].losses_N.mean()
        found.append(loss.item())
        loss.backward()
        assert all(v.grad is None for n, v in model.named_parameters() if n in others)
        optimizer.step()
    assert found[-1] < found[0] - 1e-4


def _step_of(towers: Any, batch: Any, model: Any) -> tuple[Any, ...]:
    step = towers._step_inputs(
        batch, model.pooled_tables(batch.pooled), model.unpooled_tables(batch.unpooled)
    )
    return step, batch, towers.zero_shot_fields(step.users)


@pytest.mark.parametrize("multi_task", [None, {}])
@pytest.mark.parametrize("sharded", [True, False])
def test_the_optimizers_parameters_are_disjoint_and_complete(
    small_root: Path, sharded: bool, multi_task: dict[str, Any] | None
) -> None:
    assembled, _ = build(
        small_root, sharding={"enabled": sharded}, model=with_head(small_root, multi_task)
    )
    fused = assembled.model.fused_optimizer if sharded else None
    groups = dense_parameters(assembled.model, fused)  # type: ignore[arg-type]
    names = [name for group in groups.values() for name in group]
    tables = list(fused.params) if fused else []  # type: ignore[union-attr,arg-type]
    assert sorted(names + tables) == sorted(name for name, _ in assembled.model.named_parameters())
    assert (
        all("zero_shot" in name for name in groups["zero_shot"])
        and groups["zero_shot"]
        and groups["ranking"]
    )
    assert all("tables." in name for name in [*tables, *groups["tables"]])
    assert any("multi_task" in name for name in groups["ranking"]) is (multi_task is not None)
    assert bool(groups["tables"]) is not sharded
    owned = [
        id(parameter)
        for _, optimizer in assembled.optimizer._optims
        for parameter in optimizer.params.values()
    ]  # type: ignore[attr-defined]
    assert len(owned) == len(set(owned)) == len(names) + len(tables)


@pytest.mark.parametrize("multi_task", [None, {}])
@pytest.mark.parametrize("kind", ["new", "old"])
def test_a_batch_of_one_kind_of_rows_is_finite_and_gives_every_parameter_a_gradient(
    small_root: Path, kind: str, multi_task: dict[str, Any] | None
) -> None:
    model, batch = whole(small_root, multi_task=multi_task)
    make_cold(batch, kind == "new")
    loss, output = model(batch)
    loss.backward()
    assert all(torch.isfinite(value) for value in output.losses.values())
    grads = gradients(model)
    assert grads.keys() == {name for name, _ in model.named_parameters()}
    assert all(torch.isfinite(value).all() for value in grads.values())
    assert (output.losses["L_a"] == 0) == (kind == "new")


def test_rows_of_weight_0_count_in_no_loss(small_root: Path) -> None:
    model, batch = whole(
        small_root,
        tower="tests.support.towers_of_users:RepresentingTower",
        tower_options={},
        multi_task={},
    )
    half = len(batch) // 2
    batch.weights_B[half:] = 0
    find_sets(batch)
    expected = model(batch)[1].losses
    batch.labels_B[half:] = 1 - batch.labels_B[half:]
    batch.conversions_B[half:] = 1 - batch.conversions_B[half:]
    batch.numeric_BN[half:] += 3
    for name, value in model(batch)[1].losses.items():
        assert torch.equal(value, expected[name]), name


def test_the_head_shares_click_and_conversion_losses_by_its_weight(small_root: Path) -> None:
    """L_rt stays the clicks' cross-entropy, so that its curves compare; the sum is weighted."""
    model, batch = whole(
        small_root,
        tower="base_dnn",
        tower_options={"dropout": 0.0},
        zero_shot=None,
        multi_task={"click_weight": 0.6},
    )
    loss, output = model(batch)
    ctr, cvr = output.logits_B.double().sigmoid(), output.tasks["cvr"].double().sigmoid()
    entropies = [
        -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
        for labels, p in ((batch.labels_B, ctr), (batch.conversions_B, ctr * cvr))
    ]
    assert [output.losses[name].item() for name in ("L_rt", "L_ctcvr")] == pytest.approx(
        [x.item() for x in entropies], rel=1e-5
    )
    assert loss.item() == pytest.approx((0.6 * entropies[0] + 0.4 * entropies[1]).item(), rel=1e-5)
    assert 0 < batch.conversions_B.sum() < batch.labels_B.sum()
