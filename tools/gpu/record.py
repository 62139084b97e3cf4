"""Record of a GPU check: one JSON object a line, written as soon as it is known.

A line is a fact (``stage``, ``name``, ``value``, ``ok``, ``text``) or the end of a stage
(``stage``, ``outcome``, ``seconds``, ``text``). What a killed stage had found until then stays.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["done", "failed", "out of time", "skipped"]


@dataclass(frozen=True)
class Fact:
    """One result of a stage."""

    stage: str
    name: str
    value: Any
    """A number, or anything that JSON holds."""
    ok: bool | None = None
    """Whether it is as it should be; None for a measurement that is not judged."""
    text: str = ""
    """Words for the verdict; empty for what stays in the record alone."""


@dataclass(frozen=True)
class StageEnd:
    """The end of a stage, or the reason that it was not begun."""

    stage: str
    outcome: Outcome
    seconds: float
    text: str = ""


class Record:
    """Appends results to a file, and reads them back.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, result: Fact | StageEnd) -> None:
        """Appends one result, and hands it to the operating system at once."""
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")

    def results(self) -> list[Fact | StageEnd]:
        """Reads all results; a line that a killed process left unfinished is left out."""
        found: list[Fact | StageEnd] = []
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        for line in lines:
            try:
                tree = json.loads(line)
            except ValueError:
                continue
            found.append(StageEnd(**tree) if "outcome" in tree else Fact(**tree))
        return found

    def facts(self, stage: str) -> dict[str, Fact]:
        """Reads the facts of a stage, by name."""
        facts = (result for result in self.results() if isinstance(result, Fact))
        return {fact.name: fact for fact in facts if fact.stage == stage}
