"""The synthetic world is what its README says.

The same bits for a seed, a non-linear map, histories that reveal it, a known best AUC.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score

from mail_torchrec.data.cold_start import ColdStartSettings, hidden_users
from mail_torchrec.synthetic.rows import ATTRIBUTES, ground_truth
from mail_torchrec.synthetic.world import context_effect, sample_columns
from mail_torchrec.synthetic.writer import WorldSettings, write_world

SMALL = WorldSettings(users=3000, items=150, files=3, row_group_rows=1000, chunk_values=60_000)
NULLABLE = {"attr_gender", "attr_following", "price"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    write_world(SMALL, out)
    return out


def rows(world: Path, part: str) -> pa.Table:
    return ds.dataset(world / part).to_table()


def levels(table: pa.Table) -> np.ndarray:
    """Level numbers of the attributes, [rows, attributes]."""
    columns = []
    for name, (_, values) in ATTRIBUTES.items():
        columns.append([values.index(value) for value in table[name].to_pylist()])
    return np.array(columns).T


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*.*"))
    }


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_world(tmp_path: Path) -> None:
    tiny = WorldSettings(users=200, items=30)
    for name, settings in (
        ("one", tiny),
        ("two", tiny),
        ("three", tiny.model_copy(update={"seed": 1})),
    ):
        write_world(settings, tmp_path / name)
    one, two, three = (digests(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert [file for file in one if one[file] == three[file]] == ["README.txt"]


def test_files_and_row_groups_are_as_asked(world: Path) -> None:
    train = [pq.ParquetFile(file).metadata for file in sorted((world / "train").iterdir())]
    assert len(train) == SMALL.files
    assert all(file.num_row_groups > 1 for file in train)
    assert all(
        file.row_group(group).num_rows <= 1000
        for file in train
        for group in range(file.num_row_groups)
    )
    assert len(list((world / "test").iterdir())) == 1
    assert {path.name for path in world.iterdir()} == {"train", "test", "README.txt", "world.json"}


def test_sizes_days_and_click_rate(world: Path) -> None:
    train, test = rows(world, "train"), rows(world, "test")
    assert train.num_rows == pytest.approx(4 * SMALL.users, rel=0.05)
    assert test.num_rows == pytest.approx(4 / 3 * SMALL.users, rel=0.1)
    assert set(train["day"].to_pylist()) == set(range(7))
    assert set(test["day"].to_pylist()) == {7}
    assert 0.35 < pc.mean(train["is_click"]).as_py() < 0.45
    assert set(test["user_id"].to_pylist()) <= set(train["user_id"].to_pylist())
    assert len(pc.unique(train["user_id"])) == SMALL.users


def test_nulls_sentinels_and_lists_are_where_they_are_declared(world: Path) -> None:
    for part in ("train", "test"):
        table = rows(world, part)
        assert {name for name in table.column_names if table[name].null_count} == NULLABLE
        for name in ("history", "history_actions", "tags"):
            assert table[name].combine_chunks().flatten().null_count == 0
    assert {"attr_city_level": -1, "attr_tenure": -124, "attr_channel": -1} == {
        name: pc.min(table[name]).as_py()
        for name in ("attr_city_level", "attr_tenure", "attr_channel")
    }
    assert pc.min(pc.list_value_length(table["tags"])).as_py() == 0
    assert pc.max(table["item_id"]).as_py() > 2**40


def test_histories_and_actions_are_aligned_and_within_their_lengths(world: Path) -> None:
    table = rows(world, "train")
    lengths = pc.list_value_length(table["history"])
    assert lengths.equals(pc.list_value_length(table["history_actions"]))
    assert (pc.min(lengths).as_py(), pc.max(lengths).as_py()) == (20, 50)
    assert set(pc.unique(table["history_actions"].combine_chunks().flatten()).to_pylist()) == {
        1,
        2,
        3,
    }
    seen = pc.unique(table["history"].combine_chunks().flatten())
    assert len(seen) == SMALL.items
    assert set(pc.unique(table["item_id"]).to_pylist()) <= set(seen.to_pylist())


def test_a_user_is_the_same_in_every_row(world: Path) -> None:
    table = pa.concat_tables([rows(world, "train"), rows(world, "test")])
    texts = [
        (row["user_id"], str(row))
        for row in table.select(["user_id", *ATTRIBUTES, "history", "history_actions"]).to_pylist()
    ]
    assert len(set(texts)) == SMALL.users


def history_vectors(table: pa.Table) -> np.ndarray:
    """The mean vector of each row's history, by a plain lookup in the truth."""
    items, _ = ground_truth(SMALL)
    ids = {int((number + 1) * 0x2545F4914F6CDD1D) % 2**62: number for number in range(SMALL.items)}
    return np.array(
        [
            items.vectors_NK[[ids[item] for item in history]].mean(0)
            for history in table["history"].to_pylist()
        ]
    )


