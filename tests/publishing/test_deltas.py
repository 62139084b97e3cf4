"""Published deltas come to a follower as the versions that full exports would be."""

from pathlib import Path

import pytest

from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.publishing import follower as following
from mail_torchrec.publishing.command import publish
from mail_torchrec.publishing.follower import Follower
from mail_torchrec.publishing.store import Store
from tests.support.exported_models import version_in


def follower_of(folder: str, cache: Path) -> Follower:
    cache.mkdir()
    return Follower(Store.open(folder, "--model"), cache)


def folders(follower: Follower) -> list[str]:
    return sorted(path.name for path in follower.root.iterdir() if not path.name.startswith("."))


def publish_days(days: Path, folder: str, *items: str) -> None:
    for item in items:
        publish(days / item, folder)


def test_a_follower_makes_each_version_by_its_delta_whatever_it_has(
    days: Path, tmp_path: Path, place: str
) -> None:
    publish(days / "full/day1", place)
    early, late = (follower_of(place, tmp_path / name) for name in ("early", "late"))
    early.update()
    for item in ("delta/day2", "delta/day3"):
        publish(days / item, place)
        before = early.num_bytes
        early.update()
        assert 0 < early.num_bytes - before == stored_bytes(days / item)
        assert version_in(early.current) == version_in(days / item)
    late.update()  # a full export and two deltas at once
    expected = Scorer(days / "full/day3", threads=1)
    requests = [request for request, _ in read_golden(days / "full/day3")]
    scores = expected.run(expected.encode(requests))
    for follower in (early, late):
        assert folders(follower) == sorted(["current", version_in(days / "delta/day3")])
        scorer = Scorer(follower.current, threads=1)
        found = scorer.run(scorer.encode(requests))
        assert all((found[name] == scores[name]).all() for name in scores)
    assert publish(days / "full/day3", place).pointer.version == version_in(late.current)
    before = late.num_bytes
    late.update()  # a new chain to the version that is here
    assert late.num_bytes == before


def stored_bytes(folder: Path) -> int:
    """Bytes of a delta, and of the list of its files."""
    from mail_torchrec.publishing.items import read_item

    item = read_item(folder)
    return item.item.listing.bytes + sum(info.bytes for info in item.listing.files.values())


def test_a_delta_out_of_order_is_not_published(days: Path, tmp_path: Path) -> None:
    folder = str(tmp_path / "published")
    with pytest.raises(ValueError, match="holds no model yet, and a delta needs the version"):
        publish(days / "delta/day2", folder)
    publish(days / "full/day1", folder)
    with pytest.raises(ValueError, match="make a delta of"):
        publish(days / "delta/day3", folder)
    publish_days(days, folder, "delta/day2", "delta/day3")
    with pytest.raises(ValueError, match="an earlier one is of no use there"):
        publish(days / "delta/day2", folder)
    assert publish(days / "delta/day3", folder).num_files == 0  # twice: nothing to do


def test_a_delta_that_is_refused_changes_nothing_and_is_tried_again(
    days: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "published")
    publish(days / "full/day1", folder)
    follower = follower_of(folder, tmp_path / "cache")
    follower.update()
    publish_days(days, folder, "delta/day2")

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("a full export is due")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="a full export is due"):
        patch.setattr(following, "apply_delta", refuse)
        follower.update()
    assert version_in(follower.current) == version_in(days / "full/day1")
    before = follower.num_bytes
    follower.update()
    assert version_in(follower.current) == version_in(days / "delta/day2")
    assert follower.num_bytes == before  # what had been downloaded was kept
