"""Bounds the gain of any cold-start method for new users, by boosted trees.

    python tools/attribute_value.py --config launch/configs/kuairand.yaml data.root=FOLDER

A method that makes behaviours from attributes can only pass on what attributes tell. The trees
share nothing with this project's towers, and answer two questions:

1. How much of users' histories do their attributes explain? R^2 of history length and share of each
   action, of test users whose history is hidden, by trees trained on old users.
2. How much does that help? AUC of new test rows by trees that see attributes, context and item (ids
   by their smoothed click rate); the same with the histories predicted in 1; the same with the real
   histories, as an oracle has them.

Shape letters: ``R`` rows, ``F`` features, ``A`` those of attributes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import r2_score, roc_auc_score

from mail_torchrec.cli.options import LOCAL_PATH
from mail_torchrec.config import Config, load_config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.parquet.selection import DataPart
from mail_torchrec.data.reading.chunk import Chunk, ChunkEncoder
from mail_torchrec.data.schema.schema import Group, Schema
from mail_torchrec.data.source import Source
from mail_torchrec.utils.progress import progress_bar
from tools.tool_command import ToolCommand

Array = npt.NDArray[Any]
NUM_FOLDS, NUM_SEEDS, SMOOTHING, FEW_IDS = 5, 3, 20.0, 200


@dataclass(frozen=True)
class Features:
    """Inputs of the trees: training rows and test rows."""

    train_RF: Array
    test_RF: Array
    num_attributes: int
    """Number of the leading features that are user attributes."""

    @property
    def attributes(self) -> tuple[Array, Array]:
        """User attributes [R, A] of training and test rows."""
        return self.train_RF[:, : self.num_attributes], self.test_RF[:, : self.num_attributes]

    def with_columns(self, columns: list[tuple[Array, Array]]) -> tuple[Array, Array]:
        """Appends columns [R] of training and test rows to the features."""
        extra = [[pair[part][:, None] for pair in columns] for part in (0, 1)]
        return np.hstack([self.train_RF, *extra[0]]), np.hstack([self.test_RF, *extra[1]])


def read_rows(path: DataPart, config: Config, encoders: Encoders) -> Chunk:
    """Reads all rows of a folder, histories included; ``is_new_R`` marks new users."""
    source = Source(path, config.schema_)
    encode = ChunkEncoder(
        config.schema_, encoders, config.data.cold_start, config.data.new_user_max_behaviours
    )
    groups = progress_bar(source.row_groups, desc=source.path, unit="row group")
    return Chunk.concatenate([encode(source.read(group), source.file(group)) for group in groups])


def history_statistics(rows: Chunk, schema: Schema) -> dict[str, Array]:
    """Computes the length [R] of each sequence, and the share [R] of each of its actions.

    Rows without history have length 0 and shares of 0.
    """
    found: dict[str, Array] = {}
    for sequence in schema.sequences:
        lengths_R = rows.lists[sequence].lengths
        found[f"{sequence} length"] = lengths_R.astype(float)
        if (action := schema.action_of(sequence)) is not None:
            found |= _action_shares(action, rows.lists[action].values, lengths_R)
    return found


def _action_shares(action: str, values: Array, lengths_R: Array) -> dict[str, Array]:
    """Computes the share [R] of each action that is neither rare nor nearly constant."""
    row_of_entry = np.repeat(np.arange(len(lengths_R)), lengths_R)
    shares = {}
    for value, count in zip(*np.unique(values, return_counts=True), strict=True):
        if 0.01 < count / len(values) < 0.99:
            counts_R = np.bincount(row_of_entry, values == value, len(lengths_R))
            shares[f"{action} share of row {value}"] = counts_R / np.maximum(lengths_R, 1)
    return shares


def build_features(train: Chunk, test: Chunk, schema: Schema) -> Features:
    """Builds the trees' features of training and test rows, attributes first."""
    columns: list[tuple[Array, Array]] = []
    num_attributes = 0
    for group in (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM):
        for name in schema.fields(group):
            if name in schema.scalars:
                index = schema.scalars.index(name)
                ids = train.scalars_CR[index], test.scalars_CR[index]
                columns += _id_columns(*ids, train.labels_R)
        if group is Group.ATTRIBUTE:
            num_attributes = len(columns)
    train_RF, test_RF = (np.stack([pair[part] for pair in columns], axis=1) for part in (0, 1))
    return Features(
        np.hstack([train_RF, train.numeric_RN]),
        np.hstack([test_RF, test.numeric_RN]),
        num_attributes,
    )


def _id_columns(train_R: Array, test_R: Array, labels_R: Array) -> list[tuple[Array, Array]]:
    """Makes features of an id column.

    Few ids stay as they are. Many become smoothed click rates, those of training rows from the
    other folds, and their log counts.
    """
    num_ids = int(max(train_R.max(), test_R.max())) + 1
    if num_ids <= FEW_IDS:
        return [(train_R, test_R)]
    fold_R = np.random.default_rng(0).integers(0, NUM_FOLDS, len(train_R))
    rates_R = np.zeros(len(train_R))
    for fold in range(NUM_FOLDS):
        held_out_R = fold_R == fold
        rates = _smoothed_rates(train_R[~held_out_R], labels_R[~held_out_R], num_ids)
        rates_R[held_out_R] = rates[train_R[held_out_R]]
    log_counts = np.log1p(np.bincount(train_R, minlength=num_ids))
    test_rates_R = _smoothed_rates(train_R, labels_R, num_ids)[test_R]
    return [(rates_R, test_rates_R), (log_counts[train_R], log_counts[test_R])]