@pytest.fixture(scope="module")
def users(world: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users' attribute levels, true interests (but the personal part), mean history vectors."""
    table = rows(world, "train")
    _, first = np.unique(table["user_id"].to_numpy(), return_index=True)
    table = table.take(pa.array(first))
    _, interest_map = ground_truth(SMALL)
    return levels(table), interest_map(levels(table)), history_vectors(table)


def test_histories_reveal_interests(users: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """A linear readout of the mean history vector explains most of what the attributes decide."""
    _, interests, histories = users
    assert (
        LinearRegression()
        .fit(histories[::2], interests[::2])
        .score(histories[1::2], interests[1::2])
        > 0.5
    )


def test_an_additive_model_of_attributes_explains_little(
    users: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """A weight for each level explains next to nothing; the pairs of levels explain everything."""
    attributes, interests, _ = users
    single = np.concatenate([np.eye(column.max() + 1)[column] for column in attributes.T], axis=1)
    assert (
        LinearRegression().fit(single[::2], interests[::2]).score(single[1::2], interests[1::2])
        < 0.05
    )
    _, interest_map = ground_truth(SMALL)
    paired = np.concatenate(
        [np.eye(100)[attributes[:, a] * 10 + attributes[:, b]] for a, b in interest_map.pairs_K2],
        axis=1,
    )
    assert (
        LinearRegression().fit(paired[::2], interests[::2]).score(paired[1::2], interests[1::2])
        > 0.99
    )


def test_interests_are_standardised(users: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, interests, _ = users
    assert np.abs(interests.mean(0)).max() < 0.15
    assert np.abs(np.cov(interests.T) - np.eye(SMALL.interest_dim)).max() < 0.35


def test_actions_follow_affinity(world: Path) -> None:
    """Liked items are nearer to the rest of the history than items that were only watched."""
    table = rows(world, "train").slice(0, 1000)
    items, _ = ground_truth(SMALL)
    ids = {int((number + 1) * 0x2545F4914F6CDD1D) % 2**62: number for number in range(SMALL.items)}
    mean = np.repeat(
        history_vectors(table), pc.list_value_length(table["history"]).to_numpy(), axis=0
    )
    seen = items.vectors_NK[
        [ids[item] for item in table["history"].combine_chunks().flatten().to_pylist()]
    ]
    actions = table["history_actions"].combine_chunks().flatten().to_numpy()
    suits = [(mean * seen).sum(1)[actions == action].mean() for action in (1, 2, 3)]
    assert suits == sorted(suits)


def test_clicks_follow_the_true_probability(world: Path) -> None:
    """Observed click rates of ten groups by probability lie within five standard deviations."""
    table = rows(world, "train")
    probability, clicks = table["click_probability"].to_numpy(), table["is_click"].to_numpy()
    for group in np.array_split(np.argsort(probability), 10):
        expected, deviation = (
            probability[group].mean(),
            np.sqrt((probability[group] * (1 - probability[group])).sum()) / len(group),
        )
        assert abs(clicks[group].mean() - expected) < 5 * deviation


def test_the_best_auc_is_scikit_learns_auc_of_the_truth(world: Path) -> None:
    table = rows(world, "test")
    probability, clicks = table["click_probability"].to_numpy(), table["is_click"].to_numpy()
    hidden = hidden_users(table["user_id"], ColdStartSettings(hide_share=0.4))
    summary = json.loads((world / "world.json").read_text())
    assert WorldSettings.model_validate(summary["settings"]) == SMALL
    for part, chosen in (("new", hidden), ("old", ~hidden), ("all", hidden | True)):
        assert summary["best_test_auc"][part] == pytest.approx(
            roc_auc_score(clicks[chosen], probability[chosen]), abs=1e-12
        )


def test_two_worlds_never_mix(world: Path) -> None:
    with pytest.raises(ValueError, match=r"train' exists already; choose another folder"):
        write_world(SMALL, world)


def test_a_world_of_one_user(tmp_path: Path) -> None:
    """The smallest world is a world: undefined AUCs are null."""
    write_world(WorldSettings(users=1, items=2, test_rows_per_user=1, test_users=1), tmp_path)
    assert json.loads((tmp_path / "world.json").read_text())["best_test_auc"]["all"] is None
    assert rows(tmp_path, "test").num_rows == 1


@given(st.integers(0, 10**6))
def test_draws_follow_their_weights(seed: int) -> None:
    """Row by row; a column of weight zero is never drawn."""
    weights = np.array([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0]])
    drawn_rows, columns = sample_columns(weights, np.array([4000, 10]), np.random.default_rng(seed))
    assert drawn_rows.tolist() == [0] * 4000 + [1] * 10
    assert set(columns[4000:]) == {0}
    assert 0 not in columns[:4000]
    assert np.mean(columns[:4000] == 2) == pytest.approx(0.75, abs=0.05)


def test_the_context_effect_is_standardised() -> None:
    hours, devices = np.meshgrid(np.arange(24), np.arange(3))
    effect = context_effect(hours.ravel(), devices.ravel())
    assert (effect.mean(), effect.var()) == (pytest.approx(0, abs=1e-12), pytest.approx(1))
