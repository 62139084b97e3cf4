"""Value of ids, other columns and content vectors of items for new items, in AUC.

Items are held out by a hash of their ids. Trees without ids are fitted on the rows of the other
items; those with ids also on the held-out ones', as if these were no longer new. Both are measured
on the test rows of the held-out items.

Shape: ``R`` rows, ``E`` elements of a vector.
"""

from dataclasses import dataclass

import numpy as np

from mail_torchrec.data.reading.chunk import Chunk
from mail_torchrec.data.schema.schema import Group
from mail_torchrec.diagnose.features import (
    HISTORY_PARTS,
    FeatureGroup,
    Features,
    Floats,
    Rows,
    add_columns,
    concatenated,
)
from mail_torchrec.diagnose.histories import (
    Sequence,
    add_item_factors,
    add_matches,
    add_statistics,
    read_sequences,
    statistics,
)
from mail_torchrec.diagnose.new_users import is_held_out
from mail_torchrec.diagnose.sampled_rows import SampledRows, check_labels, target_item
from mail_torchrec.diagnose.trees import MeasuredScores, fit_scores
from mail_torchrec.reporting.intervals import Interval

HELD_OUT = 0.2
"""Share of items that are held out."""
MIN_ITEMS = 20
"""Held-out items that are measured on, at least."""
USER, COLUMNS = "user and context", "item's other columns"
CONTENT, KNOWN = "content vectors", "item known"
_USER = (FeatureGroup.CONTEXT, FeatureGroup.ATTRIBUTES, FeatureGroup.HISTORY)


@dataclass(frozen=True)
class NewItemValue:
    """AUCs on held-out items' test rows, and differences of them, with 95 % intervals over users.

    Args:
        num_rows: rows that were measured.
        num_items: held-out items in them.
        aucs: by model.
        columns: gain of the item's other columns over user and context.
        content: gain of content vectors beside these; None without vectors.
        known: gain of ids beside all of this: what items lack while they are new.
        why_none: the reason where there is no answer; everything else is empty then.
    """

    num_rows: int = 0
    num_items: int = 0
    aucs: dict[str, Interval] | None = None
    columns: Interval | None = None
    content: Interval | None = None
    known: Interval | None = None
    why_none: str | None = None


def value_for_new_items(sample: SampledRows) -> NewItemValue:
    """Fits the trees and measures them.

    Raises:
        ValueError: held-out items' test rows have too few clicks.
    """
    schema = sample.schema
    place = schema.scalars.index(target_item(schema))
    train_R, test_R = sample.train.scalars_CR[place], sample.test.scalars_CR[place]
    is_known_R = np.isin(test_R, train_R)  # of others, nothing can be known
    test = sample.test.take(np.flatnonzero(is_held_out(test_R, HELD_OUT) & is_known_R))
    num_items = len(np.unique(test.scalars_CR[place]))
    if num_items < MIN_ITEMS:
        return NewItemValue(
            why_none=f"{num_items} items of the held-out {HELD_OUT:.0%} are in the test rows that "
            f"were read, and {MIN_ITEMS} are needed"
        )
    check_labels(
        test.labels_R, f"the {len(test):,} test rows of the held-out {HELD_OUT:.0%} items", schema
    )
    others = sample.train.take(np.flatnonzero(~is_held_out(train_R, HELD_OUT)))
    check_labels(others.labels_R, f"the {len(others):,} training rows of the other items", schema)
    measured = MeasuredScores(test.labels_R, test.users_R)
    cold, cold_rows = _features(others, test, sample)
    models: dict[str, tuple[FeatureGroup, ...]] = {
        USER: _USER,
        COLUMNS: (*_USER, FeatureGroup.ITEM),
    }
    if cold.has(FeatureGroup.CONTENT):
        models[CONTENT] = (*_USER, FeatureGroup.ITEM, FeatureGroup.CONTENT)
    for name, parts in models.items():
        measured.add(name, fit_scores(cold, parts, cold_rows))
    warm, warm_rows = _features(sample.train, test, sample)
    everything = (
        *_USER,
        FeatureGroup.ITEM,
        FeatureGroup.CONTENT,
        FeatureGroup.ITEM_ID,
        FeatureGroup.HISTORY_ITEM,
    )
    measured.add(KNOWN, fit_scores(warm, everything, warm_rows))
    best = CONTENT if CONTENT in models else COLUMNS
    return NewItemValue(
        measured.num_rows,
        num_items,
        {name: measured.auc(name) for name in (*models, KNOWN)},
        measured.gain(COLUMNS, USER),
        measured.gain(CONTENT, COLUMNS) if CONTENT in models else None,
        measured.gain(KNOWN, best),
    )


def _features(train: Chunk, test: Chunk, sample: SampledRows) -> tuple[Features, Rows]:
    rows = concatenated(train, test, sample.schema)
    features = Features(rows.num_train)
    add_columns(features, rows)
    sequences = read_sequences(rows)
    add_item_factors(features, sequences)
    add_statistics(features, statistics(sequences, rows), sequences, *HISTORY_PARTS)
    add_matches(features, sequences, rows)
    _add_content_fit(features, sequences, rows)
    return features, rows


def _add_content_fit(features: Features, sequences: list[Sequence], rows: Rows) -> None:
    """Adds the cosine of the target item's vector and the mean vector of a history's items."""
    for name in rows.schema.vectors(Group.ITEM):
        vectors_RE = rows.rows.vectors[name].astype(np.float64)
        for sequence in sequences:
            means_RE = _mean_vectors(sequence, vectors_RE)
            lengths_R = np.linalg.norm(means_RE, axis=1) * np.linalg.norm(vectors_RE, axis=1)
            products_R = np.einsum("re,re->r", means_RE, vectors_RE)
            features.add(FeatureGroup.CONTENT, products_R / np.maximum(lengths_R, 1e-9))


def _mean_vectors(sequence: Sequence, vectors_RE: Floats) -> Floats:
    """Returns the mean vector [R, E] of each history; items that are no row's target count as 0."""
    row_of_item = np.full(len(sequence.factors_IK), -1, np.int64)
    row_of_item[sequence.target_R] = np.arange(len(vectors_RE))
    vectors_IE = np.where((row_of_item >= 0)[:, None], vectors_RE[row_of_item], 0)
    return sequence.mean(vectors_IE)
