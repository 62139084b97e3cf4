"""Files that are not as published: each fault has a message, and every lost line is counted."""

import errno
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.prepare import line_counts, settings, text_lines
from mail_torchrec.prepare.pipeline import prepare
from mail_torchrec.prepare.publish import summary
from mail_torchrec.prepare.settings import PrepareSettings, prepare_settings
from tests.support import raw_logs


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    raw_logs.alimama(tmp_path / "raw")
    return tmp_path / "raw"


def prepared(raw: Path, dataset: str = "alimama", **options: object) -> dict[str, Any]:
    return prepare(
        dataset, PrepareSettings.model_validate({"threads": 1} | options), raw, raw.parent / "out"
    )


def edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_bytes(
        "".join(change(path.read_bytes().decode("latin-1").splitlines(keepends=True))).encode(
            "latin-1"
        )
    )


BAD_LINES = [
    "1,1494000000,pv,5",
    "1,1494000000,pv,5,6,7",
    "7,1,1494000000,pv,5,6",
    "x1,1494000000,pv,5,6",
    "x,1494000000,pv,5,6",
    "1,1494000000.5,pv,5,6",
    "1,1494000000,sale,5,6",
    "1,1494000000,pv,,6",
    "1,9999999999999999999999,pv,5,6",
    "\x00\xff\x00",
    "1 ,1494000000,pv,5,6",
    '1,1494000000,"pv",5,6',
    '1,1494000000,pv,5,"6',
    "1,1494000000,pv,5,6\r\r",
    "1,1494000000,pv,5,6\x85",
    "1,1494000000,pv,5,6\x00",
    "user,time_stamp,btag,cate,brand",
    "\x00" * 5_000_000,
    "1,1494000000,pv,5," + "6" * 70_000,
]
UNLIKELY_TIMES = {
    "of a cut line": "14940",
    "of zero": "0",
    "before 1970": "-1494000000",
    "in milliseconds": "1494000000000",
    "a second before the first day": "1492790399",
    "a second after the last day": "1494691200",
}


def test_each_malformed_line_is_counted_and_none_is_used(raw: Path) -> None:
    clean = prepared(raw)["files"]["behavior_log.csv"]
    edit(
        raw / "behavior_log.csv",
        lambda lines: [*lines[:50], *(f"{line}\n" for line in BAD_LINES), *lines[50:]],
    )
    dirty = prepare("alimama", PrepareSettings(threads=1), raw, raw.parent / "again")["files"][
        "behavior_log.csv"
    ]
    assert (clean["malformed"], dirty) == (0, clean | {"malformed": len(BAD_LINES)})


@pytest.mark.parametrize("engine", ["duckdb", pytest.param("pyspark", marks=pytest.mark.slow)])
def test_a_time_outside_the_published_days_makes_a_line_malformed(raw: Path, engine: str) -> None:
    if engine == "pyspark":
        pytest.importorskip("pyspark", reason="the extra 'spark' is not installed, by choice")
    user, _, rest = (raw / "raw_sample.csv").read_text().splitlines()[1].split(",", 2)
    lines = [f"{user},{time},{rest}\n" for time in UNLIKELY_TIMES.values()]
    edit(raw / "raw_sample.csv", lambda before: [*before, *lines])
    counts = prepared(raw, max_malformed=0.1, engine=engine)
    assert counts["files"]["raw_sample.csv"] == {
        "rows": 92,
        "malformed": 6,
        "unlikely_times": 6,
        "blank": 0,
        "ends_with_newline": True,
    }
    assert counts["days"]["test"] == ["2017-05-13", "2017-05-13"]


def test_times_in_another_unit_are_named_as_the_reason(raw: Path) -> None:
    edit(
        raw / "raw_sample.csv",
        lambda lines: [lines[0], *(line.replace(",", ",000", 1) + "\n" for line in lines[1:])],
    )
    edit(raw / "raw_sample.csv", lambda lines: [line.replace(",0001", ",1000") for line in lines])
    expected = (
        r"raw_sample.csv should hold rows: 92 lines, none of them good, 92 of them by a time "
        r"outside 2017-04-22 to 2017-05-13, such as '.*'; download or unpack it again, or give "
        r"the log's days with --time-range"
    )
    with pytest.raises(ValueError, match=expected):
        prepared(raw)


