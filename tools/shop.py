"""Invented shop of ``shop_log.py``: its users, items, impressions and events as arrays.

Clicks follow a hidden taste of the user (partly by attributes, partly his own), hidden properties
of the item (which its content vector shows, with noise), price, position and hour. Every day brings
new items and new users. Shapes: ``U`` users, ``I`` items, ``N`` impressions, ``E`` events, ``V``
versions of a catalogue, ``K`` hidden properties; ``IE``: items by elements of a vector.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

DAY, FIRST_DAY = 86_400, 1_714_521_600  # midnight of 1 May 2024 in UTC
DAYS_BEFORE, POSITIONS, MAX_HISTORY, EVENTS_PER_DAY = 14, 6, 30, 0.7
NUM_PROPERTIES, VECTOR_DIM, NUM_CATEGORIES, NUM_BRANDS = 6, 16, 12, 40
AGES, CITIES = ["18-24", "25-34", "35-49", "50+"], ["Bremen", "Hamburg", "Kassel", "Köln", "Ulm"]
ACTIONS = ["view", "click", "cart", "purchase"]
VIEW, CLICK, CART, PURCHASE = range(4)
SHOWN_PER_ROW = 2.0
"""Impressions for each row that is kept: negatives are downsampled, and carry a weight for it."""
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Catalogue:
    """Versions of users or of items, sorted by key and time of validity.

    Args:
        key_V: number of the user or item.
        from_V: second from which the version is valid.
        columns: what the version says, [V] each.
    """

    key_V: Array
    from_V: Array
    columns: dict[str, Array]

    def at(self, key_N: Array, time_N: Array) -> Array:
        """Returns the index of the version that is valid at a time, [N]."""
        order_V = (self.key_V << 32) + self.from_V
        return np.searchsorted(order_V, (key_N << 32) + time_N, side="right") - 1

    def until(self) -> pa.Array:
        """Returns the second in which each version ends, [V]; null for the last of a key."""
        ends_V = np.append(self.from_V[1:], 0)
        return pa.array(ends_V, mask=np.append(self.key_V[1:] != self.key_V[:-1], True))


class Shop:
    """Users, items and clicks of the shop.

    Args:
        rows: rows to train and test on, over all days.
        days: days of impressions.
        users: number of users, those of the later days included.
        items: number of items, those of the later days included.
        seed: of the random values.
    """

    def __init__(self, rows: int, days: int, users: int, items: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.days, self.num_users, self.num_items = days, users, items
        self.users, self.taste_UK = self._users()
        self.items, self.property_IK, self.vector_IE = self._items()
        self.impressions = self._impressions(rows)
        self.events = self._events()

    def _starts(self, count: int) -> Array:
        """Draws the second in which users or items arrive: half before the log, half in it."""
        start = FIRST_DAY - DAYS_BEFORE * DAY + self.random.integers(0, DAY, count)
        late = FIRST_DAY + self.random.integers(0, self.days * DAY, count)
        return np.sort(np.where(np.arange(count) < count // 2, start, late))

    def _versions(self, start: Array, share: float) -> tuple[Array, Array, Array]:
        """Adds a second version, hours later, to a share of the keys: (key, from, is second)."""
        keys = np.arange(len(start))
        changed = np.flatnonzero(self.random.random(len(start)) < share)
        later = start[changed] + self.random.integers(3600, 7 * DAY, len(changed))
        key = np.concatenate([keys, changed])
        since = np.concatenate([start, later])
        order = np.lexsort([since, key])
        return key[order], since[order], (np.arange(len(key)) >= len(start))[order]

    def _users(self) -> tuple[Catalogue, Array]:
        random, count = self.random, self.num_users
        age_U, city_U = random.integers(0, len(AGES), count), random.integers(0, len(CITIES), count)
        is_plus_U = random.random(count) < 0.3
        by_age, by_city = (
            random.normal(size=(len(names), NUM_PROPERTIES)) for names in (AGES, CITIES)
        )
        own_UK = random.normal(size=(count, NUM_PROPERTIES))
        taste_UK = 0.8 * by_age[age_U] + 0.4 * by_city[city_U] + 0.8 * own_UK
        key_V, from_V, moved_V = self._versions(self._starts(count), 0.1)
        city_V = (city_U[key_V] + moved_V) % len(CITIES)  # who moves keeps the taste
        columns = {"age": age_U[key_V], "city": city_V, "plus": is_plus_U[key_V]}
        return Catalogue(key_V, from_V, columns), taste_UK

    def _items(self) -> tuple[Catalogue, Array, Array]:
        random, count = self.random, self.num_items
        category_I = random.integers(0, NUM_CATEGORIES, count)
        brand_I = (category_I * 7 + random.integers(0, 6, count)) % NUM_BRANDS
        centre = random.normal(size=(NUM_CATEGORIES, NUM_PROPERTIES))
        own_IK = random.normal(size=(count, NUM_PROPERTIES))
        property_IK = 0.6 * centre[category_I] + own_IK
        shown = random.normal(size=(NUM_PROPERTIES, VECTOR_DIM)) / np.sqrt(NUM_PROPERTIES)
        noise_IE = 0.1 * random.normal(size=(count, VECTOR_DIM))
        price_I = np.exp(3 + 0.4 * property_IK[:, 0] + 0.5 * random.normal(size=count))
        key_V, from_V, reduced_V = self._versions(self._starts(count), 0.2)
        price_V = np.round(price_I[key_V] * np.where(reduced_V, 0.8, 1.0), 2)
        columns = {"category": category_I[key_V], "brand": brand_I[key_V], "price": price_V}
        vector_IE = (property_IK @ shown + noise_IE).astype(np.float32)
        return Catalogue(key_V, from_V, columns), property_IK, vector_IE

    def _impressions(self, rows: int) -> dict[str, Array]:
        """Shows items to users, and keeps all clicked impressions and some of the others."""
        random, shown = self.random, int(rows * SHOWN_PER_ROW)
        time = np.sort(FIRST_DAY + random.integers(1, self.days * DAY, shown))
        first_user = self.users.from_V[first_versions(self.users.key_V)]
        first_item = self.items.from_V[first_versions(self.items.key_V)]
        # Who and what has come lately is seen more often.
        user = (np.searchsorted(first_user, time) * random.random(shown) ** 0.7).astype(np.int64)
        item = (np.searchsorted(first_item, time) * random.random(shown) ** 0.6).astype(np.int64)
        position = random.integers(1, POSITIONS + 1, shown)
        hour = time // 3600 % 24
        price = self.items.columns["price"][self.items.at(item, time)]
        liking = (self.taste_UK[user] * self.property_IK[item]).sum(1) / np.sqrt(NUM_PROPERTIES)
        quality = self.property_IK[item, :3].sum(1)
        logit = -2.7 + 0.9 * liking + 0.7 * quality - 0.3 * np.log(price / 20)
        logit += -0.2 * (position - 1) + 0.3 * np.cos((hour - 20) / 24 * 2 * np.pi)
        clicked = random.random(shown) < 1 / (1 + np.exp(-logit))
        bought = clicked & (random.random(shown) < 1 / (1 + np.exp(1.5 - liking)))
        others = np.flatnonzero(~clicked)
        num_kept = int(np.clip(rows - clicked.sum(), 1, len(others)))
        kept = np.sort(np.append(np.flatnonzero(clicked), random.choice(others, num_kept, False)))
        columns = {"user": user, "item": item, "time": time, "position": position}
        columns |= {"clicked": clicked, "bought": bought, "price": price}
        columns = {name: values[kept] for name, values in columns.items()}
        weight = np.where(columns["clicked"], 1.0, len(others) / num_kept)
        spent = np.where(columns["bought"], columns["price"], 0.0)
        return columns | {"weight": weight, "spent": spent}

    def _events(self) -> dict[str, Array]:
        """Draws events by taste, and those that follow clicks; sorted by user and time."""
        random, last = self.random, FIRST_DAY + self.days * DAY
        first_user = self.users.from_V[first_versions(self.users.key_V)]
        first_item = self.items.from_V[first_versions(self.items.key_V)]
        expected = EVENTS_PER_DAY * (last - first_user) / DAY
        user = np.repeat(np.arange(self.num_users), random.poisson(expected))
        time = first_user[user] + (random.random(len(user)) * (last - first_user[user])).astype(int)
        choices = np.searchsorted(first_item, time, side="right")
        item, best = np.zeros(len(user), np.int64), np.full(len(user), -np.inf)
        for _ in range(4):  # of a few items that there are, the one that is liked most
            tried = (choices * random.random(len(user))).astype(np.int64)
            liking = (self.taste_UK[user] * self.property_IK[tried]).sum(1)
            item, best = np.where(liking > best, tried, item), np.maximum(liking, best)
        action = random.choice([VIEW, CART], len(user), p=[0.85, 0.15])
        parts = [{"user": user, "time": time, "item": item, "action": action}]
        for name, kind in (("clicked", CLICK), ("bought", PURCHASE)):
            rows = {key: values[self.impressions[name]] for key, values in self.impressions.items()}
            # Some follow within the second: they are not before their own impression either.
            later = random.integers(0, 60, len(rows["time"])) + 60 * (kind == PURCHASE)
            kinds = np.full(len(later), kind)
            parts.append(rows | {"time": rows["time"] + later, "action": kinds})
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        order = np.lexsort([joined["action"], joined["item"], joined["time"], joined["user"]])
        return {name: values[order] for name, values in joined.items()}

    def histories(self, user_N: Array, time_N: Array) -> tuple[Array, Array]:
        """Returns the newest events strictly before impressions: (offsets [N + 1], events [E])."""
        key_E = (self.events["user"] << 32) + self.events["time"]
        end_N = np.searchsorted(key_E, (user_N << 32) + time_N)
        start_N = np.maximum(np.searchsorted(key_E, user_N << 32), end_N - MAX_HISTORY)
        length_N = end_N - start_N
        offsets = np.insert(np.cumsum(length_N), 0, 0)
        events_E = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - start_N, length_N)
        return offsets, events_E


def first_versions(key_V: Array) -> Array:
    """Returns the index of the first version of every key."""
    return np.flatnonzero(np.insert(key_V[1:] != key_V[:-1], 0, True))
