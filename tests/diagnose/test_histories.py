"""Statistics of histories, what attributes explain of them, and columns as inputs of trees."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from mail_torchrec.config import load_config
from mail_torchrec.diagnose.features import FeatureGroup, Features, Rows, add_columns, concatenated
from mail_torchrec.diagnose.histories import (
    Statistics,
    add_matches,
    add_statistics,
    filled,
    last_rows,
    mean_statistics,
    read_sequences,
    statistics,
)
from mail_torchrec.diagnose.predicted_histories import predict_histories
from mail_torchrec.diagnose.sampled_rows import read_sample
from tests.diagnose.conftest import planted_log, write_log


def rows_of(folder: Path, tables: dict[str, pa.Table]) -> Rows:
    sample = read_sample(load_config(write_log(folder, tables), []), 10_000)
    return concatenated(sample.train, sample.test, sample.schema)


def test_what_all_histories_share_is_not_explained_by_attributes(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, planted_log())
    features = Features(rows.num_train)
    add_columns(features, rows)
    known = statistics(read_sequences(rows), rows)
    age_R = rows.scalar("age")  # explains all there is to these
    nearly = np.stack([np.ones(len(age_R)), 1 + 0.001 * age_R, 1.0 * age_R], axis=1)
    names = [*known.names, "constant", "nearly constant", "age itself"]
    scales_T = np.array([*known.scales_T, 1, 1, 1])
    known = Statistics(names, np.hstack([known.values_RT, nearly]), scales_T, known.num_factors)
    explained = predict_histories(features, known, rows).explained
    assert not {"constant", "nearly constant"} & explained.keys()
    assert explained["age itself"] > 0.95 and max(explained.values()) <= 1
    assert explained["seen factor 1"] < 0.9


def test_items_of_one_history_alone_are_no_factor(tmp_path: Path) -> None:
    tables = planted_log()
    for part, table in tables.items():
        seen = [
            list(range(5_000, 5_010)) if user == 1 else items
            for user, items in zip(
                table["user"].to_pylist(), table["seen"].to_pylist(), strict=True
            )
        ]
        tables[part] = table.set_column(table.column_names.index("seen"), "seen", pa.array(seen))
    rows = rows_of(tmp_path, tables)
    [sequence] = read_sequences(rows)
    users_R = last_rows(rows, rows.num_behaviours_R > 0)
    history_UK = sequence.mean(sequence.factors_IK)[users_R]
    squares_UK = (history_UK - history_UK.mean(axis=0)) ** 2
    assert (squares_UK.max(axis=0) / squares_UK.sum(axis=0)).max() < 0.2


def test_filled_histories_take_the_place_of_the_real_ones_and_have_no_target(
    tmp_path: Path,
) -> None:
    rows = rows_of(tmp_path, planted_log())
    features = Features(rows.num_train)
    add_columns(features, rows)
    sequences = read_sequences(rows)
    known = statistics(sequences, rows)
    add_statistics(features, known, sequences, FeatureGroup.HISTORY, FeatureGroup.HISTORY_ITEM)
    add_matches(features, sequences, rows)
    mean = mean_statistics(known, rows)
    users_R = last_rows(rows, rows.num_behaviours_R > 0)
    found = filled(features, mean, sequences)
    history_RT = found.select([FeatureGroup.HISTORY])[0]
    expected_T = known.values_RT[users_R].mean(axis=0)
    np.testing.assert_allclose(history_RT, np.tile(expected_T, (len(history_RT), 1)), rtol=1e-6)
    fit_RF = found.select([FeatureGroup.HISTORY_ITEM])[0]
    [sequence] = sequences
    target_RK = sequence.factors_IK[sequence.target_R]
    product_R = target_RK @ expected_T[: target_RK.shape[1]]
    np.testing.assert_allclose(fit_RF[:, 0], product_R, rtol=1e-5, atol=1e-6)
    assert not fit_RF[:, -1].any() and features.columns[-1].any()
    # With the real ones nothing changes but the matches, and other features never do.
    same = filled(features, known, sequences)
    for part in (FeatureGroup.HISTORY, FeatureGroup.ATTRIBUTES, FeatureGroup.ITEM_ID):
        np.testing.assert_allclose(same.select([part])[0], features.select([part])[0], rtol=1e-5)


def test_many_ids_of_an_attribute_are_a_rate_and_a_count_but_few_categories(
    tmp_path: Path,
) -> None:
    tables = planted_log()
    for part, table in tables.items():
        city = pa.array(table["user"].to_numpy() % 100)
        tables[part] = table.set_column(table.column_names.index("city"), "city", city)
    rows = rows_of(tmp_path, tables)
    features = Features(rows.num_train)
    add_columns(features, rows)
    values_RF, is_category, _ = features.select([FeatureGroup.ATTRIBUTES])
    assert is_category == [True, True, False, False]  # age; city, its rate and its count
    assert [len(np.unique(values_RF[:, place])) for place in (0, 1)] == [4, 16]
    assert len(np.unique(values_RF[rows.num_train :, 2])) > 50
