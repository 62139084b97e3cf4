"""Counts of ids are those of plain counting, wherever they lie while they are counted."""

import errno
import os
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail_torchrec.data.ids.counts import IdCounts

_INTEGERS = st.lists(st.none() | st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1))
_TEXTS = st.lists(st.none() | st.text(max_size=2))


@given(st.lists(_INTEGERS, min_size=1) | st.lists(_TEXTS, min_size=1), st.integers(1, 4))
def test_counts_on_disk_are_those_of_plain_counting(parts: list[list[Any]], every: int) -> None:
    is_text = any(isinstance(value, str) for part in parts for value in part)
    counts = IdCounts()
    for number, part in enumerate(parts):
        counts.add(pa.array(part, pa.large_string() if is_text else pa.int64()))
        if number % every == 0:
            counts.spill()
            assert not counts.num_held_bytes
    found = counts.table.to_pydict()
    assert len(set(found["value"])) == len(found["value"])
    expected = Counter(value for part in parts for value in part if value is not None)
    assert dict(zip(found["value"], found["count"], strict=True)) == expected


class _FullFile:
    """A file on a full disk."""

    closed = False

    def tell(self) -> int:
        return 0

    def write(self, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", _FullFile)
    counts = IdCounts()
    counts.add(pa.array([1, 2]))
    with pytest.raises(OSError, match=r"No space left on device\); set TMPDIR to a folder of a"):
        counts.spill()
