"""A world of days: users and items come and go, histories grow, tastes drift, truth is known."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score

from mail_torchrec.cli import main
from mail_torchrec.synthetic.daily_world import DailyWorld
from mail_torchrec.synthetic.daily_writer import write_days
from mail_torchrec.synthetic.settings import DailyWorldSettings

SMALL = DailyWorldSettings(days=4, users=600, items=60, chunk_values=12_000, new_items=0.1)
NEW_ITEMS, NEW_USERS = 6, 48  # a day
DAYS = [f"day=2024-05-0{number}" for number in range(1, 5)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("days")
    write_days(SMALL, out)
    return out


@pytest.fixture(scope="module")
def days(world: Path) -> list[pa.Table]:
    """The rows of each day."""
    assert sorted(path.name for path in world.glob("day=*")) == DAYS
    return [pq.read_table(world / day / "part-00000.parquet") for day in DAYS]


def first_day(item: int) -> int:
    """The first day that can show an item, by the number its id was made of."""
    number = item * pow(0x2545F4914F6CDD1D, -1, 2**62) % 2**62 - 1
    return 0 if number < SMALL.items else 1 + (number - SMALL.items) // NEW_ITEMS


def test_a_world_of_more_days_begins_with_the_same_ones(world: Path, tmp_path: Path) -> None:
    write_days(SMALL.model_copy(update={"days": 2}), tmp_path / "two")
    write_days(SMALL.model_copy(update={"days": 1, "seed": 1}), tmp_path / "other")
    for day in DAYS[:2]:
        [file] = (tmp_path / "two" / day).iterdir()
        assert file.read_bytes() == (world / day / file.name).read_bytes()
    [file] = (tmp_path / "other" / DAYS[0]).iterdir()
    assert file.read_bytes() != (world / DAYS[0] / file.name).read_bytes()


def test_items_come_on_their_day_and_never_return(days: list[pa.Table]) -> None:
    shown = [set(table["item_id"].to_pylist()) for table in days]
    assert max(map(len, shown)) <= SMALL.items
    for day, items in enumerate(shown):
        assert {first_day(item) for item in items} <= set(range(day + 1))
        assert any(first_day(item) == day for item in items)
    left = [item for item in shown[0] if item not in shown[1]]
    assert left and not set(left) & (shown[2] | shown[3])


def histories(table: pa.Table) -> dict[int, list[tuple[int, int]]]:
    """The history of each user of a day, with actions; the same in all rows."""
    columns = (table[name].to_pylist() for name in ("user_id", "history", "history_actions"))
    found: dict[int, list[tuple[int, int]]] = {}
    for user, items, actions in zip(*columns, strict=True):
        history = list(zip(items, actions, strict=True))
        assert found.setdefault(user, history) == history
    return found


def continues(before: list[Any], after: list[Any]) -> bool:
    """Whether a history is an earlier one, or the newest part of it, with new events behind."""
    return any(after[: len(before) - cut] == before[cut:] for cut in range(len(before) + 1))


def test_histories_grow_by_what_users_did_and_show_no_day_of_their_own(
    days: list[pa.Table],
) -> None:
    seen: dict[int, list[tuple[int, int]]] = {}
    num_new = []
    for day, table in enumerate(days):
        of_users = histories(table)
        assert all(first_day(i) < max(day, 1) for events in of_users.values() for i, _ in events)
        both = of_users.keys() & seen.keys()
        # An earlier day always brought events, and only what was cut at the old end is missing.
        kept = [user for user in both if len(of_users[user]) < SMALL.max_history]
        assert all(of_users[user][: len(seen[user])] == seen[user] for user in kept)
        assert all(continues(seen[user], of_users[user]) for user in both)
        assert day == 0 or sum(of_users[user] != seen[user] for user in both) > len(both) * 0.99
        new = {user for user, events in of_users.items() if not events}
        assert day == 0 or not new & seen.keys()
        num_new.append(len(new))
        seen |= of_users
    assert num_new == [0, NEW_USERS, NEW_USERS, NEW_USERS]


def test_the_truth_is_that_of_the_rows(world: Path, days: list[pa.Table]) -> None:
    known: set[int] = set()
    for record, table in zip(
        json.loads((world / "world.json").read_text())["days"], days, strict=True
    ):
        probability, click = (table[name].to_numpy() for name in ("click_probability", "is_click"))
        assert abs(click.mean() - probability.mean()) < 4 * np.sqrt(0.25 / len(click))
        items = table["item_id"].to_pylist()
        is_new = {
            "users": np.array([not history for history in table["history"].to_pylist()]),
            "items": np.array([item not in known for item in items]),
        }
        best = dict(expected(is_new, probability, click))
        assert record["best_auc"] == pytest.approx(best)
        assert record["rows"] == len(table)
        assert record["new_items"] == len(set(items) - known)
        known |= set(items)


def expected(
    is_new: dict[str, np.ndarray], probability: np.ndarray, click: np.ndarray
) -> Iterator[tuple[str, float | None]]:
    """Yields the AUC of each cohort by scikit-learn; None where it has no rows."""
    yield "all", roc_auc_score(click, probability)
    for kind, new in is_new.items():
        for name, rows in ((f"new_{kind}", new), (f"old_{kind}", ~new)):
            auc = roc_auc_score(click[rows], probability[rows]) if rows.any() else None
            yield name, auc


@pytest.mark.parametrize("drift", [0.0, 0.36])
def test_tastes_drift_by_their_share_of_the_variance(drift: float) -> None:
    settings = DailyWorldSettings(
        users=2000, items=2, categories=2000, min_history=0, max_history=1, drift=drift, new_users=0
    )
    world = DailyWorld(settings)
    before = world.items.centres_CK, world.users.personal_UK
    world.advance()
    after = world.items.centres_CK, world.users.personal_UK
    for old, new in zip(before, after, strict=True):
        correlation = np.corrcoef(old.ravel(), new.ravel())[0, 1]
        assert correlation == pytest.approx(np.sqrt(1 - drift), abs=0.02)
        assert new.std() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--days", "2", "train_days=3"], "train_days"),
        (["--days", "2", "min_history=60"], "min_history should be at most max_history"),
        (["--days", "2", "days=3"], "leave out days="),
        (["--days", "0"], "0 is not in the range"),
        (["drift=0.5"], "drift"),
    ],
)
def test_settings_of_the_other_world_are_refused(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = CliRunner().invoke(main, ["synthesize", "--out", str(tmp_path / "w"), *arguments])
    assert done.exit_code != 0 and message in done.output
    assert not (tmp_path / "w").exists()


def test_days_are_not_mixed_with_another_world(world: Path) -> None:
    with pytest.raises(ValueError, match="exists already"):
        write_days(SMALL, world)
