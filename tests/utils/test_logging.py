"""Messages on standard error: which rank, which level, which prefix."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.utils.logging import get_logger, set_log_level, write_unlocked
from mail_torchrec.utils.progress import progress_bar

logger = get_logger("mail_torchrec.tests")


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    yield
    set_log_level("info")


def test_levels_and_their_prefixes(capsys: pytest.CaptureFixture[str]) -> None:
    logger.debug("hidden")
    logger.info("epoch %d", 1)
    logger.warning("full disk")
    logger.error("lost rank")
    assert capsys.readouterr().err == "epoch 1\nWARNING: full disk\nError: lost rank\n"
    set_log_level("error")
    logger.warning("hidden")
    assert capsys.readouterr().err == ""
    set_log_level("DEBUG")
    logger.debug("seen")
    assert capsys.readouterr().err == "seen\n"


def test_only_rank_0_prints_but_for_last_words_which_name_the_rank(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    logger.warning("hidden")
    write_unlocked("Error: seen")
    assert capsys.readouterr().err == "[rank 1] Error: seen\n"
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    write_unlocked("Error: seen")
    assert capsys.readouterr().err == "Error: seen\n"


def test_messages_leave_a_progress_bar_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(desc="train", unit="step", total=2, leave=True) as bar:
        logger.info("in between")
        bar.update(2)
    assert "in between\n" in capsys.readouterr().err


def test_a_wrong_level_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError,
        match=r"log level \(--log-level, MAIL_TORCHREC_LOG_LEVEL\) should be one of debug, info, "
        r"warning, error, received 'loud'",
    ):
        set_log_level("loud")
    shown = CliRunner().invoke(main, ["--log-level", "loud", "doctor"])
    assert shown.exit_code == 2 and "'loud' is not one of" in shown.output


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        ([], {}, "seen\n"),
        (["--log-level", "error"], {}, ""),
        ([], {"MAIL_TORCHREC_LOG_LEVEL": "error"}, ""),
        (["--log-level", "info"], {"MAIL_TORCHREC_LOG_LEVEL": "error"}, "seen\n"),
    ],
)
def test_the_command_line_sets_the_level_above_the_environment(
    options: list[str], environment: dict[str, str], expected: str
) -> None:
    code = (
        "import click\n"
        "from mail_torchrec.cli import main\n"
        "@main.command()\n"
        "def tell():\n"
        "    from mail_torchrec.utils.logging import get_logger\n"
        "    get_logger('mail_torchrec.told').info('seen')\n"
        "main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *options, "tell"],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stderr == expected
