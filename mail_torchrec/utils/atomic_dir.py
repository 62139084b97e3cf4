"""Folders that are published complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mail_torchrec.utils.local_path import check_output_dir


@contextmanager
def atomic_dir(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a hidden folder beside ``out``, renamed to ``out`` when the block succeeds.

    The hidden folder is deleted where the block raises.

    Args:
        out: the folder.
        overwrite: replace a folder that is there; it stays until the block has succeeded.

    Raises:
        ValueError: ``out`` exists, or cannot be written.
    """
    check_output_dir(out, "the folder to write")
    if out.exists() and not overwrite:
        raise ValueError(
            f"'{out}' exists already; choose another --out, or move or delete that one"
        )
    part, old = (
        out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("part", "old.part")
    )
    part.mkdir(parents=True)
    try:
        yield part
        if out.exists():
            out.rename(old)
        part.rename(out)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        for folder in (part, old):  # nothing is there after a rename
            shutil.rmtree(folder, ignore_errors=True)
