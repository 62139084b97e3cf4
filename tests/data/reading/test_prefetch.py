"""Prefetching: the same items in the same order, one of them in advance, none beyond."""

import threading

import pytest

from mail_torchrec.data.reading.prefetch import Prefetcher


@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_all_come_in_order(number: int) -> None:
    assert list(Prefetcher(lambda item: item * item, range(number))) == [
        item * item for item in range(number)
    ]


def test_the_next_one_is_made_while_its_predecessor_is_in_use_and_none_beyond() -> None:
    begun = [threading.Event() for _ in range(4)]

    def make(item: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        begun[item].set()
        return item

    for item in Prefetcher(make, range(4)):
        assert item == 3 or begun[item + 1].wait(10)
        assert not any(event.is_set() for event in begun[item + 2 :])


def test_the_first_one_is_begun_before_anybody_asks() -> None:
    begun = threading.Event()
    found = Prefetcher(lambda item: begun.set(), range(3))
    assert begun.wait(10)
    found.close()


def test_an_error_comes_where_its_item_would_have() -> None:
    found = Prefetcher(lambda item: 1 // (2 - item), range(5))
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_who_stops_early_leaves_no_thread() -> None:
    others = set(threading.enumerate())
    found = Prefetcher(lambda item: item, range(5))
    next(found)
    [mine] = set(threading.enumerate()) - others
    found.close()
    assert not mine.is_alive()
