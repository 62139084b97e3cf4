"""Value of ids, other columns and content vectors of items for new items, in AUC.

New items are those of the configured rule, or else items that are held out by a hash of their ids.
Trees without ids are fitted on the training rows of the other items. Those with ids also see rows
of the new ones, as if these were no longer new: the training rows of held-out items, or, as
training has few or none, the test rows that other users have of the rule's.

Shape: ``R`` rows, ``E`` elements of a vector.
"""

from dataclasses import dataclass

import numpy as np

from mail_torchrec.data.reading.chunk import Chunk
from mail_torchrec.data.schema.schema import Group, Schema
from mail_torchrec.diagnose.features import (
    HISTORY_PARTS,
    FeatureGroup,
    Features,
    Floats,
    Ints,
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
from mail_torchrec.diagnose.sampled_rows import (
    MIN_CLICKED,
    SampledRows,
    check_labels,
    target_item,
)
from mail_torchrec.diagnose.trees import MeasuredScores, fit_scores
from mail_torchrec.reporting.intervals import Interval

HELD_OUT = 0.2
"""Share of items that are held out."""
MIN_ITEMS = 20
"""New items that are measured on, at least."""
USER, COLUMNS = "user and context", "item's other columns"
CONTENT, KNOWN = "content vectors", "item known"
_USER = (FeatureGroup.CONTEXT, FeatureGroup.ATTRIBUTES, FeatureGroup.HISTORY)

Places = Ints | slice
"""Rows, by their indices [rows] or as a slice."""


@dataclass(frozen=True)
class NewItemValue:
    """AUCs on new items' test rows, and differences of them, with 95 % intervals over users.

    Args:
        num_rows: rows that were measured.
        num_items: new items in them.
        aucs: by model.
        columns: gain of the item's other columns over user and context.
        content: gain of content vectors beside these; None without vectors.
        known: gain of ids beside all of this: what items lack while they are new.
        why_none: the reason where there is no answer; everything else is empty then.
        rule: the rule for new items in words; None where they were held out by a hash.
    """

    num_rows: int = 0
    num_items: int = 0
    aucs: dict[str, Interval] | None = None
    columns: Interval | None = None
    content: Interval | None = None
    known: Interval | None = None
    why_none: str | None = None
    rule: str | None = None


@dataclass(frozen=True)
class NewItemRows:
    """Rows that trees are fitted and measured on.

    Args:
        item: column of the item's id.
        test: test rows of new items.
        others: training rows of the other items.
        known: training rows by which the items are known, and the places in ``test`` that may be
            scored by them: rows of other users.
        num_items: new items.
    """

    item: str
    test: Chunk
    others: Chunk
    known: list[tuple[Chunk, Places]]
    num_items: int


def value_for_new_items(sample: SampledRows) -> NewItemValue:
    """Fits the trees and measures them.

    Raises:
        ValueError: held-out items' test rows have too few clicks.
    """
    chosen = new_item_rows(sample)
    if isinstance(chosen, str):
        return NewItemValue(why_none=chosen, rule=sample.item_rule)
    test = chosen.test
    measured = MeasuredScores(test.labels_R, test.users_R)
    cold, cold_rows = _features(chosen.others, test, sample.schema, chosen.item)
    models: dict[str, tuple[FeatureGroup, ...]] = {
        USER: _USER,
        COLUMNS: (*_USER, FeatureGroup.ITEM),
    }
    if cold.has(FeatureGroup.CONTENT):
        models[CONTENT] = (*_USER, FeatureGroup.ITEM, FeatureGroup.CONTENT)
    for name, parts in models.items():
        measured.add(name, fit_scores(cold, parts, cold_rows))
    measured.add(KNOWN, _score_known(chosen, sample.schema))
    best = CONTENT if CONTENT in models else COLUMNS
    return NewItemValue(
        measured.num_rows,
        chosen.num_items,
        {name: measured.auc(name) for name in (*models, KNOWN)},
        measured.gain(COLUMNS, USER),
        measured.gain(CONTENT, COLUMNS) if CONTENT in models else None,
        measured.gain(KNOWN, best),
        rule=sample.item_rule,
    )


def new_item_rows(sample: SampledRows) -> NewItemRows | str:
    """Chooses the new items and their rows; returns the reason where there are too few.

    Args:
        sample: rows of training and test.

    Raises:
        ValueError: held-out items' test rows have too few clicks.
    """
    item = sample.item or target_item(sample.schema)
    place = sample.schema.scalars.index(item)
    train_R, test_R = sample.train.scalars_CR[place], sample.test.scalars_CR[place]
    by_rule = sample.is_new_item_R is not None
    if sample.is_new_item_R is not None:
        is_new_R, name = sample.is_new_item_R, f"the new items ({sample.item_rule})"
    else:  # of items that training has not, nothing can be known
        is_new_R = is_held_out(test_R, HELD_OUT) & np.isin(test_R, train_R)
        name = f"the held-out {HELD_OUT:.0%} items"
    test = sample.test.take(np.flatnonzero(is_new_R))
    items = np.unique(test.scalars_CR[place])
    if len(items) < MIN_ITEMS:
        return (
            f"{len(items)} items of {name} are in the test rows that were read, and {MIN_ITEMS} "
            "are needed"
        )
    num_clicked = int(np.count_nonzero(test.labels_R))
    if by_rule and min(num_clicked, len(test) - num_clicked) < MIN_CLICKED:
        return f"{name} have {num_clicked} clicks in {len(test):,} test rows, which is too few"
    check_labels(test.labels_R, f"the {len(test):,} test rows of {name}", sample.schema)
    is_other_R = ~np.isin(train_R, items) if by_rule else ~is_held_out(train_R, HELD_OUT)
    others = sample.train.take(np.flatnonzero(is_other_R))
    where = f"the {len(others):,} training rows of the other items"
    check_labels(others.labels_R, where, sample.schema)
    known: list[tuple[Chunk, Places]] = [(sample.train, slice(None))]
    if by_rule:
        known = _with_other_users(sample.train, test)
    return NewItemRows(item, test, others, known, len(items))


def _with_other_users(train: Chunk, test: Chunk) -> list[tuple[Chunk, Places]]:
    """Adds to the training rows one half of the test users' rows, to score the other half's."""
    is_first_R = is_held_out(test.users_R, 0.5)
    halves = np.flatnonzero(is_first_R), np.flatnonzero(~is_first_R)
    return [
        (Chunk.concatenate([train, test.take(fitted)]), scored)
        for fitted, scored in (halves, halves[::-1])
        if len(scored)
    ]


def _score_known(chosen: NewItemRows, schema: Schema) -> Floats:
    """Scores the test rows [R] by trees that know the items."""
    parts = (
        *_USER,
        FeatureGroup.ITEM,
        FeatureGroup.CONTENT,
        FeatureGroup.ITEM_ID,
        FeatureGroup.HISTORY_ITEM,
    )
    scores_R = np.zeros(len(chosen.test))
    for train, places in chosen.known:
        features, rows = _features(train, chosen.test.take(places), schema, chosen.item)
        scores_R[places] = fit_scores(features, parts, rows)
    return scores_R


def _features(train: Chunk, test: Chunk, schema: Schema, item: str) -> tuple[Features, Rows]:
    rows = concatenated(train, test, schema)
    features = Features(rows.num_train)
    add_columns(features, rows, item)
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
