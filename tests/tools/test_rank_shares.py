"""Shares of 64 ranks: of the files and tables here by arithmetic, of scored rows as exchanged."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from mail_torchrec.metrics import exchange
from mail_torchrec.planning.scenarios import parse_grid
from tests.support.small_rows import config_tree, write_rows
from tools.rank_shares import main, rank_shares

RANKS = 64
ROWS = {"age": 5, "city": 100, "hour": 24, "item": 400_000, "actions": 9, "tags": 50_000}
WORDS = tuple(f"{table}={rows}" for table, rows in ROWS.items())


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fewer row groups than ranks to train on, more to evaluate."""
    folder = tmp_path_factory.mktemp("shares")
    write_rows(folder / "train/a.parquet", 2_000, seed=1, row_group_size=100)
    write_rows(folder / "test/a.parquet", 1_001, seed=2, row_group_size=10)
    tree = config_tree(folder, sharding={"sharding_types": ["row_wise"]})
    (folder / "small.yaml").write_text(yaml.safe_dump(tree))
    return folder / "small.yaml"


def test_the_shares_of_64_ranks_add_up_to_the_whole_and_are_even(config: Path) -> None:
    [scenario] = parse_grid(
        config,
        (),
        hardware_name="h100",
        hardware_overrides=(),
        ranks=str(RANKS),
        batch_sizes=None,
        vary=(),
        rows=WORDS,
    ).scenarios()
    shares = {share.what: share.of_ranks_R for share in rank_shares(scenario)}
    assert all(len(of_ranks_R) == RANKS for of_ranks_R in shares.values())
    whole = {
        "rows trained on in an epoch": 2_000,
        "rows evaluated": 1_001,
        "rows counted for vocabularies": 2_000,
        "row groups of test data checked": 101,
        "hash parts of the ids merged": 4_096,
    }
    assert {what: shares[what].sum() for what in whole} == whole
    for what in ("rows trained on in an epoch", "rows evaluated", "hash parts of the ids merged"):
        assert shares[what].max() - shares[what].min() <= 1
    # 8 columns an item, whose table and output table are stored in 4 bytes a value.
    assert shares["values of tables"].sum() >= 2 * 8 * ROWS["item"]
    assert shares["values of tables"].max() < 1.1 * shares["values of tables"].mean()


def test_the_command_prints_a_table_for_each_number_of_ranks(config: Path) -> None:
    words = [word for pair in WORDS for word in ("--rows", pair)]
    done = CliRunner().invoke(main, ["--config", str(config), "--ranks", "2,64", *words])
    assert done.exit_code == 0, done.output
    assert "| rows trained on in an epoch | 2,000 | 1,000 | 1,000 | 1,000 | 1.00 |" in done.output
    assert "| rows evaluated | 1,001 | 15 | 15.6 | 16 | 1.02 |" in done.output
    missing = CliRunner().invoke(main, ["--config", str(config), *words, "data.train=nowhere"])
    assert missing.exit_code == 1 and "nowhere" in missing.output
    assert "Traceback" not in missing.output


class ThreadRanks:
    """Ranks that are threads of this process, for the two collectives of an exchange of rows."""

    def __init__(self, count: int) -> None:
        self.count, self.barrier = count, threading.Barrier(count, timeout=60)
        self.given: list[Any] = [None] * count
        self.of_thread = threading.local()

    def run(self, function: Any, *columns: list[Any]) -> list[Any]:
        found: list[Any] = [None] * self.count

        def run_one(rank: int) -> None:
            self.of_thread.rank = rank
            found[rank] = function(*(column[rank] for column in columns))

        threads = [threading.Thread(target=run_one, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def gather_objects(self, value: Any) -> list[Any]:
        self.given[self.of_thread.rank] = value
        self.barrier.wait()
        gathered = list(self.given)
        self.barrier.wait()
        return gathered

    def exchange_rows(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        of_all = self.gather_objects(rows.split(counts))
        return torch.cat([parts[self.of_thread.rank] for parts in of_all])


@pytest.mark.parametrize("dealt", ["score", "key"])
def test_64_ranks_get_equally_many_scored_rows_and_each_once(
    monkeypatch: pytest.MonkeyPatch, dealt: str
) -> None:
    """By ranges of the score for AUC, by users for the users' own AUCs."""
    ranks = ThreadRanks(RANKS)
    monkeypatch.setattr(exchange, "world_size", lambda: RANKS)
    monkeypatch.setattr(exchange, "gather_objects", ranks.gather_objects)
    monkeypatch.setattr(exchange, "exchange_rows", ranks.exchange_rows)
    random = np.random.default_rng(1)
    given = []
    for rank in range(RANKS):
        rows = np.empty(500 + rank, [("score", np.float32), ("key", np.int64)])
        rows["score"] = np.sort(random.normal(rank / 50, 1, len(rows)))  # ranks differ
        rows["key"] = random.integers(0, 20_000, len(rows)) * 0x2545F4914F6CDD1D
        given.append(rows)
    function = exchange.exchange_by_score if dealt == "score" else exchange.exchange_by_key
    found = ranks.run(function, given)
    everything = np.sort(np.concatenate(given), order=["score", "key"])
    assert np.array_equal(np.sort(np.concatenate(found), order=["score", "key"]), everything)
    sizes = [len(rows) for rows in found]
    assert max(sizes) < 1.4 * np.mean(sizes)
    homes = [set(rows[dealt].tolist()) for rows in found]
    assert sum(map(len, homes)) == len(set().union(*homes))
