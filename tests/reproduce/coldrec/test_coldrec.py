"""ColdRec's split and metrics, against its rules written out with loops."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.config import load_config
from mail_torchrec.reproduce.coldrec.click_log import ClickLog
from mail_torchrec.reproduce.coldrec.click_log import write_rows as write_coldrec_rows
from mail_torchrec.reproduce.coldrec.held_out import (
    SETTINGS,
    HeldOutPairs,
    bootstrap_rankings,
    cold_items,
)
from mail_torchrec.reproduce.coldrec.ranking_metrics import ranking_metrics
from mail_torchrec.reproduce.coldrec.split import split_pairs
from tests.support.small_rows import config_tree, write_rows

BASE = "configured model"


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    table = np.unique(generator.integers(0, [60, 40], (700, 2)), axis=0)
    table = table[generator.permutation(len(table))]
    return table[:, 0], table[:, 1]


def test_every_pair_is_in_one_part_and_cold_items_in_no_training(
    pairs: tuple[np.ndarray, np.ndarray],
) -> None:
    users, items = pairs
    split = split_pairs(users, items)
    parts = [split.train, split.warm_validation, split.warm_test]
    parts += [split.cold_validation, split.cold_test]
    assert sorted(np.concatenate(parts)) == list(range(len(users)))
    kinds = [set(items[part]) for part in parts]
    assert len(kinds[3]) == len(kinds[4]) == 4 and len(kinds[0]) == 32  # of 40 items
    assert not kinds[3] & kinds[4] and not kinds[0] & (kinds[3] | kinds[4])
    for part in parts[1:3]:
        assert set(items[part]) <= kinds[0] and set(users[part]) <= set(users[split.train])
    num_warm = sum(len(part) for part in parts[:3])
    assert len(parts[1]) <= num_warm // 10 and len(parts[2]) <= num_warm // 10


def test_it_draws_what_the_benchmark_draws(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    """Its rules in the order of its script: shuffle items, shuffle warm pairs, shuffle cold items.

    Written with Python's lists; the numbers of the global generators are those of the seed.
    """
    users, items = pairs
    groups = [[n for n in range(len(items)) if items[n] == i] for i in sorted(set(items))]
    random.seed(7)
    np.random.seed(7)
    random.shuffle(groups)
    count = int(0.8 * len(groups))
    warm = np.array([n for group in groups[:count] for n in group])
    cold = sorted(groups[count:], key=lambda group: items[group[0]])
    np.random.shuffle(warm)
    held = int(0.1 * len(warm))
    train = set(warm[: len(warm) - 2 * held])
    test = warm[-held:]
    found = split_pairs(users, items, seed=7)
    assert train <= set(found.train) and set(found.warm_test) <= set(test)
    boxes = np.empty(len(cold), dtype=object)
    boxes[:] = cold
    np.random.shuffle(boxes)
    expected = [n for group in boxes[: len(boxes) // 2] for n in group]
    assert found.cold_validation.tolist() == expected


@pytest.mark.parametrize("k", [1, 3, 20])
def test_recall_and_ndcg_by_hand(k: int) -> None:
    generator = np.random.default_rng(2)
    scores = generator.normal(size=(8, 9))
    positive, masked = generator.random((8, 9)) < 0.3, generator.random((8, 9)) < 0.2
    positive[3] = False  # a user without held-out pairs counts in no mean
    positive &= ~masked
    recalls, ndcgs = [], []
    for user in range(8):
        wanted = [i for i in range(9) if positive[user, i]]
        if not wanted:
            continue
        shown = sorted((i for i in range(9) if not masked[user, i]), key=lambda i: -scores[user, i])
        hits = [rank for rank, item in enumerate(shown[:k]) if item in wanted]
        recalls.append(len(hits) / len(wanted))
        ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(wanted))))
        ndcgs.append(sum(1 / math.log2(rank + 2) for rank in hits) / ideal)
    found = ranking_metrics(scores, positive, masked, k)
    has_pair = positive.any(1)
    assert found["recall"][has_pair] == pytest.approx(recalls)
    assert found["ndcg"][has_pair] == pytest.approx(ndcgs)
    assert np.isnan(found["recall"][~has_pair]).all() and np.isnan(found["ndcg"][3])


def test_means_are_over_users_with_a_pair_and_resamples_draw_users_anew() -> None:
    values = np.array([0.0, np.nan, 1.0, 0.5, np.nan])
    seed = {one: {"recall": values, "ndcg": np.full(5, np.nan)} for one in SETTINGS}
    found = bootstrap_rankings([seed, seed], num_resamples=200)
    recall = found["cold", "recall"].interval()
    assert recall is not None and recall.mean == pytest.approx(0.5)
    assert recall.low is not None and recall.high is not None
    assert 0 <= recall.low < 0.3 and 0.7 < recall.high <= 1  # of three users
    assert found["warm", "ndcg"].interval() is None


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for part, seed in (("log/day=1", 1), ("log/day=2", 2)):
        write_rows(tmp_path / part / "a.parquet", 160, seed)
    path = tmp_path / "config.yaml"
    tower = {"tower": "base_dnn", "tower_options": {"hidden_dims": [8]}, "zero_shot": None}
    data = {"train": "log/day=1", "test": ["log/day=2"]}
    path.write_text(yaml.safe_dump(config_tree(tmp_path, model=tower, data=data)))
    return path


def test_rows_hold_each_warm_click_beside_an_item_that_the_user_did_not_click(
    config: Path, tmp_path: Path
) -> None:
    log = ClickLog.read(load_config(config, []))
    raw = [pq.read_table(tmp_path / f"log/day={day}" / "a.parquet") for day in (1, 2)]
    clicked = {
        (row["user"], row["item"]) for t in raw for row in t.to_pylist() if row["clicked"] == 1
    }
    users, items = log.users["user"].to_pylist(), log.items["item"].to_pylist()
    assert len(log.users_N) == len(clicked)
    pairs = zip(log.users_N, log.items_N, strict=True)
    assert {(users[u], items[i]) for u, i in pairs} == clicked
    split = split_pairs(log.users_N, log.items_N)
    cold_rows = np.unique(log.items_N[np.concatenate([split.cold_validation, split.cold_test])])
    cold = {items[i] for i in cold_rows}
    shown = log.without(cold_rows)
    write_coldrec_rows(shown, split, tmp_path / "rows", seed=1)
    table = pq.read_table(tmp_path / "rows" / "train").to_pylist()
    assert len(table) == 2 * len(split.train)
    for row in table:
        assert ((row["user"], row["item"]) in clicked) == (row["clicked"] == 1)
        assert row["item"] not in cold and not cold & set(row["history"])
        assert len(row["history"]) == len(row["actions"])
        assert row["tags"] == list(range(row["item"] % 3))
    whole = {
        user: history
        for t in raw
        for user, history in zip(t["user"].to_pylist(), t["history"].to_pylist(), strict=True)
    }
    for row in table:
        assert row["history"] == [i for i in whole[row["user"]] if i not in cold]


def test_settings_mask_training_pairs_and_the_other_kind_of_items(config: Path) -> None:
    """An oracle that scores held-out pairs highest is perfect, one that scores others is not."""
    log = ClickLog.read(load_config(config, []))
    split = split_pairs(log.users_N, log.items_N)
    users = np.arange(len(log.users))
    pairs = HeldOutPairs.of(log, split, users)
    some = np.array([5, 2])
    of_some = HeldOutPairs.of(log, split, some).positive_UI["overall"]
    assert np.array_equal(of_some, pairs.positive_UI["overall"][some])
    scores = np.zeros((len(users), len(log.items)), np.float32)
    for part, score in ((split.train, 3), (split.warm_test, 2), (split.cold_test, 1)):
        scores[log.users_N[part], log.items_N[part]] = score
    found = pairs.metrics(scores, k=20)
    assert all(np.nanmin(found[setting]["ndcg"]) == pytest.approx(1) for setting in found)
    assert np.nanmean(pairs.metrics(-scores, k=1)["cold"]["ndcg"]) < 0.5
    cold = cold_items(log, split)
    assert not pairs.positive_UI["warm"][:, cold].any() and pairs.masked_UI["warm"][:, cold].all()


def run(path: Path, *words: str) -> tuple[int, str]:
    command = ["reproduce", "coldrec", "--config", str(path), "--out", str(path.parent / "out")]
    result = CliRunner().invoke(main, [*command, "--seeds", "1", *words])
    return result.exit_code, f"{result.output}{result.exception}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "configured model oracle"), "coldrec has no method"),
        (("--paper", "public"), "coldrec does not have --paper"),
        (("--share", "0.1"), "coldrec does not have --share"),
    ],
)
def test_what_it_does_not_have_is_refused(
    words: tuple[str, ...], message: str, config: Path
) -> None:
    code, output = run(config, *words)
    assert code and message in output


def test_a_log_with_too_few_items_is_refused(config: Path, tmp_path: Path) -> None:
    for path in tmp_path.glob("log/*/a.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.filter(pc.less(table["item"], 8)), path)
    code, output = run(config)
    assert code and "needs at least 10" in output and not list(tmp_path.glob("out/**/seed-*"))


@pytest.mark.long
@pytest.mark.usefixtures("preloaded_runs")
def test_a_tower_ranks_all_items_and_what_is_finished_is_kept(config: Path, tmp_path: Path) -> None:
    chosen = ["--users", "20", "--method", BASE, "--method", f"{BASE} + CLCRec", "--jobs", "2"]
    code, output = run(config, *chosen)
    assert not code, output
    page = (tmp_path / "out/coldrec.md").read_text()
    table = json.loads((tmp_path / "out/coldrec.json").read_text())
    assert "20 of " in page and list(table["means"]) == [BASE, f"{BASE} + CLCRec"]
    assert f"- {BASE} + CLCRec against {BASE}, recall@20 of cold items: " in page
    assert table["means"][BASE]["overall_recall"]["mean"] >= 0
    assert "--users 20" in table["command"]
    times = {
        path: path.stat().st_mtime_ns for path in tmp_path.glob("out/coldrec/runs/*/*/exported")
    }
    assert len(times) == 2
    code, output = run(config, *chosen)
    assert not code and (tmp_path / "out/coldrec.md").read_text() == page
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
