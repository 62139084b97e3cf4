"""Files that are not as published: each fault has a message, and every lost line is counted."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.prepare import settings
from mail_torchrec.prepare.pipeline import prepare
from mail_torchrec.prepare.settings import PrepareSettings, prepare_settings
from tests.support import raw_logs


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    raw_logs.alimama(tmp_path / "raw")
    return tmp_path / "raw"


def prepared(
    raw: Path, dataset: str = "alimama", **options: object
) -> dict[str, dict[str, dict[str, int]]]:
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
]


def test_each_malformed_line_is_counted_and_none_is_used(raw: Path) -> None:
    clean = prepared(raw)["files"]["behavior_log.csv"]
    edit(
        raw / "behavior_log.csv",
        lambda lines: [*lines[:50], *(f"{line}\n" for line in BAD_LINES), *lines[50:]],
    )
    dirty = prepare("alimama", PrepareSettings(threads=1), raw, raw.parent / "again")["files"][
        "behavior_log.csv"
    ]
    assert (clean["malformed"], dirty) == (0, {"rows": clean["rows"], "malformed": len(BAD_LINES)})


def test_line_ends_of_windows_a_byte_order_mark_and_blank_lines_are_no_fault(raw: Path) -> None:
    clean = prepared(raw)
    for name in clean["files"]:
        text = (raw / name).read_text()
        (raw / name).write_bytes(
            b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n\r\n"
        )
    again = prepare("alimama", PrepareSettings(threads=1), raw, raw.parent / "again")
    assert (again["files"], again["rows"]) == (clean["files"], clean["rows"])


def test_too_many_malformed_lines_are_an_error_that_shows_one(raw: Path) -> None:
    edit(raw / "raw_sample.csv", lambda lines: [*lines, *["1,2,3\n"] * 20])
    expected = (
        r"raw_sample.csv: 20 of 112 lines are malformed \(17.86%, the limit is 1.00%\), "
        r"such as '1,2,3'; .* with --max-malformed"
    )
    with pytest.raises(ValueError, match=expected):
        prepared(raw)
    assert prepared(raw, max_malformed=0.2)["files"]["raw_sample.csv"] == {
        "rows": 92,
        "malformed": 20,
    }


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
        r"user_id,clk",
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


def test_an_engine_that_cannot_go_on_says_so(raw: Path) -> None:
    (raw / "behavior_log.csv").write_text(
        (raw / "behavior_log.csv").read_text() + "1" * 3_000_000 + "\n"
    )
    with pytest.raises(
        ValueError, match=r"DuckDB could not go on; what is finished is kept"
    ) as raised:
        prepared(raw)
    assert "Maximum line size" in str(raised.value) and len(str(raised.value)) < 2_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history": 0}, "--history: Input should be greater than 0, received 0"),
        ({"memory_limit": "lots"}, "--memory-limit: .*, received 'lots'"),
        ({"max_malformed": 2}, "--max-malformed: .*, received 2"),
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
