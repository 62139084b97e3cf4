"""Permutation importance: what a model uses loses when permuted, what it does not use does not."""

import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mail_torchrec.config import Config
from mail_torchrec.data.reading.chunk import Chunk
from mail_torchrec.data.reading.permutation import FeaturePermutation, feature_groups
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.predict.importance import COHORTS, METRICS, importance
from mail_torchrec.predict.importance_report import importance_markdown, write_importance
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.data.reading.test_reader import Readers, write_files
from tests.support import plain
from tests.support.plain import some_rows
from tests.support.processes import without_launcher
from tests.support.small_rows import SCHEMA, config_tree, write_rows


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    root = tmp_path_factory.mktemp("rows")
    for part, num_rows in (("train/a", 600), ("test/b", 400)):
        path = root / f"{part}.parquet"
        write_rows(path, num_rows, seed=num_rows)
        rows = pq.read_table(path)
        clicked = pc.less(rows["age"], 2).cast("int64")  # age decides
        place = rows.column_names.index("clicked")
        pq.write_table(rows.set_column(place, "clicked", clicked), path)
    tree = config_tree(root, train={"epochs": 6, "learning_rate": 0.01})
    tree["model"] = {"tower": "base_dnn", "tower_options": {"hidden_dims": [8]}, "zero_shot": None}
    train(Config.model_validate(tree), RunDir(root / "run"))
    return RunDir(root / "run")


def test_features_are_permuted_together_with_what_is_aligned_with_them() -> None:
    assert feature_groups(Schema.model_validate(SCHEMA)) == {
        "age": ("age",), "city": ("city",), "income": ("income",),
        "history": ("history", "actions"), "hour": ("hour",), "item": ("item",), "tags": ("tags",),
    }  # fmt: skip


@pytest.mark.parametrize("columns", [("history", "actions"), ("age",), ("income",), ("tags",)])
def test_only_the_columns_asked_for_move_and_only_within_their_cohort(
    tmp_path: Path, columns: tuple[str, ...]
) -> None:
    rows_of_file = [row | {"income": float(i)} for i, row in enumerate(some_rows(60))]
    write_files(tmp_path, rows_of_file, [[60]])
    reader = Readers(tmp_path).reader(batch_size=60)
    rows = reader._rows
    chunk, _ = rows.shuffled(0, range(1), rows.decoder())
    permuted = FeaturePermutation(columns, (1, 2))(chunk, plain.schema(), (0, 0))
    values, moved = values_of(chunk), values_of(permuted)
    for name, of_rows in values.items():
        assert sorted(moved[name]) == sorted(of_rows)
        assert (moved[name] != of_rows) == (name in columns)
    for is_new in (True, False):
        for name in columns:
            old, new = ([v for v, n in zip(part[name], chunk.is_new_R, strict=True) if n == is_new]
                        for part in (values, moved))  # fmt: skip
            assert sorted(old) == sorted(new)
    again = FeaturePermutation(columns, (1, 2))(chunk, plain.schema(), (0, 0))
    assert values_of(again) == moved
    for name in ("labels_R", "users_R", "is_new_R", "is_cold_R"):
        assert np.array_equal(getattr(permuted, name), getattr(chunk, name))


def values_of(chunk: Chunk) -> dict[str, list[tuple[float, ...]]]:
    schema, rows = plain.schema(), range(len(chunk))
    lists = {
        name: [tuple(array.take(slice(row, row + 1)).values.tolist()) for row in rows]
        for name, array in chunk.lists.items()
    }
    scalars = {
        name: [(float(value),) for value in chunk.scalars_CR[place]]
        for place, name in enumerate(schema.scalars)
    }
    numeric = {
        name: [(float(value),) for value in chunk.numeric_RN[:, place]]
        for place, name in enumerate(schema.numeric())
    }
    return {**lists, **scalars, **numeric}


def test_what_decides_the_labels_matters_and_noise_does_not(
    run_dir: RunDir, tmp_path: Path
) -> None:
    report = importance(run_dir, None, [], num_repeats=2)
    losses = {feature.name: feature.losses for feature in report.features}
    assert set(losses) == {"age", "city", "income", "history", "hour", "item", "tags"}
    assert report.features[0].name == "age"
    for cohort in COHORTS:
        age, hour = (losses[name][cohort]["auc"] for name in ("age", "hour"))
        assert age is not None and hour is not None
        assert age.low is not None and age.low > 0.1
        assert abs(hour.mean) < age.mean / 5
    of_no_history = losses["history"]["new"]["auc"]  # new users have none
    assert of_no_history is not None and of_no_history.mean == of_no_history.high == 0
    text = importance_markdown(report)
    assert "history + actions" in text and "GAUC old" in text and "test rows: 400" in text
    for path in write_importance(report, tmp_path):
        assert path.stat().st_size
    written = json.loads((tmp_path / "importance.json").read_text())
    assert set(written["features"][0]["losses"]) == set(COHORTS)
    assert set(written["features"][0]["losses"]["new"]) == set(METRICS)
    assert written["metrics"] == json.loads(run_dir.metrics.read_text())


@pytest.mark.distributed
def test_two_ranks_print_one_table(run_dir: RunDir) -> None:
    words = ["importance", "--run-dir", str(run_dir.path), "--repeats", "1"]
    first, second = without_launcher(2, *words)
    assert first.code == second.code == 0, first.output
    assert "| permuted" in first.output and "| permuted" not in second.output
