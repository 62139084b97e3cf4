"""Folders that are published complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mail_torchrec.utils.local_path import check_output_dir


@contextmanager
def atomic_dir(out: Path) -> Iterator[Path]:
    """Yields a hidden folder beside ``out``, renamed to ``out`` when the block succeeds.

    The hidden folder is deleted where the block raises.

    Raises:
        ValueError: ``out`` exists, or cannot be written.
    """
    check_output_dir(out, "the folder to write")
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
        shutil.rmtree(part, ignore_errors=True)  # nothing is there after the rename