def test_the_range_of_times_can_be_given(raw: Path) -> None:
    days = "2017-05-06,2017-05-10"
    with pytest.raises(ValueError, match=r"by a time outside 2017-05-06 to 2017-05-10, .* allow"):
        prepared(raw, time_range=days)
    counts = prepare(
        "alimama",
        PrepareSettings.model_validate({"time_range": days, "max_malformed": 0.9}),
        raw,
        raw.parent / "again",
    )
    times = [row.split(",")[1] for row in (raw / "raw_sample.csv").read_text().splitlines()[1:]]
    assert counts["files"]["raw_sample.csv"]["rows"] == sum(
        1494000000 <= int(time) < 1494000000 + 5 * raw_logs.DAY for time in times
    )
    assert counts["days"]["test"] == ["2017-05-10", "2017-05-10"]


def test_line_ends_of_windows_a_byte_order_mark_and_blank_lines_are_no_fault(raw: Path) -> None:
    clean = prepared(raw)
    for name in clean["files"]:
        text = (raw / name).read_text()
        (raw / name).write_bytes(
            b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n\r\n"
        )
    again = prepare("alimama", PrepareSettings(threads=1), raw, raw.parent / "again")
    for name, counts in clean["files"].items():
        assert again["files"][name] == counts | {"blank": 2}
    assert again["rows"] == clean["rows"]


def test_a_last_line_without_an_end_is_pointed_out(raw: Path) -> None:
    log = raw / "behavior_log.csv"
    log.write_bytes(log.read_bytes()[:-1])
    record = prepared(raw)
    assert [
        name for name, counts in record["files"].items() if not counts["ends_with_newline"]
    ] == [log.name]
    [line] = [line for line in summary(record, raw).splitlines() if "it is cut" in line]
    assert line.startswith("behavior_log.csv: 3,080 lines, and 0 malformed; the last line has no")


def test_too_many_malformed_lines_are_an_error_that_shows_one(raw: Path) -> None:
    edit(raw / "raw_sample.csv", lambda lines: [*lines, *["1,2,3\n"] * 20])
    expected = (
        r"raw_sample.csv: 20 of 112 lines are malformed \(17.86%, the limit is 1.00%\), "
        r"such as '1,2,3'; .* with --max-malformed"
    )
    with pytest.raises(ValueError, match=expected):
        prepared(raw)
    counts = prepared(raw, max_malformed=0.2)["files"]["raw_sample.csv"]
    assert (counts["rows"], counts["malformed"]) == (92, 20)


def test_a_file_without_a_good_line_is_an_error_at_any_limit(raw: Path) -> None:
    edit(raw / "ad_feature.csv", lambda lines: [lines[0], "a,b\n", "c\n"])
    with pytest.raises(
        ValueError,
        match=r"ad_feature.csv should hold rows: 2 lines, none of them good, such as 'c'; download",
    ):
        prepared(raw, max_malformed=1.0)


def test_a_file_with_nothing_but_a_header_is_an_error(raw: Path) -> None:
    edit(raw / "ad_feature.csv", lambda lines: lines[:1])
    with pytest.raises(
        ValueError, match=r"ad_feature.csv should hold rows: 0 lines, none of them good; download"
    ):
        prepared(raw)


def test_an_empty_file_is_an_error(raw: Path) -> None:
    (raw / "user_profile.csv").write_text("")
    with pytest.raises(
        ValueError,
        match=r"user_profile.csv should hold lines: it is empty; download or unpack it again",
    ):
        prepared(raw)


