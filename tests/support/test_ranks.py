"""Ranks of tests: what one does is gone with it, and a failure is told with its traceback."""

import os
import random
import signal
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.support.preloaded import PreloadedProcess, command
from tests.support.ranks import ProcessesFailedError, run_ranks

pytestmark = pytest.mark.distributed


def spoil() -> tuple[int, float, float, str | None, int]:
    """What a rank finds, of which it leaves nothing as it was."""
    total = torch.tensor(dist.get_rank() + 1)
    dist.all_reduce(total)
    found = (
        int(total), torch.rand(()).item(), random.random(), os.environ.get("SPOILT"),
        threading.active_count(),
    )  # fmt: skip
    os.environ["SPOILT"] = "yes"
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    os.chdir("/")
    return found


def test_a_rank_leaves_nothing_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [found[:2] + found[3:] for found in run_ranks(2, spoil, tmp_path / "first")]
    assert [found[0] for found in first] == [3, 3]
    monkeypatch.setenv("SPOILT", "by the test")
    second = run_ranks(3, spoil, tmp_path / "second")
    assert [found[0] for found in second] == [6, 6, 6]
    assert {found[1] for found in second} == {first[0][1]}
    assert [found[3] for found in second] == ["by the test"] * 3
    assert {found[4] for found in second} == {first[0][3]}


def fail(how: str) -> None:
    if dist.get_rank() == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyError(how)
    dist.barrier()


def test_a_rank_that_fails_or_dies_ends_the_others_and_the_failure_says_where(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        ProcessesFailedError,
        match=r"-- process 1: Traceback(.|\n)* in fail\n(.|\n)*KeyError: 'x'\n(.|\n)*"
        "-- process 0: Traceback",
    ):
        run_ranks(2, fail, tmp_path / "x", "x")
    with pytest.raises(ProcessesFailedError, match="-- process 1: exit status -9"):
        run_ranks(2, fail, tmp_path / "killed", "killed")


def test_a_command_is_as_one_of_a_fresh_interpreter(tmp_path: Path) -> None:
    for words, code, text in (
        (["--help"], 0, "Usage: python -m mail_torchrec [OPTIONS]"),
        (["train", "--config", "nowhere.yaml"], 1, "nowhere.yaml"),
    ):
        with (tmp_path / "log").open("w") as log:
            process = PreloadedProcess(
                command, (words, str(tmp_path)), {}, log.fileno(), log.fileno()
            )
            process.start()
            process.join()
        assert (process.exitcode, text in (tmp_path / "log").read_text()) == (code, True)
