"""What `tools/bench.py` measures with: a reference that equals the trainer, counts that torch confirms, parts that add up."""

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
from mail_torchrec.train.assembly import assemble, feature_tables_of
from tools.bench import main
from tools.benchmark import split as split_module
from tools.benchmark.apart import Apart
from tools.benchmark.counts import step_counts
from tools.benchmark.growth import exponent
from tools.benchmark.padded import Padded, padded
from tools.benchmark.peer import check_source, write_peer_rows
from tools.benchmark.reference import Reference
from tools.benchmark.rows import RowSettings, write_rows
from tools.benchmark.setting import (
    DEFAULTS,
    DMR,
    GROUPED,
    SMALL,
    UNGROUPED,
    Setting,
    Variant,
    base_tree,
)
from tools.benchmark.sides import Input, encoders_of, loaded
from tools.benchmark.split import Watch
from tools.benchmark.verdicts import verdicts

ROWS = RowSettings(users=60, rows_per_user=3, test_users=20, items=50)
# Of the trainer's parameters -> of the reference's; the first that fits a name counts.
NAMES = {
    "pooled_tables.embedding_bags.": "tables.table_", "unpooled_tables.embeddings.item_output.": "output_table.",
    "unpooled_tables.embeddings.": "tables.table_", "towers.ranking.user_to_item.0.scores.": "dmr.user_scores.",
    "towers.ranking.user_to_item.0.user.": "dmr.user.", "towers.ranking.item_to_item.0.scores.": "dmr.item_scores.",
    "towers.zero_shot.attribute_attention.": "zero_shot.pool_a.", "towers.zero_shot.behaviour_attention.": "zero_shot.pool_v.",
    "towers.zero_shot.attribute_encoder.": "zero_shot.e1.", "towers.zero_shot.behaviour_encoder.": "zero_shot.e2.",
    "towers.zero_shot.field_decoders.0.": "zero_shot.d1.", "towers.zero_shot.behaviour_decoder.": "zero_shot.d2.",
    "towers.ranking.mlp.0.": "dmr.norm.",
} | {f"towers.ranking.mlp.{layer}.": f"dmr.mlp.{layer - 1}." for layer in range(1, 8)}  # fmt: skip


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("bench")
    made = Setting.written(
        folder,
        base_tree(max_length=6),
        *SMALL,
        "model.tower_options.num_negatives=20",
        "model.zero_shot.dropout=0",
    )
    write_rows(folder, made.config().schema_, ROWS)
    return made


@pytest.fixture(scope="module")
def encoders(setting: Setting) -> Encoders:
    return encoders_of(setting.config())


def first_rows(setting: Setting, encoders: Encoders) -> Padded:
    batch = next(Input(loaded(setting.config(), encoders, training=True)))
    assert 0 < batch.is_cold_B.sum() < len(batch)
    return padded(batch, setting.config().schema_, feature_tables_of(setting.config()))


def renamed(name: str) -> str:
    [old, new] = next(pair for pair in NAMES.items() if name.startswith(pair[0]))
    return new + name.removeprefix(old)


def test_losses_and_gradients_of_the_reference_are_the_trainers(
    setting: Setting, encoders: Encoders
) -> None:
    config = setting.config(Variant("whole", ("sharding.enabled=false",)))
    trainer = assemble(config, encoders, torch.device("cpu")).model.train()
    reference = Reference(config, encoders.num_rows).train()
    own = dict(reference.named_parameters())
    with torch.no_grad():
        for name, parameter in trainer.named_parameters():
            mine = own[renamed(name)]
            mine.copy_(
                parameter[tuple(slice(size) for size in mine.shape)]
            )  # tables are stored a little larger
    batch = next(Input(loaded(config, encoders, training=True)))
    loss, outputs = trainer(batch)
    loss.backward()
    rows = padded(batch, config.schema_, feature_tables_of(config))
    _, losses = reference(rows)
    reference.total(losses).backward()
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
        assert mine is not None and mine.abs().sum() > 0, name
        expected = parameter.grad[tuple(slice(size) for size in mine.shape)]
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("variant", [UNGROUPED, DMR])
def test_arithmetic_by_formula_is_what_torch_counts(
    setting: Setting, encoders: Encoders, variant: Variant
) -> None:
    config, rows = setting.config(variant), first_rows(setting, encoders)
    reference, counter = (
        Reference(config, encoders.num_rows).train(),
        FlopCounterMode(display=False),
    )
    with counter:
        _, losses = reference(rows)
        reference.total(losses).backward()
    num_new = int(rows.is_cold_B.sum())
    counted = step_counts(
        config, num_old=len(rows.labels_B) - num_new, num_new=num_new, mean_length=3.0
    )
    assert counted.total_flops == counter.get_total_flops()


