"""Value of histories, attributes and predicted histories for new users, in AUC.

Users are held out by a hash. Trees are fitted on the rows of the others, and measured on the test
rows of held-out users who have a history, which are scored with it and as if they were new.

Shape: ``R`` rows.
"""

from dataclasses import dataclass, replace

import numpy as np

from mail_torchrec.data.ids.hashing import mix64
from mail_torchrec.data.parquet.arrow import Bools
from mail_torchrec.data.reading.chunk import Chunk
from mail_torchrec.diagnose.features import (
    HISTORY_PARTS,
    FeatureGroup,
    Features,
    Rows,
    add_columns,
    concatenated,
)
from mail_torchrec.diagnose.histories import (
    add_item_factors,
    add_matches,
    add_statistics,
    filled,
    last_rows,
    mean_statistics,
    read_sequences,
    statistics,
)
from mail_torchrec.diagnose.predicted_histories import MIN_USERS, predict_histories
from mail_torchrec.diagnose.sampled_rows import SampledRows, check_labels
from mail_torchrec.diagnose.trees import MeasuredScores, fit_scores, fit_trees
from mail_torchrec.reporting.intervals import Interval

HELD_OUT = 0.4
"""Share of users who are held out."""
_ITEM = (FeatureGroup.CONTEXT, FeatureGroup.ITEM_ID, FeatureGroup.ITEM, FeatureGroup.CONTENT)
_PREDICTED = (FeatureGroup.PREDICTED, FeatureGroup.PREDICTED_ITEM)

BASE, ATTRIBUTES, NO_CROSSES = "item and context", "attributes", "attributes without crosses"
HISTORIES, PREDICTED, BOTH = "histories", "predicted histories", "attributes and histories"
EMPTY = "attributes and histories, taken away"
MEAN_FILL, VIRTUAL = "the same, mean histories instead", "the same, predicted histories instead"


@dataclass(frozen=True)
class NewUserValue:
    """AUCs on held-out users' test rows, and differences of them, with 95 % intervals over users.

    Args:
        num_rows: rows that were measured.
        num_users: their users.
        aucs: by model.
        histories: gain of histories beside attributes: what an oracle has over a new user's model.
        attributes: gain of attributes over item and context.
        predicted: gain of predicted histories beside attributes.
        crosses: gain of attributes that may interact with the item over those that may not.
        empty_input: gain of trees that never saw histories over those whose training rows had them
            (but for the share that the configuration hides), where there are none.
        mean_fill: gain of these trees where they are given the mean of histories instead.
        virtual: gain of predicted histories over that mean, for these trees.
        learnt: gain of trees that never saw histories over these, by the better filling.
        explained: R^2 of statistics of histories by attributes, by name.
        left_out: attributes that name users.
        why_none: the reason where there is no answer; everything else is empty then.
    """

    num_rows: int = 0
    num_users: int = 0
    aucs: dict[str, Interval] | None = None
    histories: Interval | None = None
    attributes: Interval | None = None
    predicted: Interval | None = None
    crosses: Interval | None = None
    empty_input: Interval | None = None
    mean_fill: Interval | None = None
    virtual: Interval | None = None
    learnt: Interval | None = None
    attribute_share: Interval | None = None
    """Attributes' gain over item and context as a share of that of histories."""
    recovered: Interval | None = None
    """Predicted histories' gain as a share of that of histories."""
    explained: dict[str, float] | None = None
    left_out: tuple[str, ...] = ()
    why_none: str | None = None


def value_for_new_users(sample: SampledRows, hidden_share: float) -> NewUserValue:
    """Fits the trees and measures them.

    Args:
        sample: rows of training and test.
        hidden_share: of the users whose histories training hides.

    Raises:
        ValueError: held-out users' test rows have too few clicks.
    """
    schema = sample.schema
    train, test = _split(sample)
    where = f"the {len(test):,} test rows with a history of the held-out {HELD_OUT:.0%} of users"
    check_labels(test.labels_R, where, schema)
    check_labels(train.labels_R, f"the {len(train):,} training rows of the other users", schema)
    rows = concatenated(train, test, schema)
    features = Features(rows.num_train)
    left_out = add_columns(features, rows)
    if len(last_rows(rows, rows.num_behaviours_R > 0)) < MIN_USERS:
        return NewUserValue(
            why_none=f"fewer than {MIN_USERS} of the training users that were read have a history"
        )
    sequences = read_sequences(rows)
    known = statistics(sequences, rows)
    add_item_factors(features, sequences)
    add_statistics(features, known, sequences, FeatureGroup.HISTORY, FeatureGroup.HISTORY_ITEM)
    add_matches(features, sequences, rows)
    if not features.has(FeatureGroup.ATTRIBUTES):
        return _without_attributes(features, rows, tuple(left_out))
    predicted = predict_histories(features, known, rows)
    fills = {
        MEAN_FILL: filled(features, mean_statistics(known, rows), sequences),
        VIRTUAL: filled(features, predicted.statistics, sequences),
    }
    add_statistics(features, predicted.statistics, sequences, *_PREDICTED)
    found = _measure(features, fills, rows, hidden_share)
    return replace(found, explained=predicted.explained, left_out=tuple(left_out))


