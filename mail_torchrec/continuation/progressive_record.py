"""Metrics of a parent on the rows that its child trains on: ``progressive.json`` of a run."""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from mail_torchrec.records.run_record import extend_record, read_recorded
from mail_torchrec.settings import Settings, first_fault
from mail_torchrec.utils.run_files import write_file

PROGRESSIVE_FILE = "progressive.json"
"""File of the directory of a continued run."""
ALL, NEW_USERS, OLD_USERS = "all", "new_users", "old_users"
NEW_ITEMS, OLD_ITEMS = "new_items", "old_items"
COHORTS = (ALL, NEW_USERS, OLD_USERS, NEW_ITEMS, OLD_ITEMS)
"""Cohorts in the order of the file; those of items are there where items are known by ids."""

Metrics = dict[str, dict[str, Any]]
"""Cohort -> name -> value, as in ``metrics.json``."""


class ProgressiveRecord(Settings):
    """Content of ``progressive.json``."""

    parent_step: int = Field(ge=0)
    """Step of the parent's weights."""
    day: str | None
    """Day of the new training data; null where none is known."""
    rows: int = Field(ge=0)
    """Rows that were scored."""
    seconds: float = Field(ge=0)
    """Time that it took."""
    item: str | None
    """Column of the item; null where its ids tell no new ones."""
    metrics: Metrics
    by_day: dict[str, Metrics]
    """Day -> metrics, the first day first; empty where the rows have no days."""


def write_progressive(run_dir: Path, record: ProgressiveRecord) -> None:
    """Writes the metrics into the directory of a run that trains, and into its checksums.

    Raises:
        OSError: they cannot be written.
    """
    write_file(run_dir / PROGRESSIVE_FILE, record.model_dump_json(indent=1) + "\n")
    extend_record(run_dir, [PROGRESSIVE_FILE], {})


def read_progressive(run_dir: Path) -> ProgressiveRecord | None:
    """Reads the metrics that a parent had on a run's training data; None where there are none.

    Raises:
        ValueError: the file is damaged, or not as the run wrote it.
    """
    path = run_dir / PROGRESSIVE_FILE
    if not path.exists():
        return None
    try:
        return ProgressiveRecord.model_validate_json(read_recorded(run_dir, PROGRESSIVE_FILE))
    except ValidationError as error:
        raise ValueError(
            f"'{path}' is damaged: {first_fault(error)}; bring it back from a copy"
        ) from error
