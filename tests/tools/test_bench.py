"""The bench: its reference equals the trainer, torch confirms its counts, its parts add up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from mail_torchrec.data.encoders import Encoders
from mail_torchrec.train.assembly import assemble, config_feature_tables
from mail_torchrec.utils.spans import span
from tools.bench import main
from tools.benchmark.fuxictr.comparison import check_source
from tools.benchmark.fuxictr.rows import write_fuxictr_rows
from tools.benchmark.random_rows import RowSettings, write_rows
from tools.benchmark.reference.model import Reference
from tools.benchmark.reference.padded_batch import PaddedBatch, pad_batch
from tools.benchmark.scaling import scaling_exponent
from tools.benchmark.step_breakdown import measure_breakdown
from tools.benchmark.step_cost import step_cost
from tools.benchmark.subprocess_trainer import SubprocessTrainer
from tools.benchmark.targets import check_targets
from tools.benchmark.trainers import TimedInput, fit_training_encoders, load_data
from tools.benchmark.workload import (
    DMR,
    GROUPED,
    SMALL,
    UNGROUPED,
    Variant,
    Workload,
    base_config_tree,
    default_variants,
    in_bfloat16,
)

ROWS = RowSettings(users=60, rows_per_user=3, test_users=20, items=50)
# Prefix of the reference's parameters for each of the trainer's; the first that fits a name counts.
NAMES = {
    "pooled_tables.embedding_bags.": "tables.table_",
    "unpooled_tables.embeddings.item_output.": "output_table.",
    "unpooled_tables.embeddings.": "tables.table_",
    "towers.ranking.user_to_item.0.scores.": "dmr.user_scores.",
    "towers.ranking.user_to_item.0.user.": "dmr.user.",
    "towers.ranking.item_to_item.0.scores.": "dmr.item_scores.",
    "towers.zero_shot.attribute_attention.": "zero_shot.pool_a.",
    "towers.zero_shot.behaviour_attention.": "zero_shot.pool_v.",
    "towers.zero_shot.attribute_encoder.": "zero_shot.e1.",
    "towers.zero_shot.behaviour_encoder.": "zero_shot.e2.",
    "towers.zero_shot.field_decoders.0.": "zero_shot.d1.",
    "towers.zero_shot.behaviour_decoder.": "zero_shot.d2.",
    "towers.ranking.mlp.0.": "dmr.norm.",
} | {f"towers.ranking.mlp.{layer}.": f"dmr.mlp.{layer - 1}." for layer in range(1, 8)}


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    folder = tmp_path_factory.mktemp("bench")
    made = Workload.write(
        folder,
        base_config_tree(max_length=6),
        *SMALL,
        "model.tower_options.num_negatives=20",
        "model.zero_shot.dropout=0",
    )
    write_rows(folder, made.config().schema_, ROWS)
    return made


@pytest.fixture(scope="module")
def encoders(workload: Workload) -> Encoders:
    return fit_training_encoders(workload.config())


def first_rows(workload: Workload, encoders: Encoders) -> PaddedBatch:
    batch = next(TimedInput(load_data(workload.config(), encoders, training=True)))
    assert 0 < batch.is_cold_B.sum() < len(batch)
    return pad_batch(batch, workload.config().schema_, config_feature_tables(workload.config()))


def renamed(name: str) -> str:
    [old, new] = next(pair for pair in NAMES.items() if name.startswith(pair[0]))
    return new + name.removeprefix(old)


def test_losses_and_gradients_of_the_reference_are_the_trainers(
    workload: Workload, encoders: Encoders
) -> None:
    config = workload.config(Variant("whole", ("sharding.enabled=false",)))
    trainer = assemble(config, encoders, torch.device("cpu")).model.train()
    reference = Reference(config, encoders.num_rows).train()
    own = dict(reference.named_parameters())
    with torch.no_grad():
        for name, parameter in trainer.named_parameters():
            mine = own[renamed(name)]
            mine.copy_(
                parameter[tuple(slice(size) for size in mine.shape)]
            )  # tables are stored a little larger
    batch = next(TimedInput(load_data(config, encoders, training=True)))
    loss, outputs = trainer(batch)
    loss.backward()
    rows = pad_batch(batch, config.schema_, config_feature_tables(config))
    _, losses = reference(rows)
    reference.total_loss(losses).backward()
    assert losses.keys() == outputs.losses.keys() == {"L_rt", "L_match", "L_a", "L_v", "L_d"}
    for name, value in outputs.losses.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name
    # Of scores in a softmax the bias has no gradient but rounding, so what is small is measured by
    # what is large.
    largest = max(
        float(parameter.grad.abs().max())
        for parameter in reference.parameters()
        if parameter.grad is not None
    )
    for name, parameter in trainer.named_parameters():
        mine = own[renamed(name)].grad
        assert mine is not None and (mine.abs().sum() > 0 or ".scores." in name), name
        expected = parameter.grad[tuple(slice(size) for size in mine.shape)]
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("variant", [UNGROUPED, DMR])
def test_arithmetic_by_formula_is_what_torch_counts(
    workload: Workload, encoders: Encoders, variant: Variant
) -> None:
    config, rows = workload.config(variant), first_rows(workload, encoders)
    reference, counter = (
        Reference(config, encoders.num_rows).train(),
        FlopCounterMode(display=False),
    )
    with counter:
        _, losses = reference(rows)
        reference.total_loss(losses).backward()
    num_new = int(rows.is_cold_B.sum())
    counted = step_cost(
        config, num_old=len(rows.labels_B) - num_new, num_new=num_new, mean_length=3.0
    )
    assert counted.total_flops == counter.get_total_flops()


def test_the_parts_of_a_step_add_up_and_each_moment_counts_for_the_innermost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    class Trainer:
        name, input = "some", None

        def step(self) -> int:
            with span("ranking"):
                now[0] += 1
                with span("lookup"):
                    now[0] += 3
                now[0] += 1
            now[0] += 5
            return 1

    trainer: Any = Trainer()
    parts = measure_breakdown(trainer, 2, torch.device("cpu"))
    assert {part: seconds for part, seconds in parts.items() if seconds} == {
        "lookup": 3,
        "ranking": 2,
        "other": 5,
    }


def test_users_come_back_with_their_history(workload: Workload) -> None:
    rows = pq.read_table(workload.path.parent / "train").to_pylist()
    histories: dict[int, set[Any]] = {}
    for row in rows:
        assert len(row["history"]) == len(row["actions"]) <= 6
        histories.setdefault(row["user"], set()).add((*row["history"], row["attribute_1"]))
    assert (
        len(rows) == 180
        and len(histories) == 60
        and all(len(found) == 1 for found in histories.values())
    )


def test_a_variant_reads_as_it_is_written() -> None:
    assert Variant.parse("wide:model.x=[1, 2],train.y=3") == Variant(
        "wide", ("model.x=[1, 2]", "train.y=3")
    )
    for text in (":train.y=3", "wide:train.y"):
        with pytest.raises(ValueError, match=r"--variant should read NAME:section\.key=value"):
            Variant.parse(text)


def test_fuxictr_gets_the_same_rows(workload: Workload, encoders: Encoders, tmp_path: Path) -> None:
    config = workload.config(GROUPED)
    assert write_fuxictr_rows(tmp_path, config, encoders, threads=1) == 180
    found, spec = (
        np.load(tmp_path / "train.npz"),
        json.loads((tmp_path / "feature_map.json").read_text()),
    )
    names = [next(iter(feature)) for feature in spec["features"]]
    assert names[0] == "item" and "actions" not in names and {*names, "label"} == set(found.files)
    table = pq.read_table(workload.path.parent / "train").to_pydict()
    assert found["label"].tolist() == table["clicked"]
    items = dict(zip(table["item"], found["item"].tolist(), strict=True))
    known = [
        (row, history)
        for row, history in enumerate(table["history"])
        if found["history"][row].any() and set(history) <= set(items)
    ]
    assert known
    for row, history in known:
        assert found["history"][row].tolist() == [0] * (6 - len(history)) + [
            items[item] for item in history
        ]


def test_fuxictr_without_its_source_is_told_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"checkout of its repository at version 2\.3\.10 with model_zoo/DMR/src/DMR\.py",
    ):
        check_source(tmp_path)


def speed(*rates: float) -> dict[str, Any]:
    return {"rows_per_second": list(rates), "seconds_per_step": 1.0, "input_share": 0.01}


def test_targets_are_compared_with_medians_of_turns() -> None:
    results = {
        "machine": {"device": "cpu"},
        "throughput": {
            "reference": speed(10, 10, 1),
            "grouped": speed(59, 61, 61),
            "grouped, bf16": speed(69, 71, 71),
            "ungrouped": speed(30, 34, 900),
            DMR.name: speed(110, 110, 110),
            in_bfloat16(DMR).name: speed(120, 120, 120),
        },
        "scaling": {
            "ranks": [{"value": 1} | speed(10, 10, 10), {"value": 2} | speed(16, 16.4, 17)]
        },
    }
    reached = {check.metric: check.passed for check in check_targets(results)}
    assert reached == {
        "rows/s, grouped, over the reference": False,
        "rows/s, grouped, bf16, over the reference": True,
        "rows/s, ungrouped, over the reference": False,
        "time that the zero-shot tower adds to the DMR step, grouped": False,
        "time that the zero-shot tower adds to the DMR step, grouped, bf16": True,
        "input wait, grouped": True,
        "input wait, ungrouped": True,
        "rows/s, 2 ranks over 1, a thread each": False,
    }


def test_the_exponent_of_what_grows_as_the_square_is_2() -> None:
    points = [
        {"value": value, "seconds_per_step": seconds}
        for value, seconds in ((1, 5.0), (4, 1.0), (16, 16.0))
    ]
    assert scaling_exponent(points) == pytest.approx(2.0)


@pytest.mark.distributed
@pytest.mark.usefixtures("preloaded_trainers")
def test_ranks_take_their_turns_together(tmp_path: Path) -> None:
    workload = Workload.write(tmp_path, base_config_tree(max_length=8), *SMALL)
    write_rows(tmp_path, workload.config().schema_, RowSettings(users=64, test_users=16, items=50))
    with SubprocessTrainer(workload, GROUPED, "cpu", 1, ranks=2) as trainer:
        turn = trainer.turn(2)
    assert turn.rows == 2 * 2 * 32 and turn.seconds > turn.input_seconds >= 0
    assert turn.peak_bytes > 2**27


@pytest.mark.long
@pytest.mark.usefixtures("preloaded_trainers")
def test_a_small_run_leaves_its_report(tmp_path: Path) -> None:
    parts = [
        word
        for part in ("limits", "throughput", "breakdown", "quality")
        for word in ("--part", part)
    ]
    numbers = ["--repeats", "2", "--steps", "1", "--seeds", "2", "--epochs", "1"]
    done = CliRunner().invoke(
        main, ["--small", *parts, *numbers, "--out", str(tmp_path)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "bench.json").read_text())
    assert (
        results["throughput"].keys()
        == results["breakdown"].keys()
        == {*(variant.name for variant in default_variants(torch.device("cpu"))), "reference"}
    )
    for name, found in results["breakdown"].items():
        expected = {"input", "lookup", "ranking", "backward", "optimizer"} | (
            set() if name.startswith(DMR.name) else {"zero_shot"}
        )
        assert all(found[part] > 0 for part in expected), (name, found)
    assert {"AUC, grouped, less the reference's", "rows/s, grouped, over the reference"} <= {
        line["metric"] for line in results["targets"]
    }
    assert {path.name for path in tmp_path.iterdir()} == {
        "bench.json",
        "bench.md",
        "bench.html",
        "bench-throughput.png",
        "bench-breakdown.png",
    }


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["model.tower=base_dnn"], "model.tower=base_dnn"),
        (["schema.columns.actions=null", "schema.tables.actions=null"], "no actions on 'history'"),
        (["schema.actions=concat"], "schema.actions=concat"),
        (["model.zero_shot.variant=dual"], "model.zero_shot.variant=dual"),
    ],
)
def test_other_data_and_models_are_measured_or_refused_in_one_line(
    workload: Workload, overrides: list[str], reason: str, tmp_path: Path
) -> None:
    """Before anything is read."""
    command = ["--config", str(workload.path), "--out", str(tmp_path), *workload.overrides]
    ended = CliRunner().invoke(main, [*command, *overrides, "--part", "breakdown"])
    assert ended.exit_code == 1
    [line] = ended.output.splitlines()
    assert line.startswith("Error: the bench measures DMR") and reason in line


def test_the_reference_takes_a_schema_without_context(workload: Workload) -> None:
    without = [f"schema.columns.{name}=null" for name in ("hour", "place")]
    own = Workload(workload.path, (*workload.overrides, *without))
    encoders = fit_training_encoders(own.config())
    logits, losses = Reference(own.config(), encoders.num_rows).train()(first_rows(own, encoders))
    assert logits.shape[0] and "L_match" in losses