def test_each_moment_counts_for_the_innermost_part(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(split_module.time, "perf_counter", lambda: now[0])

    class Work:
        def inner(self) -> None:
            now[0] += 3

        def outer(self) -> None:
            now[0] += 1
            self.inner()
            now[0] += 1

    watch, work = Watch(), Work()
    with watch.wrapped(work, "inner", "lookup"), watch.wrapped(work, "outer", "ranking"):
        watch.start()
        work.outer()
        now[0] += 5
        watch.change()
    assert watch.seconds == {"lookup": 3, "ranking": 2, "other": 5}


def test_users_come_back_with_their_history(setting: Setting) -> None:
    rows = pq.read_table(setting.path.parent / "train").to_pylist()
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


def test_the_peer_gets_the_same_rows(setting: Setting, encoders: Encoders, tmp_path: Path) -> None:
    config = setting.config(GROUPED)
    assert write_peer_rows(tmp_path, config, encoders, threads=1) == 180
    found, spec = (
        np.load(tmp_path / "train.npz"),
        json.loads((tmp_path / "feature_map.json").read_text()),
    )
    names = [next(iter(feature)) for feature in spec["features"]]
    assert names[0] == "item" and "actions" not in names and {*names, "label"} == set(found.files)
    table = pq.read_table(setting.path.parent / "train").to_pydict()
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


def test_a_peer_without_its_source_is_told_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"checkout of its repository at version 2\.3\.10 with model_zoo/DMR/src/DMR\.py",
    ):
        check_source(tmp_path)


def side(*rates: float) -> dict[str, Any]:
    return {"rows_per_second": list(rates), "seconds_per_step": 1.0, "input_share": 0.01}


def test_verdicts_are_of_medians_of_turns() -> None:
    results = {
        "machine": {"device": "cpu"},
        "sides": {
            "reference": side(10, 10, 1),
            "grouped": side(59, 61, 61),
            "ungrouped": side(30, 34, 900),
            DMR.name: side(100, 100, 100),
        },
        "growth": {"ranks": [{"value": 1} | side(10, 10, 10), {"value": 2} | side(16, 16.9, 17)]},
    }
    judged = {verdict.what: verdict.passed for verdict in verdicts(results)}
    assert judged == {
        "rows/s, grouped, over the reference": True,
        "rows/s, ungrouped, over the reference": False,
        "what the zero-shot tower adds to the DMR step, grouped": False,
        "input wait, grouped": True,
        "input wait, ungrouped": True,
        "rows/s, 2 ranks over 1, a thread each": False,
    }


def test_the_exponent_of_what_grows_as_the_square_is_2() -> None:
    points = [
        {"value": value, "seconds_per_step": seconds}
        for value, seconds in ((1, 5.0), (4, 1.0), (16, 16.0))
    ]
    assert exponent(points) == pytest.approx(2.0)


@pytest.mark.distributed
def test_ranks_take_their_turns_together(tmp_path: Path) -> None:
    setting = Setting.written(tmp_path, base_tree(max_length=8), *SMALL)
    write_rows(tmp_path, setting.config().schema_, RowSettings(users=64, test_users=16, items=50))
    with Apart(setting, GROUPED, "cpu", 1, ranks=2) as side:
        turn = side.turn(2)
    assert turn.rows == 2 * 2 * 32 and turn.seconds > turn.waited >= 0
    assert turn.peak_bytes > 2**27


def test_a_small_run_leaves_its_report(tmp_path: Path) -> None:
    parts = [word for part in ("limits", "sides", "split", "quality") for word in ("--part", part)]
    numbers = ["--repeats", "2", "--steps", "1", "--seeds", "2", "--epochs", "1"]
    done = CliRunner().invoke(
        main, ["--small", *parts, *numbers, "--out", str(tmp_path)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "bench.json").read_text())
    assert (
        results["sides"].keys()
        == results["split"].keys()
        == {*(variant.name for variant in DEFAULTS), "reference"}
    )
    for name, found in results["split"].items():
        expected = {"input wait", "lookup", "ranking", "backward", "optimizer"} | (
            {"zero-shot"} if name != DMR.name else set()
        )
        assert all(found[part] > 0 for part in expected), (name, found)
    assert {"AUC, grouped, less the reference's", "rows/s, grouped, over the reference"} <= {
        line["what"] for line in results["verdicts"]
    }
    assert {path.name for path in tmp_path.iterdir()} == {
        "bench.json",
        "bench.md",
        "bench.html",
        "bench-sides.png",
        "bench-split.png",
    }
