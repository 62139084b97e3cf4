"""Value of histories, attributes and predicted histories for new users, in AUC.

Users are held out by a hash. Trees are fitted on the rows of the others, and measured on the test
rows of held-out users who have a history, which are scored with it and as if they were new.

Shape: ``R`` rows.
"""

from dataclasses import dataclass

import numpy as np

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
    Sequence,
    Statistics,
    add_item_factors,
    add_matches,
    add_statistics,
    last_rows,
    read_sequences,
    statistics,
)
from mail_torchrec.diagnose.predicted_histories import MIN_USERS, predict_histories
from mail_torchrec.diagnose.sampled_rows import SampledRows, check_labels
from mail_torchrec.diagnose.trees import MeasuredScores, fit_scores
from mail_torchrec.reporting.intervals import Interval

HELD_OUT = 0.4
"""Share of users who are held out."""
_ITEM = (FeatureGroup.CONTEXT, FeatureGroup.ITEM_ID, FeatureGroup.ITEM, FeatureGroup.CONTENT)
_PREDICTED = (FeatureGroup.PREDICTED, FeatureGroup.PREDICTED_ITEM)

BASE, ATTRIBUTES, NO_CROSSES = "item and context", "attributes", "attributes without crosses"
HISTORIES, PREDICTED, BOTH = "histories", "predicted histories", "attributes and histories"
EMPTY = "attributes and histories, taken away"


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
    explained = _add_predicted(features, known, sequences, rows)
    return _measure(features, rows, explained, tuple(left_out), hidden_share)


def is_held_out(users_R: np.ndarray, share: float) -> Bools:
    """Chooses rows of users, or of items, by a hash of their hash.

    Args:
        users_R: hash of each row's user or item, [R].
        share: of them to choose.
    """
    mixed_R = users_R.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    chosen_R: Bools = (mixed_R >> np.uint64(11)) < np.uint64(int(share * 2**53))
    return chosen_R


def _split(sample: SampledRows) -> tuple[Chunk, Chunk]:
    """Returns training rows of users who are not held out, test rows with history of the others."""
    train, test = sample.train, sample.test
    lengths = [test.lists[name].lengths for name in sample.schema.sequences]
    has_history_R = np.sum(lengths, axis=0) > 0
    return (
        train.take(np.flatnonzero(~is_held_out(train.users_R, HELD_OUT))),
        test.take(np.flatnonzero(is_held_out(test.users_R, HELD_OUT) & has_history_R)),
    )


def _add_predicted(
    features: Features, known: Statistics, sequences: list[Sequence], rows: Rows
) -> dict[str, float] | None:
    """Adds predicted histories; returns how much of the real ones is explained."""
    if not features.has(FeatureGroup.ATTRIBUTES):
        return None
    predicted = predict_histories(features, known, rows)
    add_statistics(
        features,
        predicted.statistics,
        sequences,
        FeatureGroup.PREDICTED,
        FeatureGroup.PREDICTED_ITEM,
    )
    return predicted.explained


def _measure(
    features: Features,
    rows: Rows,
    explained: dict[str, float] | None,
    left_out: tuple[str, ...],
    hidden_share: float,
) -> NewUserValue:
    test = rows.rows.take(slice(rows.num_train, None))
    measured = MeasuredScores(test.labels_R, test.users_R)
    attributes = (*_ITEM, FeatureGroup.ATTRIBUTES)
    models: dict[str, tuple[FeatureGroup, ...]] = {BASE: _ITEM, HISTORIES: (*_ITEM, *HISTORY_PARTS)}
    if explained is not None:
        models |= {
            ATTRIBUTES: attributes,
            PREDICTED: (*attributes, *_PREDICTED),
            BOTH: (*attributes, *HISTORY_PARTS),
        }
    for name, parts in models.items():
        measured.add(name, fit_scores(features, parts, rows))
    if explained is None:
        return NewUserValue(
            measured.num_rows,
            measured.num_users,
            {name: measured.auc(name) for name in models},
            histories=measured.gain(HISTORIES, BASE),
            left_out=left_out,
        )
    measured.add(NO_CROSSES, fit_scores(features, attributes, rows, additive=True))
    is_empty_R = is_held_out(~rows.rows.users_R, hidden_share)  # others than the held-out users
    is_empty_R[rows.num_train :] = True
    measured.add(EMPTY, fit_scores(features.emptied(is_empty_R), models[BOTH], rows))
    names = [BASE, NO_CROSSES, ATTRIBUTES, PREDICTED, EMPTY, HISTORIES, BOTH]
    return NewUserValue(
        measured.num_rows,
        measured.num_users,
        {name: measured.auc(name) for name in names},
        histories=measured.gain(BOTH, ATTRIBUTES),
        attributes=measured.gain(ATTRIBUTES, BASE),
        predicted=measured.gain(PREDICTED, ATTRIBUTES),
        crosses=measured.gain(ATTRIBUTES, NO_CROSSES),
        empty_input=measured.gain(ATTRIBUTES, EMPTY),
        attribute_share=measured.share(ATTRIBUTES, HISTORIES, BASE),
        recovered=measured.share(PREDICTED, BOTH, ATTRIBUTES),
        explained=explained,
        left_out=left_out,
    )
