"""Record of the runs that a run continues: ``parent.json`` of a run directory."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from mail_torchrec.data.fingerprint import FileFingerprint
from mail_torchrec.records.run_record import read_recorded
from mail_torchrec.settings import Settings, first_fault
from mail_torchrec.utils.safe_paths import read_document

PARENT_FILE = "parent.json"
"""File of a run directory; a run of its own has none."""
_DIGITS = 16
_MAX_NAMED = 5

How = Literal["continue", "init-from"]
"""Kind of a run with a parent, as its option is called."""


class Ancestor(Settings):
    """Run that another one goes on from."""

    run: str
    """Absolute path of the run directory."""
    name: str
    """Name in its configuration."""
    day: str | None
    """Day of its training data, such as 2024-05-31; null where none is known."""
    step: int = Field(ge=0)
    """Step of the checkpoint that was taken."""
    checkpoint: str
    """SHA-256 of that checkpoint's list of checksums, see ``checkpoint_digest``."""
    rows: int = Field(ge=0)
    """Rows of its training data."""
    files: tuple[str, ...]
    """Digits of the fingerprint of each file of its training data."""


class ParentRecord(Settings):
    """Content of ``parent.json``."""

    how: How
    day: str | None
    """Day of this run's training data; null where none is known."""
    again: bool = Field(default=False, exclude_if=lambda again: not again)
    """Whether files that an ancestor was trained on were allowed."""
    ancestors: tuple[Ancestor, ...] = Field(min_length=1)
    """The oldest first; the last one is the parent."""

    @property
    def parent(self) -> Ancestor:
        """The run that this one goes on from."""
        return self.ancestors[-1]

    def trained_before(self, path: str, files: Iterable[FileFingerprint]) -> str | None:
        """Says which files an ancestor was trained on; None where there are none.

        Args:
            path: of the files.
            files: of the run's training data.
        """
        seen = {digits: ancestor.run for ancestor in self.ancestors for digits in ancestor.files}
        found = [
            f"'{file.name}' by '{seen[digits]}'"
            for file in files
            if (digits := file_digits(file)) in seen
        ]
        if not found:
            return None
        more = len(found) - _MAX_NAMED
        named = ", ".join(found[:_MAX_NAMED]) + (f" and {more} more files" if more > 0 else "")
        return f"'{path}' was trained on before: {named}"


def file_digits(file: FileFingerprint) -> str:
    """Returns the digits that tell the data of a file from that of others."""
    return file.content[:_DIGITS]


def read_parent(run_dir: Path, *, is_recorded: bool = True) -> ParentRecord | None:
    """Reads the record of a run's parent; None where the run has none.

    Args:
        run_dir: the run directory.
        is_recorded: compare the file with the run's checksums, which a run has once it trains.

    Raises:
        ValueError: the file is damaged, or not as the run wrote it.
    """
    path = run_dir / PARENT_FILE
    if not path.exists():
        return None
    text = read_recorded(run_dir, PARENT_FILE) if is_recorded else read_document(path)
    try:
        return ParentRecord.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(
            f"'{path}' is damaged: {first_fault(error)}; bring it back from a copy"
        ) from error