def is_held_out(users_R: np.ndarray, share: float) -> Bools:
    """Chooses rows of users, or of items, by a hash of their hash.

    Args:
        users_R: hash of each row's user or item, [R].
        share: of them to choose.
    """
    mixed_R = users_R.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    chosen_R: Bools = (mixed_R >> np.uint64(11)) < np.uint64(int(share * 2**53))
    return chosen_R


def is_taken_away(users_R: np.ndarray, share: float) -> Bools:
    """Chooses rows of users whose histories are taken away, whether they are held out or not.

    Args:
        users_R: hash of each row's user, [R].
        share: of the users to choose.
    """
    return is_held_out(mix64(users_R.view(np.uint64)), share)  # a hash of its own


def _split(sample: SampledRows) -> tuple[Chunk, Chunk]:
    """Returns training rows of users who are not held out, test rows with history of the others."""
    train, test = sample.train, sample.test
    lengths = [test.lists[name].lengths for name in sample.schema.sequences]
    has_history_R = np.sum(lengths, axis=0) > 0
    return (
        train.take(np.flatnonzero(~is_held_out(train.users_R, HELD_OUT))),
        test.take(np.flatnonzero(is_held_out(test.users_R, HELD_OUT) & has_history_R)),
    )


def _without_attributes(features: Features, rows: Rows, left_out: tuple[str, ...]) -> NewUserValue:
    test = rows.rows.take(slice(rows.num_train, None))
    measured = MeasuredScores(test.labels_R, test.users_R)
    measured.add(BASE, fit_scores(features, _ITEM, rows))
    measured.add(HISTORIES, fit_scores(features, (*_ITEM, *HISTORY_PARTS), rows))
    return NewUserValue(
        measured.num_rows,
        measured.num_users,
        {name: measured.auc(name) for name in (BASE, HISTORIES)},
        histories=measured.gain(HISTORIES, BASE),
        left_out=left_out,
    )


def _measure(
    features: Features, fills: dict[str, Features], rows: Rows, hidden_share: float
) -> NewUserValue:
    """Fits and measures all models.

    Args:
        features: with predicted histories too.
        fills: the features without these, with other histories in place of the real ones.
        rows: training and test rows.
        hidden_share: of the users whose histories training hides.
    """
    test = rows.rows.take(slice(rows.num_train, None))
    measured = MeasuredScores(test.labels_R, test.users_R)
    attributes = (*_ITEM, FeatureGroup.ATTRIBUTES)
    both = (*attributes, *HISTORY_PARTS)
    measured.add(BASE, fit_scores(features, _ITEM, rows))
    measured.add(NO_CROSSES, fit_scores(features, attributes, rows, additive=True))
    measured.add(ATTRIBUTES, fit_scores(features, attributes, rows))
    measured.add(PREDICTED, fit_scores(features, (*attributes, *_PREDICTED), rows))
    is_empty_R = is_taken_away(rows.rows.users_R, hidden_share)
    is_empty_R[rows.num_train :] = True
    empty = features.emptied(is_empty_R)
    used_to_histories = fit_trees(empty, both, rows)
    for name, given in {EMPTY: empty, **fills}.items():
        measured.add(name, used_to_histories.score(given))
    measured.add(HISTORIES, fit_scores(features, (*_ITEM, *HISTORY_PARTS), rows))
    measured.add(BOTH, fit_scores(features, both, rows))
    best_fill = max(EMPTY, MEAN_FILL, VIRTUAL, key=lambda name: measured.auc(name).mean)
    return NewUserValue(
        measured.num_rows,
        measured.num_users,
        measured.aucs(),
        histories=measured.gain(BOTH, ATTRIBUTES),
        attributes=measured.gain(ATTRIBUTES, BASE),
        predicted=measured.gain(PREDICTED, ATTRIBUTES),
        crosses=measured.gain(ATTRIBUTES, NO_CROSSES),
        empty_input=measured.gain(ATTRIBUTES, EMPTY),
        mean_fill=measured.gain(MEAN_FILL, EMPTY),
        virtual=measured.gain(VIRTUAL, MEAN_FILL),
        learnt=measured.gain(ATTRIBUTES, best_fill),
        attribute_share=measured.share(ATTRIBUTES, HISTORIES, BASE),
        recovered=measured.share(PREDICTED, BOTH, ATTRIBUTES),
    )