def test_a_missing_file_is_named_with_the_places_looked_at(raw: Path, tmp_path: Path) -> None:
    (raw / "behavior_log.csv").unlink()
    with pytest.raises(
        ValueError,
        match=r"no file 'behavior_log.csv' in '.*' \(looked at .*\); --raw names the unpacked "
        r"folder",
    ):
        prepared(raw)
    with pytest.raises(ValueError, match=r"no file 'users.dat' in .*ml-1m/users.dat"):
        prepared(tmp_path / "nowhere", "movielens")


def test_another_header_is_an_error_that_shows_both(raw: Path) -> None:
    edit(raw / "raw_sample.csv", lambda lines: ["user_id,clk\n", *lines[1:]])
    with pytest.raises(
        ValueError,
        match=r"should be the header user,time_stamp,adgroup_id,pid,nonclk,clk, received "
        r"'user_id,clk'",
    ):
        prepared(raw)


def test_an_ad_that_stands_twice_is_an_error(raw: Path) -> None:
    edit(raw / "ad_feature.csv", lambda lines: [*lines, *lines[1:]])
    with pytest.raises(
        ValueError,
        match=r"92 impressions became 184 rows: a file that should hold each user, item or ad "
        r"once holds one twice",
    ):
        prepared(raw)


def test_a_log_of_one_day_has_no_training_rows(raw: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"all impressions lie in the last 8 days, which are for testing; choose fewer with "
        r"--test-days",
    ):
        prepared(raw, test_days=8)


def test_a_file_that_changes_while_it_is_read_is_an_error(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def append(path: Path) -> text_lines.FileLines:
        with path.open("a") as file:
            file.write("1,1494000000,pv,5,6\n")
        return text_lines.count_lines(path)

    monkeypatch.setattr(line_counts, "count_lines", append)
    with pytest.raises(ValueError, match=r"93 of 94 lines were read; a file should not change"):
        prepared(raw)


def test_a_file_that_cannot_be_read_stops_the_engine_with_its_error(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> Iterator[bytes]:
        yield path.read_bytes()[:100]
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(text_lines, "_blocks", fail)
    with pytest.raises(
        ValueError, match=r"DuckDB could not go on; what is finished is kept"
    ) as raised:
        prepared(raw)
    assert "Input/output error" in str(raised.value) and len(str(raised.value)) < 2_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history": 0}, "--history: Input should be greater than 0, received 0"),
        ({"memory_limit": "lots"}, "--memory-limit: .*, received 'lots'"),
        ({"max_malformed": 2}, "--max-malformed: .*, received 2"),
        ({"time_range": "2017"}, "--time-range: .*should be two days FROM,TO.*, received '2017'"),
        ({"time_range": "2017-05-02,2017-05-01"}, "--time-range: .*should be two days FROM,TO"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_settings(options)


@pytest.mark.parametrize(
    ("engine", "missing", "extra"),
    [
        ("duckdb", "ibis", "prepare"),
        ("duckdb", "duckdb", "prepare"),
        ("pyspark", "pyspark", "spark"),
        ("pyspark", "pandas", "spark"),
    ],
)
def test_an_engine_that_is_not_installed_is_named_with_the_remedy(
    engine: str, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        settings, "find_spec", lambda name: None if name == missing else find_spec("json")
    )
    with pytest.raises(
        ValueError,
        match=rf"'{engine}' needs the package '{missing}', which is not installed; "
        rf".*mail-torchrec\[{extra}\]",
    ):
        prepare_settings({"engine": engine})


def test_the_command_lines_defaults_are_those_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    received: list[object] = []
    monkeypatch.setattr(
        "mail_torchrec.prepare.pipeline.prepare", lambda *arguments: received.extend(arguments)
    )
    monkeypatch.setattr("mail_torchrec.prepare.publish.summary", lambda *_: "done")
    assert (
        CliRunner().invoke(main, ["prepare", "alimama", "--raw", "here", "--out", "there"]).output
        == "done\n"
    )
    assert received == ["alimama", PrepareSettings(), Path("here"), Path("there")]
