"""Stages of the GPU check as forks: each would import for several seconds otherwise."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import IO

from tests.support.preloaded import PreloadedProcess

FRESH = "tables"
"""The stage that stays a fresh interpreter, as the check starts all of them."""
_Popen = subprocess.Popen


class ForkedStage:
    """``subprocess.Popen`` of ``python -m tools.gpu.stage``, as far as the check uses it."""

    def __init__(
        self,
        words: list[str],
        *,
        cwd: Path,
        env: dict[str, str],
        stdin: int,
        stdout: IO[bytes],
        stderr: IO[bytes],
        process_group: int,
    ) -> None:
        assert words[:3] == [sys.executable, "-m", "tools.gpu.stage"]
        assert stdin == subprocess.DEVNULL and process_group == 0
        streams = (stdout.fileno(), stderr.fileno())
        self._process = PreloadedProcess(_stage, (words[2:], str(cwd)), env, *streams)
        self._process.start()
        self.pid = self._process.pid

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit status; raises as ``subprocess.Popen`` does where the time is over."""
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired("the stage", timeout or 0)
        return code


def start(words: list[str], **options: object) -> object:
    """In the place of ``subprocess.Popen``."""
    is_forked = words[1:3] == ["-m", "tools.gpu.stage"] and words[3] != FRESH
    return (ForkedStage if is_forked else _Popen)(words, **options)  # type: ignore[arg-type]


def _stage(words: list[str], cwd: str) -> None:
    os.setpgid(0, 0)
    os.chdir(cwd)
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
