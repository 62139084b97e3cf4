"""How much could any method win for new users? A bound that owes nothing to this project's towers, by boosted trees.

    python tools/what_attributes_tell.py --config launch/configs/kuairand.yaml data.root=FOLDER

Whatever makes behaviours from attributes can only pass on what attributes say. Two questions, then:

1. How much of users' histories do their attributes explain? R^2 of history length and share of each
   action, of test users whose history is hidden, by trees trained on old users.
2. What does that help? AUC of new test rows by trees that see attributes, context and item (ids by
   their smoothed click rate); the same with histories as question 1 predicts them; the same with
   the real histories, which is the oracle's place.
"""

from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import r2_score, roc_auc_score
from tqdm import tqdm

from mail_torchrec.config import Config, load_config
from mail_torchrec.data.encoders import Encoders, fit_encoders
from mail_torchrec.data.parquet.source import Source
from mail_torchrec.data.reading.chunk import Chunk, ChunkEncoder
from mail_torchrec.data.schema.schema import Group, Schema

Array = npt.NDArray[Any]
NUM_FOLDS, NUM_SEEDS, SMOOTHING, FEW_IDS = 5, 3, 20.0, 200


def read(path: str, config: Config, encoders: Encoders) -> Chunk:
    """All rows of a folder, histories included: who is new is said by ``is_new_R``."""
    source = Source(path, config.schema_)
    encode = ChunkEncoder(
        config.schema_, encoders, config.data.cold_start, config.data.new_user_max_behaviours
    )
    groups = tqdm(source.row_groups, desc=path, unit="row group", leave=False)
    return Chunk.concatenate([encode(source.read(group), source.file(group)) for group in groups])


def history_statistics(window: Chunk, schema: Schema) -> dict[str, Array]:
    """Of each sequence its length, and of each of its actions the share; rows without history have length 0 and shares of 0."""
    found: dict[str, Array] = {}
    for sequence in schema.sequences:
        lengths = window.lists[sequence].lengths
        found[f"{sequence} length"] = lengths.astype(float)
        if (action := schema.action_of(sequence)) is not None:
            rows = np.repeat(np.arange(len(lengths)), lengths)
            actions = window.lists[action].values
            for value, count in zip(*np.unique(actions, return_counts=True), strict=True):
                if 0.01 < count / len(actions) < 0.99:
                    found[f"{action} share of row {value}"] = np.bincount(
                        rows, actions == value, len(lengths)
                    ) / np.maximum(lengths, 1)
    return found


def features(train: Chunk, test: Chunk, schema: Schema) -> tuple[Array, Array, int]:
    """Columns for the trees [rows, features] of both parts, and how many of them are user attributes."""
    columns: list[tuple[Array, Array]] = []
    for group in (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM):
        for name in schema.fields(group):
            if name in schema.scalars:
                index = schema.scalars.index(name)
                columns += _id_columns(
                    train.scalars_CR[index], test.scalars_CR[index], train.labels_R
                )
        if group is Group.ATTRIBUTE:
            num_attributes = len(columns)
    parts = [np.stack([column[part] for column in columns], axis=1) for part in (0, 1)]
    return (
        np.hstack([parts[0], train.numeric_RN]),
        np.hstack([parts[1], test.numeric_RN]),
        num_attributes,
    )


def _id_columns(train: Array, test: Array, labels: Array) -> list[tuple[Array, Array]]:
    """Few ids as they are; many as smoothed click rates, of training rows from the other folds, and their log counts."""
    num_ids = int(max(train.max(), test.max())) + 1
    if num_ids <= FEW_IDS:
        return [(train, test)]
    fold = np.random.default_rng(0).integers(0, NUM_FOLDS, len(train))
    rates = np.zeros(len(train))
    for part in range(NUM_FOLDS):
        rates[fold == part] = _rates(train[fold != part], labels[fold != part], num_ids)[
            train[fold == part]
        ]
    counts = np.log1p(np.bincount(train, minlength=num_ids))
    return [(rates, _rates(train, labels, num_ids)[test]), (counts[train], counts[test])]


def _rates(ids: Array, labels: Array, num_ids: int) -> Array:
    clicks, rows = np.bincount(ids, labels, num_ids), np.bincount(ids, minlength=num_ids)
    smoothed: Array = (clicks + SMOOTHING * labels.mean()) / (rows + SMOOTHING)
    return smoothed


def predicted(
    attributes: tuple[Array, Array], target: Array, old: Array, users: Array
) -> tuple[Array, Array]:
    """A statistic of histories as attributes tell it: old training rows from the other users' folds, all other rows from old users."""
    fold = users % NUM_FOLDS
    first_row = np.zeros(len(users), dtype=bool)
    first_row[np.unique(users, return_index=True)[1]] = True

    def fitted(rows: Array) -> Any:
        model = HistGradientBoostingRegressor(
            max_iter=200, learning_rate=0.05, max_leaf_nodes=15, min_samples_leaf=30, random_state=0
        )
        return model.fit(attributes[0][rows & first_row], target[rows & first_row])

    whole = fitted(old)
    train: Array = whole.predict(attributes[0])
    for part in range(NUM_FOLDS):
        held_out = old & (fold == part)
        train[held_out] = fitted(old & (fold != part)).predict(attributes[0][held_out])
    return train, whole.predict(attributes[1])


def auc_of_new(train: Array, labels: Array, test: Array, test_labels: Array, new: Array) -> str:
    """Mean over seeds, and each."""
    found = []
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
        scores = model.fit(train, labels).predict_proba(test)[:, 1]
        found.append(roc_auc_score(test_labels[new], scores[new]))
    return f"{np.mean(found):.4f} ({', '.join(f'{value:.4f}' for value in found)})"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    required=True,
    help="As for mail-torchrec train.",
)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def main(config_path: Path, overrides: tuple[str, ...]) -> None:
    """Bound what new users can win: what attributes tell of histories, and what that tells of clicks."""
    config = load_config(
        config_path, [*overrides, "data.cold_start.oracle=true"]
    )  # so that histories can be compared
    schema = config.schema_
    encoders = fit_encoders(
        Source(config.data.path(config.data.train), schema),
        schema,
        config.data.cold_start,
        progress=True,
    )
    train, test = (
        read(config.data.path(part), config, encoders)
        for part in (config.data.train, config.data.test)
    )
    X, X_test, num_attributes = features(train, test, schema)
    attributes = X[:, :num_attributes], X_test[:, :num_attributes]
    old, new = ~train.is_new_R, test.is_new_R
    told, real = [], []
    statistics, test_statistics = (
        history_statistics(train, schema),
        history_statistics(test, schema),
    )
    click.echo("R^2 of hidden histories from attributes")
    for name, target in statistics.items():
        told.append(predicted(attributes, target, old, train.users_R))
        real.append((target, test_statistics.get(name, np.zeros(len(test)))))
        seen = new & ~test.is_cold_R
        click.echo(f"  {name}: {r2_score(real[-1][1][seen], told[-1][1][seen]):.3f}")
    click.echo(f"AUC of new test rows, mean of {NUM_SEEDS} seeds (each)")
    for title, extra in (
        ("attributes, context, item", []),
        ("with predicted histories", told),
        ("with real histories", real),
    ):
        columns = [
            np.hstack([part, *(pair[index][:, None] for pair in extra)])
            for index, part in enumerate((X, X_test))
        ]
        click.echo(
            f"  {title}: {auc_of_new(columns[0], train.labels_R, columns[1], test.labels_R, new)}"
        )


if __name__ == "__main__":
    main()
