"""Commands that are killed at random until they end by themselves, for ``tools/soak_days.py``."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tools.preloaded_torchrun import PreloadedCommand
from tools.torchrun_job import LostError

_SECONDS = 600
_MAX_WAIT = 1.2
"""Greatest time to a kill, by the time that the command takes undisturbed."""
_FIRST_SECONDS = 2.0
"""Taken for a command that has not been run undisturbed yet."""
_SIGNALS = {signal.SIGKILL: 3, signal.SIGTERM: 1}
"""Signals and their weights."""


@dataclass
class Commands:
    """Runs ``mail-torchrec`` commands, and kills those that may be killed."""

    log: Path
    """File of all that they say."""
    dice: random.Random
    seconds: dict[str, float] = field(default_factory=dict)
    """Command -> seconds that it took when it was not killed."""
    kills: list[tuple[str, str, float]] = field(default_factory=list)
    """Command, signal and seconds from its start of each kill."""

    def run(self, *words: str) -> str:
        """Runs a command to its end, and returns what it said.

        Raises:
            LostError: it failed.
        """
        code, text = self.try_to_run(*words)
        if code:
            raise LostError(f"mail-torchrec {' '.join(words)} ended with {code}:\n{text[-2000:]}")
        return text

    def try_to_run(self, *words: str) -> tuple[int, str]:
        """Runs a command to its end, and returns its exit status and what it said."""
        begin, start = time.monotonic(), self._said()
        code = self._start(words).wait(_SECONDS)
        self.seconds[words[0]] = time.monotonic() - begin
        return code, self.log.read_text(errors="replace")[start:]

    def run_with_kills(
        self, *words: str, max_kills: int, check: Callable[[], None]
    ) -> tuple[int, str]:
        """Runs a command again and again until it ends by itself.

        Args:
            words: of the command.
            max_kills: greatest number of kills.
            check: called after each kill.

        Returns:
            Exit status and text of the run that ended by itself.
        """
        for _ in range(self.dice.randint(0, max_kills)):
            seconds = self.seconds.get(words[0], _FIRST_SECONDS)
            start, wait = self._said(), self.dice.uniform(0, _MAX_WAIT) * seconds
            number = self.dice.choices(list(_SIGNALS), list(_SIGNALS.values()))[0]
            process = self._start(words)
            try:
                code = process.wait(wait)
            except subprocess.TimeoutExpired:
                _signal(process.pid, number)
                process.wait(_SECONDS)
                _signal(process.pid, signal.SIGKILL)  # what is left of its group
                self.kills.append((words[0], number.name, wait))
                check()
            else:
                return code, self.log.read_text(errors="replace")[start:]
        return self.try_to_run(*words)

    def _start(self, words: tuple[str, ...]) -> PreloadedCommand:
        with self.log.open("a") as file:
            file.write(f"$ mail-torchrec {' '.join(words)}\n")
        return PreloadedCommand(list(words), self.log)

    def _said(self) -> int:
        return len(self.log.read_text(errors="replace")) if self.log.exists() else 0


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:  # gone, or a fork that has no group of its own yet
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
