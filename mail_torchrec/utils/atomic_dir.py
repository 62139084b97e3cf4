"""A folder that is there whole, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out`` to write into; it takes that name where nothing fails, and is deleted otherwise.

    Raises:
        ValueError: ``out`` exists.
    """
    if out.exists():
        raise ValueError(
            f"'{out}' exists already; choose another --out, or move or delete that one"
        )
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        yield part
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)  # what a failure left
