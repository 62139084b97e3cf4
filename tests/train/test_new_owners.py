"""Rows of new owners begin as in a new run, under every optimizer and sharding; others stay."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from mail_torchrec.config import Config
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.ids.policy import NewOwners
from mail_torchrec.data.source import Source
from mail_torchrec.embeddings.initial_weights import local_shards
from mail_torchrec.train.assembly import AssembledModel, assemble
from mail_torchrec.train.new_owners import reset_rows
from mail_torchrec.train.state import model_state, optimizer_state
from tests.checkpoint.test_reshard import whole
from tests.support.ranks import run_ranks
from tests.support.small_rows import SCHEMA, config_tree, write_rows

Arrays = dict[str, npt.NDArray[Any]]

ROWS = np.array([2, 3, 511, 512, 513, 1000])
GENERATIONS = np.array([0, 1, 0, 2, 7, 1])
OWNERS = {
    "item": NewOwners(ROWS, GENERATIONS),
    "city": NewOwners(ROWS[:2], GENERATIONS[:2]),
    "hour": NewOwners(ROWS[:0], GENERATIONS[:0]),
}
SHARDINGS: dict[str, dict[str, Any]] = {
    "table_wise": {"sharding_types": ["table_wise"]},
    "row_wise": {"sharding_types": ["row_wise"]},
    "column_wise": {"sharding_types": ["column_wise"], "min_partition": 4},
    "unsharded": {"enabled": False},
}
FUSED = [
    (sharding, {"name": name})
    for sharding in ("table_wise", "row_wise", "column_wise")
    for name in ("sgd", "adagrad", "rowwise_adagrad")
]
UNSHARDED: list[dict[str, Any]] = [
    {"name": "sgd"},
    {"name": "adagrad"},
    {"name": "adam"},
    {"name": "adam", "weight_decay": 0.1},
]


def config_of(root: str, sharding: str, tables: dict[str, Any]) -> Config:
    managed = {"ids": "managed", "rows": 1024, "fallback_rows": 2}
    of_tables = SCHEMA["tables"]
    schema = SCHEMA | {
        "dim": 8,
        "tables": of_tables | {"item": of_tables["item"] | managed, "city": managed},
    }
    tree = config_tree(
        Path(root), schema=schema, train={"tables": tables}, sharding=SHARDINGS[sharding]
    )
    return Config.model_validate(tree)


def assembled_with(
    config: Config, encoders: Any
) -> tuple[AssembledModel, dict[str, Any], dict[str, Any]]:
    """A model whose weights and states are all changed, and its weights and states before."""
    assembled = assemble(config, encoders, torch.device("cpu"))
    fresh = state_of(assembled)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in (model_state(assembled) | optimizer_state(assembled)).values():
            for shard, _ in local_shards(value):
                if shard.is_floating_point():
                    shard.copy_(torch.rand(shard.shape, generator=generator) + 1)
    return assembled, fresh, state_of(assembled)


def state_of(assembled: AssembledModel) -> Arrays:
    found = model_state(assembled) | optimizer_state(assembled)
    state = whole(found) if dist.is_initialized() else found
    return {key: value.double().numpy().copy() for key, value in state.items()}


def all_resets(root: str, cases: list[tuple[str, dict[str, Any]]]) -> list[tuple[Arrays, ...]]:
    """Fresh, changed and reset weights and states of each case."""
    found = []
    for sharding, tables in cases:
        config = config_of(root, sharding, tables)
        source = Source(config.data.path("train"), config.schema_)
        encoders = fit_encoders(source, config.schema_, config.data.cold_start)
        assembled, fresh, changed = assembled_with(config, encoders)
        reset_rows(assembled, config, encoders, OWNERS)
        found.append((fresh, changed, state_of(assembled)))
    return found


def plain_weights(table: str, row: int, generation: int, low: float, high: float) -> list[float]:
    """The later owners' first weights, from Python's integers."""

    def mix(z: int) -> int:
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) % 2**64
        return z ^ z >> 31

    digest = hashlib.blake2b(f"1/{table}/rows".encode(), digest_size=8).digest()
    word = mix(mix(row ^ int.from_bytes(digest, "little") >> 1) ^ generation)
    shares = [(mix(word ^ column) >> 40) / 2**24 for column in range(1, 9)]
    return [low + share * (high - low) for share in shares]


def check(fresh: Arrays, changed: Arrays, reset: Arrays) -> None:
    """Compares each row of each tensor: of a new owner fresh, of others as it was."""
    assert fresh.keys() == changed.keys() == reset.keys()
    checked = set()
    for key, table, output in tables_of(reset):
        owners, width = OWNERS[table], {"item": 0.3}.get(table, 0.01)
        if reset[key].ndim == 0:
            assert np.array_equal(reset[key], changed[key])
            continue
        # A number a row: those of column shards stand one behind the other.
        parts = [np.split(state[key], len(state[key]) // 1024) for state in (fresh, changed, reset)]
        for new, before, after in zip(*parts, strict=True):
            is_new = np.isin(np.arange(1024), owners.rows_N)
            assert np.array_equal(after[~is_new], before[~is_new]), key
            for row, generation in zip(*map(np.ndarray.tolist, owners), strict=True):
                if key.startswith("optimizer.") or not generation:
                    assert np.array_equal(after[row], new[row]), (key, row)
                    assert not np.array_equal(after[row], before[row]), (key, row)
                else:
                    expected = plain_weights(output, row, generation, -width, width)
                    np.testing.assert_allclose(after[row], expected, atol=1e-7)
        checked.add((key.partition(".")[0], output))
    others = reset.keys() - {key for key, *_ in tables_of(reset)}
    assert all(np.array_equal(reset[key], changed[key], equal_nan=True) for key in others)
    of_model = {output for kind, output in checked if kind == "model"}
    assert {"item", "city"} < of_model and len(of_model) == 3, "V' too"
    of_state = {output for kind, output in checked if kind == "optimizer"}
    assert of_state in (set(), of_model)


def tables_of(state: Arrays) -> Iterator[tuple[str, str, str]]:
    """Key, table whose ids own its rows, and table, of each tensor of those with new owners."""
    for key in state:
        for table, names in {"item": ("item", "item_output"), "city": ("city",)}.items():
            for name in names:
                if f"embeddings.{name}." in key or f"embedding_bags.{name}." in key:
                    yield key, table, name


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train" / "a.parquet", 60, seed=1)
    return str(folder)


@pytest.mark.parametrize("tables", UNSHARDED)
def test_one_process(root: str, tables: dict[str, Any]) -> None:
    [states] = all_resets(root, [("unsharded", tables)])
    check(*states)


@pytest.mark.distributed
def test_two_ranks_under_every_sharding_and_optimizer(root: str, tmp_path: Path) -> None:
    """Fresh weights are those of one process, so ranks agree with it."""
    found, _ = run_ranks(2, all_resets, tmp_path / "ranks", root, FUSED)
    [(alone, _, _)] = all_resets(root, [("unsharded", {"name": "sgd"})])
    for case, states in zip(FUSED, found, strict=True):
        try:
            check(*states)
        except AssertionError as error:
            raise AssertionError(case) from error
        for key, *_ in tables_of(alone):
            assert np.array_equal(states[0][key], alone[key]), case


def test_new_owners_begin_with_their_vector(root: str) -> None:
    vectors = pa.table({"id": [3, 5, 99], "vector": [[float(i)] * 8 for i in (3, 5, 99)]})
    pq.write_table(vectors, Path(root) / "vectors.parquet")
    config = config_of(root, "unsharded", {"name": "adagrad"})
    tree = config.model_dump(by_alias=True)
    tree["schema"]["tables"]["item"]["init_from"] = {"path": "vectors.parquet"}
    config = Config.model_validate(tree)
    source = Source(config.data.path("train"), config.schema_)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    rows = encoders.tables["item"].encode(pa.array([3, 5, 7]))
    assembled, _, changed = assembled_with(config, encoders)
    new = NewOwners(np.sort(rows[[0, 2]]), np.array([1, 1]))
    reset_rows(assembled, config, encoders, {"item": new})
    reset = state_of(assembled)
    for key, table, _ in tables_of(reset):
        if key.startswith("model.") and table == "item":
            assert reset[key][rows[0]].tolist() == [3.0] * 8, "a new owner has its vector"
            assert np.array_equal(reset[key][rows[1]], changed[key][rows[1]]), "an old one stays"
            assert np.abs(reset[key][rows[2]]).max() <= 0.3, "without a vector it is drawn"
