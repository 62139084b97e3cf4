"""Simulates a world day by day: users and items come and go, and tastes drift.

Shape letters: ``U`` users, ``N`` items, ``K`` interest dimensions, ``A`` attributes, ``C``
categories, ``H`` positions of a history, ``E`` events of several users. Everything of a day is
sampled from streams of its own, so that a world of more days begins with the same ones.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mail_torchrec.synthetic.rows import Shown, item_table, level_shares
from mail_torchrec.synthetic.settings import DailyWorldSettings
from mail_torchrec.synthetic.world import (
    Floats,
    InterestMap,
    Ints,
    Items,
    compute_affinity,
    item_vectors,
    random_stream,
    sample_attributes,
    sample_histories,
    sample_interest_map,
    user_chunks,
)

NO_ITEM = -1
"""Item number at the positions before a history's oldest event."""


@dataclass
class Population:
    """Users of a day; each of them keeps a place, which somebody else takes when they leave."""

    numbers_U: Ints
    """Numbers of the users, counted over all days."""
    attributes_UA: Ints
    personal_UK: Floats
    """The part of the interests that attributes do not decide."""
    items_UH: Ints
    """Histories, the newest event last, ``NO_ITEM`` before the oldest."""
    actions_UH: Ints

    def replace(self, at: Ints, new: "Population") -> None:
        """Puts new users in the places ``at`` ``[n]``."""
        for name, values in vars(new).items():
            getattr(self, name)[at] = values

    def add_events(self, users: Ints, lengths_U: Ints, items_E: Ints, actions_E: Ints) -> None:
        """Appends events to the histories of these users.

        Args:
            users: places of the users ``[U]``.
            lengths_U: number of their events.
            items_E: numbers of the items, end to end.
            actions_E: the action at each of these.
        """
        width = self.items_UH.shape[1]
        is_event = np.arange(lengths_U.max(initial=0)) < lengths_U[:, None]
        added_items = np.full(is_event.shape, NO_ITEM)
        added_items[is_event] = items_E
        added_actions = np.zeros_like(added_items)
        added_actions[is_event] = actions_E
        items = np.hstack([self.items_UH[users], added_items])
        actions = np.hstack([self.actions_UH[users], added_actions])
        # A stable sort by "is an event" moves the gaps before all events and keeps their order.
        newest = np.argsort(items != NO_ITEM, axis=1, kind="stable")[:, -width:]
        self.items_UH[users] = np.take_along_axis(items, newest, axis=1)
        self.actions_UH[users] = np.take_along_axis(actions, newest, axis=1)

    def histories(self, users: Ints) -> tuple[Ints, Ints, Ints]:
        """Returns lengths ``[U]``, items and actions ``[E]`` of these users' histories.

        Args:
            users: their places, [U].
        """
        is_event = self.items_UH[users] != NO_ITEM
        items_E, actions_E = self.items_UH[users][is_event], self.actions_UH[users][is_event]
        return is_event.sum(axis=1), items_E, actions_E


@dataclass
class Catalogue:
    """Items of a day; each keeps a place of a popularity, which a new item takes when it leaves."""

    numbers_N: Ints
    """Numbers of the items, counted over all days."""
    category_N: Ints
    own_NK: Floats
    popularity_N: Floats
    centres_CK: Floats
    rows: pa.Table
    """One row an item, as :func:`~.rows.item_table`."""

    def shown(self, settings: DailyWorldSettings) -> Shown:
        """Returns the items with their vectors of this day."""
        centre_NK = self.centres_CK[self.category_N]
        vectors_NK = item_vectors(settings, centre_NK, self.own_NK, self.popularity_N)
        return Shown(Items(vectors_NK, self.category_N, self.popularity_N), self.rows)


