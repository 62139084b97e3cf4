"""Whole training steps with clipping, decay, accumulation, averages and frozen parts.

Each is compared with the same thing written by hand on the model of another assembly.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mail_torchrec.config import Config
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.optim.assignment import dense_parameters
from mail_torchrec.train.assembly import AssembledModel
from mail_torchrec.train.state import optimizer_state
from tests.model.test_wall import build, tables_and_state
from tests.support.small_rows import config_tree

pytestmark = pytest.mark.usefixtures("single_process")
BOTH = pytest.mark.parametrize("sharded", [True, False])


def assembled_with(
    root: Path, sharded: bool, **train: Any
) -> tuple[AssembledModel, Iterator[Batch]]:
    options = config_tree(root)["train"] | train
    return build(root, sharding={"enabled": sharded}, train=options)


def weights(assembled: AssembledModel) -> dict[str, torch.Tensor]:
    """Copies all weights and buffers."""
    return {
        key: (value.local_tensor() if hasattr(value, "local_tensor") else value).clone()
        for key, value in assembled.model.state_dict().items()
    }


def dense(assembled: AssembledModel) -> dict[str, dict[str, torch.nn.Parameter]]:
    fused = getattr(assembled.model, "fused_optimizer", None)
    groups = dense_parameters(assembled.model, fused)
    return {name: groups[name] for name in ("ranking", "zero_shot")}


def run_by_hand(
    assembled: AssembledModel,
    batches: Iterator[Batch],
    num_steps: int,
    *,
    clip: float | None = None,
    every: int = 1,
    factors: list[float] | None = None,
    decay: float = 0.0,
) -> None:
    """Trains by plain torch optimizers and loops; tables by their own optimizer."""
    groups = {name: list(values.values()) for name, values in dense(assembled).items()}
    adams = {name: torch.optim.Adam(values, lr=1e-3) for name, values in groups.items()}
    [tables] = [group.optimizer for group in assembled.optimizer if not group.is_dense]
    for step in range(num_steps):
        factor = factors[step] if factors else 1.0
        tables.zero_grad()
        loss, _ = assembled.model(next(batches))
        loss.backward()
        tables.step()
        if (step + 1) % every:
            continue
        for name, values in groups.items():
            values = [value for value in values if value.grad is not None]
            for value in values:
                value.grad = value.grad / every
            norm = float(sum(value.grad.double().square().sum() for value in values)) ** 0.5
            if clip is not None and norm > clip:
                for value in values:
                    value.grad *= clip / norm
            adams[name].param_groups[0]["lr"] = 1e-3 * factor
            with torch.no_grad():
                for value in values:
                    if value.dim() > 1:
                        value *= 1 - 1e-3 * factor * decay
            adams[name].step()
            adams[name].zero_grad()


def close(found: AssembledModel, expected: AssembledModel, atol: float = 2e-6) -> None:
    for key, value in weights(expected).items():
        if not key.endswith("scores.g.4.bias"):  # of a softmax: its gradient is rounding alone
            torch.testing.assert_close(weights(found)[key], value, atol=atol, rtol=1e-4, msg=key)


@BOTH
@pytest.mark.parametrize(
    ("settings", "by_hand"),
    [
        ({"clip_norm": 0.05}, {"clip": 0.05}),
        ({"weight_decay": 30.0}, {"decay": 30.0}),
        ({"accumulate": 3}, {"every": 3}),
        ({"accumulate": 2, "clip_norm": 0.05}, {"every": 2, "clip": 0.05}),
        (
            {"schedule": {"name": "step", "every": 2, "gamma": 0.25, "warmup_steps": 2}},
            {"factors": [0.5, 1.0, 1.0, 1.0, 0.25, 0.25]},
        ),
    ],
    ids=str,
)
def test_dense_parameters_are_trained_as_by_hand(
    small_root: Path, sharded: bool, settings: dict[str, Any], by_hand: dict[str, Any]
) -> None:
    """Clipping has to bite, or it would not be tested: the norms are in the record."""
    found, batches = assembled_with(small_root, sharded, **settings)
    for _ in range(6):
        found.pipeline.progress(batches)
    expected, batches = assembled_with(small_root, sharded)
    run_by_hand(expected, batches, 6, **by_hand)
    close(found, expected)
    norms = [v for key, v in found.optimizer.record().items() if key.startswith("gradient_norm/")]
    assert len(norms) == (2 if "clip" in by_hand else 0)
    assert all(norm > 0.05 for norm in norms)


@BOTH
def test_the_tables_have_a_schedule_of_their_own(small_root: Path, sharded: bool) -> None:
    """Of SGD: two steps of half the rate and then of the whole one, against one configured so."""
    tables = {"name": "sgd", "learning_rate": 0.5}
    found, batches = assembled_with(
        small_root, sharded, tables=tables | {"schedule": {"warmup_steps": 2}}
    )
    expected, others = assembled_with(small_root, sharded, tables=tables)
    [group] = [group for group in expected.optimizer if not group.is_dense]
    for rate in (0.25, 0.5):
        found.pipeline.progress(batches)
        for part in group.optimizer.param_groups:
            part["initial_lr"] = rate
        expected.pipeline.progress(others)
        assert found.optimizer.record() == expected.optimizer.record() | {"lr/tables": rate}
    for key, value in weights(expected).items():
        assert torch.equal(weights(found)[key], value), key


@BOTH
def test_averages_are_the_closed_form_and_training_weights_come_back(
    small_root: Path, sharded: bool
) -> None:
    found, batches = assembled_with(small_root, sharded, ema={"decay": 0.3}, accumulate=2)
    plain, others = assembled_with(small_root, sharded, accumulate=2)
    averages = found.optimizer.averages
    assert averages is not None
    expected = {key: value.double() for key, value in weights(found).items()}
    for step in range(1, 7):
        found.pipeline.progress(batches)
        plain.pipeline.progress(others)
        if step % 2 == 0:
            decay = min(0.3, (step // 2 + 1) / (step // 2 + 10))
            for key, value in weights(found).items():
                expected[key] = decay * expected[key] + (1 - decay) * value.double()
    statistics = {key for key in weights(found) if "running_" in key}
    trained = {name for group in dense(found).values() for name in group}
    assert averages.averages.keys() == statistics | trained and statistics
    for key, value in averages.averages.items():
        torch.testing.assert_close(value.double(), expected[key], atol=1e-6, rtol=1e-5)
    before = weights(found)
    with found.evaluating():
        assert not found.model.training
        within = weights(found)
        assert all(torch.equal(within[key], value) for key, value in averages.averages.items())
        rest = within.keys() - averages.averages.keys()
        assert all(torch.equal(within[key], before[key]) for key in rest)
    assert found.model.training
    after, unaveraged = weights(found), weights(plain)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(torch.equal(after[key], value) for key, value in unaveraged.items())


FREEZES = {
    "ranking": ("towers.ranking.",),
    "zero_shot": ("towers.zero_shot.",),
    "tables": ("pooled_tables.", "unpooled_tables."),
    "tables.age": ("pooled_tables.embedding_bags.age.",),
    "tables.item": (
        "pooled_tables.embedding_bags.item.",
        "unpooled_tables.embeddings.item.",
        "unpooled_tables.embeddings.item_output.",
    ),
}


@BOTH
@pytest.mark.parametrize("optimizer", ["adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize(
    "freeze",
    [
        ["ranking"],
        ["zero_shot"],
        ["tables"],
        ["tables.age", "tables.item"],
        ["ranking", "zero_shot"],
    ],
    ids=str,
)
def test_what_is_frozen_keeps_every_bit_and_all_else_is_trained(
    small_root: Path, sharded: bool, optimizer: str, freeze: list[str]
) -> None:
    if not sharded and optimizer == "rowwise_adagrad":
        pytest.skip("unsharded tables have no row-wise Adagrad")
    settings = {"tables": {"name": optimizer}, "weight_decay": 0.1, "freeze": freeze}
    zero_shot = config_tree(small_root)["model"]["zero_shot"] | {"standardise_targets": True}
    model = config_tree(small_root)["model"] | {"zero_shot": zero_shot}
    train = config_tree(small_root)["train"] | settings
    found, batches = build(small_root, sharding={"enabled": sharded}, train=train, model=model)

    def everything() -> dict[str, torch.Tensor]:
        state = {
            key.replace(".fused.", ".tables."): value.local_tensor().clone()
            if hasattr(value, "local_tensor")
            else value.clone()
            for key, value in optimizer_state(found).items()
        }
        return weights(found) | state

    before = everything()
    for _ in range(3):
        found.pipeline.progress(batches)
    with found.evaluating():
        pass
    found.pipeline.progress(batches)
    assert found.pipeline.is_prefetching()
    prefixes = [prefix for name in freeze for prefix in FREEZES[name]]
    changed = {key for key, value in everything().items() if not torch.equal(before[key], value)}
    frozen = {key for key in before if any(prefix in key for prefix in prefixes)}
    assert frozen and not changed & frozen
    for part in ("towers.ranking.", "towers.zero_shot.", "pooled_tables.", "unpooled_tables."):
        own = {key for key in before if part in key and key.endswith("weight")} - frozen
        assert part in prefixes or own & changed, part


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (["tables.hostory"], r"should name parts of this model \(ranking, zero_shot, tables, "
         r"tables\.age, .*\), received tables\.hostory"),
        (["ranking", "zero_shot", "tables"], r"should leave something to train"),
    ],
)  # fmt: skip
def test_names_that_cannot_be_frozen_are_refused(freeze: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate(config_tree(Path("rows"), train={"freeze": freeze}))
    tree = config_tree(Path("rows"), train={"freeze": ["zero_shot"]})
    tree["model"]["zero_shot"] = None
    with pytest.raises(ValueError, match=r"parts of this model \(ranking, tables, tables\.age"):
        Config.model_validate(tree)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
def test_a_weight_decay_that_fbgemm_would_ignore_is_refused(
    small_root: Path, optimizer: str
) -> None:
    tables = {"name": optimizer, "weight_decay": 0.1}
    with pytest.raises(ValueError, match=rf"FBGEMM's '{optimizer}' on CPU has none"):
        assembled_with(small_root, True, tables=tables)
    if optimizer != "rowwise_adagrad":
        with pytest.raises(ValueError, match=r"with train\.tables\.name=adam alone"):
            assembled_with(small_root, False, tables=tables)


def test_gradients_of_sharded_tables_are_clipped_by_value(small_root: Path) -> None:
    """By so much that each looked-up vector's gradient has one absolute value: SGD's steps are
    multiples of it."""
    tables = {"name": "sgd", "learning_rate": 0.5}
    plain, batches = assembled_with(small_root, True, tables=tables)
    before = tables_and_state(plain)
    plain.pipeline.progress(batches)
    assert any(
        (v - before[k]).abs().max() > 0.1 * 0.5e-3 for k, v in tables_and_state(plain).items()
    )
    found, batches = assembled_with(small_root, True, tables=tables | {"max_gradient": 1e-9})
    found.pipeline.progress(batches)
    for key, value in tables_and_state(found).items():
        assert (value - before[key]).abs().max() < 1e-6, key
    with pytest.raises(ValueError, match=r"max_gradient is a part of FBGEMM's fused optimizers"):
        assembled_with(small_root, False, tables=tables | {"max_gradient": 0.1})


def test_a_run_shorter_than_one_update_is_refused(small_root: Path) -> None:
    assembled, _ = assembled_with(small_root, False, accumulate=20)
    assembled.optimizer.plan(20)
    with pytest.raises(ValueError, match=r"at most the steps of the run, 19, received 20"):
        assembled.optimizer.plan(19)