def _smoothed_rates(ids_R: Array, labels_R: Array, num_ids: int) -> Array:
    """Computes the smoothed click rate of each id."""
    clicks, rows = np.bincount(ids_R, labels_R, num_ids), np.bincount(ids_R, minlength=num_ids)
    rates: Array = (clicks + SMOOTHING * labels_R.mean()) / (rows + SMOOTHING)
    return rates


def predict_from_attributes(
    attributes: tuple[Array, Array], target_R: Array, old_R: Array, users_R: Array
) -> tuple[Array, Array]:
    """Predicts a statistic of histories from attributes.

    Old training rows are predicted from the other users' folds, all other rows from old users.

    Args:
        attributes: of training and test rows, [R, A] each.
        target_R: the statistic of training rows.
        old_R: whether a training row is an old user's.
        users_R: hash of each training row's user.

    Returns:
        Predictions [R] of training and of test rows.
    """
    fold_R = users_R % NUM_FOLDS
    is_first_R = np.zeros(len(users_R), dtype=bool)
    is_first_R[np.unique(users_R, return_index=True)[1]] = True

    def fit(rows_R: Array) -> Any:
        model = HistGradientBoostingRegressor(
            max_iter=200, learning_rate=0.05, max_leaf_nodes=15, min_samples_leaf=30, random_state=0
        )
        chosen_R = rows_R & is_first_R
        return model.fit(attributes[0][chosen_R], target_R[chosen_R])

    model = fit(old_R)
    train_R: Array = model.predict(attributes[0])
    for fold in range(NUM_FOLDS):
        held_out_R = old_R & (fold_R == fold)
        held_out = attributes[0][held_out_R]
        train_R[held_out_R] = fit(old_R & (fold_R != fold)).predict(held_out)
    return train_R, model.predict(attributes[1])


def new_user_auc(features: tuple[Array, Array], train: Chunk, test: Chunk) -> str:
    """Trains click models with several seeds; formats the mean of new users' AUC, and each.

    Args:
        features: of training and test rows, [R, F] each.
        train: training rows.
        test: test rows.
    """
    aucs = []
    new_R = test.is_new_R
    for seed in range(NUM_SEEDS):
        model = HistGradientBoostingClassifier(
            max_iter=300,
            learning_rate=0.05,
            max_leaf_nodes=15,
            min_samples_leaf=50,
            l2_regularization=5,
            max_features=0.3,
            random_state=seed,
        )
        scores_R = model.fit(features[0], train.labels_R).predict_proba(features[1])[:, 1]
        aucs.append(roc_auc_score(test.labels_R[new_R], scores_R[new_R]))
    return f"{np.mean(aucs):.4f} ({', '.join(f'{value:.4f}' for value in aucs)})"


def measure_explained_histories(
    features: Features, train: Chunk, test: Chunk, schema: Schema
) -> tuple[list[tuple[Array, Array]], list[tuple[Array, Array]]]:
    """Prints R^2 of hidden histories from attributes; returns predicted and real statistics."""
    real, predicted = [], []
    statistics, test_statistics = (
        history_statistics(train, schema),
        history_statistics(test, schema),
    )
    click.echo("R^2 of hidden histories from attributes")
    for name, target_R in statistics.items():
        guess = predict_from_attributes(
            features.attributes, target_R, ~train.is_new_R, train.users_R
        )
        truth = test_statistics.get(name, np.zeros(len(test)))
        known_R = test.is_new_R & ~test.is_cold_R
        click.echo(f"  {name}: {r2_score(truth[known_R], guess[1][known_R]):.3f}")
        predicted.append(guess)
        real.append((target_R, truth))
    return predicted, real


@click.command(cls=ToolCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_path",
    type=LOCAL_PATH,
    required=True,
    help="As for mail-torchrec train.",
)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def main(config_path: Path, overrides: tuple[str, ...]) -> None:
    """Bound the gain for new users: what attributes tell of histories, and histories of clicks.

    \b
    python tools/attribute_value.py --config launch/configs/kuairand.yaml data.root=FOLDER
    """  # noqa: D301
    # The oracle gives hidden histories back, so that they can be compared.
    config = load_config(config_path, [*overrides, "data.cold_start.oracle=true"])
    schema, paths = config.schema_, [config.data.path(part) for part in _parts(config)]
    source = Source(paths[0], schema)
    encoders = fit_encoders(source, schema, config.data.cold_start, progress=True)
    train, test = (read_rows(path, config, encoders) for path in paths)
    features = build_features(train, test, schema)
    predicted, real = measure_explained_histories(features, train, test, schema)
    click.echo(f"AUC of new test rows, mean of {NUM_SEEDS} seeds (each)")
    for title, columns in (
        ("attributes, context, item", []),
        ("with predicted histories", predicted),
        ("with real histories", real),
    ):
        auc = new_user_auc(features.with_columns(columns), train, test)
        click.echo(f"  {title}: {auc}")


def _parts(config: Config) -> tuple[DataPart, DataPart]:
    return config.data.train, config.data.test


if __name__ == "__main__":
    main()