class DailyWorld:
    """The ground truth of a day, which :meth:`advance` turns into the next day's."""

    def __init__(self, settings: DailyWorldSettings) -> None:
        self.settings, self.day = settings, 0
        self.interest_map: InterestMap = sample_interest_map(settings, level_shares())
        self._num_users, self._num_items = settings.users, settings.items
        self._user_rng = random_stream(settings, "day_users", 0)
        self.users = self._new_users(np.arange(settings.users))
        self.items = self._first_items()
        self._begin_histories()

    def advance(self) -> None:
        """Goes on to the next day: users and items leave, others come, tastes drift."""
        self.day += 1
        self._user_rng = random_stream(self.settings, "day_users", self.day)
        self._replace_users()
        self._replace_items()

    def affinity(self, users: Ints, items: Items) -> Floats:
        """Computes the affinity ``[U, N]`` of users to every item.

        Args:
            users: their places, [U].
            items: of the day.
        """
        share, people = self.settings.personal_share, self.users
        decided_UK = self.interest_map(people.attributes_UA[users])
        interests_UK = np.sqrt(1 - share) * decided_UK
        interests_UK += np.sqrt(share) * people.personal_UK[users]
        return compute_affinity(interests_UK, items.vectors_NK)

    def comers(self, rng: np.random.Generator) -> Ints:
        """Samples the places of the users who come on this day; new users all do."""
        comes_U = rng.random(self.settings.users) < self.settings.active_users
        is_new_U = self.users.numbers_U >= self._num_users - self._num_new_users
        return np.flatnonzero(comes_U | is_new_U if self.day else comes_U)

    @property
    def _num_new_users(self) -> int:
        return round(self.settings.new_users * self.settings.users)

    def _new_users(self, numbers_U: Ints) -> Population:
        """Samples users without history."""
        count, rng = len(numbers_U), self._user_rng
        shape = (count, self.settings.max_history)
        return Population(
            numbers_U.copy(),
            sample_attributes(level_shares(), rng, count),
            rng.standard_normal((count, self.settings.interest_dim)),
            np.full(shape, NO_ITEM),
            np.zeros(shape, np.int64),
        )

    def _replace_users(self) -> None:
        settings, rng = self.settings, self._user_rng
        self.users.personal_UK = _drifted(self.users.personal_UK, settings.drift, rng)
        leaving = rng.permutation(settings.users)[: self._num_new_users]
        numbers = np.arange(self._num_users, self._num_users + len(leaving))
        self.users.replace(leaving, self._new_users(numbers))
        self._num_users += len(leaving)

    def _first_items(self) -> Catalogue:
        settings, rng = self.settings, random_stream(self.settings, "day_items", 0)
        popularity = np.arange(1, settings.items + 1) ** -settings.popularity_exponent
        popularity_N = rng.permutation(popularity / popularity.sum())
        centres_CK = rng.standard_normal((settings.categories, settings.interest_dim))
        numbers_N = np.arange(settings.items)
        category_N, own_NK, rows = self._new_items(numbers_N, rng)
        return Catalogue(numbers_N, category_N, own_NK, popularity_N, centres_CK, rows)

    def _new_items(
        self, numbers_N: Ints, rng: np.random.Generator
    ) -> tuple[Ints, Floats, pa.Table]:
        """Samples categories, own parts of the vectors, and rows of new items."""
        category_N = rng.integers(self.settings.categories, size=len(numbers_N))
        own_NK = rng.standard_normal((len(numbers_N), self.settings.interest_dim))
        return category_N, own_NK, item_table(self.settings, numbers_N, category_N, rng)

    def _replace_items(self) -> None:
        settings, items = self.settings, self.items
        rng = random_stream(settings, "day_items", self.day)
        items.centres_CK = _drifted(items.centres_CK, settings.drift, rng)
        count = round(settings.new_items * settings.items)
        leaving = rng.permutation(settings.items)[:count]
        numbers = np.arange(self._num_items, self._num_items + count)
        category, own, rows = self._new_items(numbers, rng)
        items.numbers_N[leaving] = numbers
        items.category_N = items.category_N.copy()
        items.category_N[leaving], items.own_NK[leaving] = category, own
        row_N = np.arange(settings.items)
        row_N[leaving] = settings.items + np.arange(count)
        items.rows = pa.concat_tables([items.rows, rows]).take(pa.array(row_N)).combine_chunks()
        self._num_items += count

    def _begin_histories(self) -> None:
        """Samples the histories that the first users have before the first day."""
        shown = self.items.shown(self.settings).items
        for users in user_chunks(self.settings, np.arange(self.settings.users)):
            affinity_UN = self.affinity(users, shown)
            history = sample_histories(self.settings, shown, affinity_UN, self._user_rng)
            self.users.add_events(users, *history)


def _drifted(values: Floats, share: float, rng: np.random.Generator) -> Floats:
    """Moves values of mean 0 and variance 1, and keeps both."""
    new = rng.standard_normal(values.shape)
    return np.asarray(np.sqrt(1 - share) * values + np.sqrt(share) * new)
