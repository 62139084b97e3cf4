"""Lines of any bytes: each one is counted once, as plain Python counts it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail_torchrec.prepare import log_files, text_lines
from mail_torchrec.prepare.engine import DuckDBEngine
from mail_torchrec.prepare.line_counts import LineCounts, count_parsed_lines
from mail_torchrec.prepare.log_files import LogFile, int64_field, text_field
from mail_torchrec.prepare.settings import PrepareSettings

FIELDS = (int64_field("user"), int64_field("time"), text_field("tag"))
HEADER, MAX_LINE = "user,time,tag", 40
GOOD = re.compile(r'-?[0-9]{1,18},-?[0-9]{1,18},("[^"]*"|[^",]*)')
TICKS = range(100, 200)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DuckDBEngine]:
    """An engine, and a reader of blocks so small that most lines cross one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_lines, "_BLOCK_BYTES", 16)
        patch.setattr(text_lines, "MAX_LINE_CHARACTERS", MAX_LINE)
        patch.setattr(log_files, "MAX_LINE_CHARACTERS", MAX_LINE)
        opened = DuckDBEngine(PrepareSettings(threads=1), tmp_path_factory.mktemp("spill"))
        yield opened
        opened.close()


WELL_FORMED = st.builds(
    lambda user, time, tag: f"{user},{time},{tag}".encode("latin-1"),
    st.integers(-9, 10**17),
    st.integers(98, 201),
    st.sampled_from(["", "a", "NULL", '"1,2"', "é", "\x85", "x" * 40]),
)
PIECES = st.sampled_from([b"1", b",", b'"', b"\x00", b"\r", b"\xff", b"\xef\xbb\xbf", b"7,150,a"])
JUNK = st.lists(PIECES, max_size=30).map(b"".join) | st.binary(max_size=20)
ENDS = st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n", b"\r"])
CONTENT = st.tuples(
    st.lists(st.tuples(WELL_FORMED | JUNK | st.just(HEADER.encode()), ENDS), max_size=12),
    WELL_FORMED | JUNK,
).map(lambda lines: b"".join(line + end for line, end in lines[0]) + lines[1])


def expected_counts(content: bytes, has_header: bool) -> tuple[int, int, int, int]:
    """Rows, malformed lines, those by their time alone, and blank lines."""
    rows, malformed, unlikely, blank = 0, -has_header, 0, 0
    lines = content.split(b"\n")
    for line in lines if lines[-1] else lines[:-1]:
        text = line.decode("latin-1").removesuffix("\r").removeprefix("ï»¿")
        is_good = (
            len(text) <= MAX_LINE
            and GOOD.fullmatch(text) is not None
            and not re.search("[\x00-\x1f]", text)
        )
        is_likely = is_good and int(text.split(",")[1]) in TICKS
        blank += not text
        rows += is_likely
        unlikely += is_good and not is_likely
        malformed += bool(text) and not is_likely
    return rows, malformed, unlikely, blank


@settings(max_examples=30, deadline=None)
@given(content=CONTENT, has_header=st.booleans(), num_buckets=st.integers(1, 3))
def test_each_line_is_a_row_or_malformed_or_blank_whatever_is_in_it(
    engine: DuckDBEngine,
    tmp_path_factory: pytest.TempPathFactory,
    content: bytes,
    has_header: bool,
    num_buckets: int,
) -> None:
    content = f"{HEADER}\r\n".encode() + content if has_header else content or b"\n"
    folder = tmp_path_factory.mktemp("log")
    (folder / "a.csv").write_bytes(content)
    file = LogFile("a.csv", FIELDS, "user", "time", header=has_header)
    path = file.find(folder, ())
    counts = parse(engine, file, path, num_buckets)
    found = (counts.rows, counts.malformed, counts.unlikely_times, counts.blank)
    assert found == expected_counts(content, has_header)
    assert counts.ends_with_newline == content.endswith(b"\n")
    assert (counts.example is not None) == (counts.malformed > 0)


def parse(engine: DuckDBEngine, file: LogFile, path: Path, num_buckets: int) -> LineCounts:
    parts = path.parent / "parts"
    engine.write(
        file.parse(engine.lines(path), num_buckets, TICKS, file.header_line(path)), parts, "bucket"
    )
    return count_parsed_lines(engine, engine.stored(parts, file.stored_columns), path)


def test_a_long_line_is_neither_held_in_memory_nor_lost(
    tmp_path: Path, engine: DuckDBEngine
) -> None:
    (tmp_path / "a.csv").write_bytes(b"1,150,a\n" + b"2" * 10_000)
    lines = [line for batch in text_lines.read_lines(tmp_path / "a.csv") for line in batch["line"]]
    assert [str(line) for line in lines] == ["1,150,a", "2" * (MAX_LINE + 2)]
    file = LogFile("a.csv", FIELDS, "user", "time", header=False)
    counts = parse(engine, file, tmp_path / "a.csv", 1)
    assert counts == LineCounts(1, 1, ends_with_newline=False, example="2" * (MAX_LINE + 2))
