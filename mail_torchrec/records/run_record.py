"""Record of a run's files: ``SHA256SUMS`` of a run directory, and files read by it.

The record is written when the training begins (configuration, plan, vocabularies), and again before
the run is finished (its log, data record, predictions and metrics too). Whoever reads a file of a
run compares it first: one that was changed, cut, linked or dropped is refused.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from mail_torchrec.records.checksums import (
    CHECKSUMS,
    checksum_error,
    read_checksums,
    sha256,
    write_checksums,
)
from mail_torchrec.utils.safe_paths import read_document

_REMEDY = (
    "a run's files stay as it wrote them: take the change back, or let train --resume write them "
    "anew; settings for one command are given on its command line"
)


def begin_record(run_dir: Path, names: Iterable[str]) -> None:
    """Writes the record of a run that trains.

    Args:
        run_dir: the run directory.
        names: its files; a folder stands for all that it holds.

    Raises:
        OSError: a file cannot be read, or the record cannot be written.
        ValueError: a file is a link or no regular file.
    """
    write_checksums(run_dir, _checksums(run_dir, names))


def extend_record(run_dir: Path, names: Iterable[str], contents: Mapping[str, str]) -> None:
    """Adds files to the record of a run.

    Args:
        run_dir: the run directory.
        names: files that are written; a folder stands for all that it holds.
        contents: by name, the text of files that will be.

    Raises:
        OSError: a file cannot be read, or the record cannot be written.
        ValueError: a file is a link or no regular file, or the record is missing or damaged.
    """
    record = read_checksums(run_dir, nested=True) | _checksums(run_dir, names)
    write_checksums(run_dir, record | {name: _sha256_of(text) for name, text in contents.items()})


def record_faults(run_dir: Path, names: Iterable[str]) -> list[str]:
    """Compares files of a run with its record; lists the faults, one line each.

    Args:
        run_dir: the run directory.
        names: files; a folder stands for all that it holds.

    Raises:
        OSError: a file is there and cannot be read.
    """
    try:
        record = read_checksums(run_dir, nested=True)
        faults = [fault for name in names for fault in _faults(run_dir, name, record)]
    except ValueError as error:
        return [str(error)]
    return faults


def run_faults(run_dir: Path) -> list[str]:
    """Compares all files that a run has recorded; lists the faults, one line each."""
    try:
        names = {file.partition("/")[0] for file in read_checksums(run_dir, nested=True)}
        return record_faults(run_dir, sorted(names))
    except (ValueError, OSError) as error:
        return [str(error)]


def check_recorded(run_dir: Path, *names: str) -> None:
    """Checks that files of a run are as the run wrote them.

    Args:
        run_dir: the run directory.
        names: files; a folder stands for all that it holds.

    Raises:
        OSError: a file is there and cannot be read.
        ValueError: one differs; the message is one line and says what to do.
    """
    if faults := record_faults(run_dir, names):
        raise ValueError(f"{'; '.join(faults)}; {_REMEDY}")


def read_recorded(run_dir: Path, name: str) -> str:
    """Reads a text file of a run, and checks that it is as the run wrote it.

    Raises:
        OSError: it cannot be read.
        ValueError: it differs, is missing, or no UTF-8; the message is one line.
    """
    check_recorded(run_dir, name)
    text = read_document(run_dir / name)
    if read_checksums(run_dir, nested=True).get(name) != _sha256_of(text):
        raise ValueError(f"{run_dir / name} changed while it was read; read it again")
    return text


def _faults(run_dir: Path, name: str, record: Mapping[str, str]) -> list[str]:
    """Lists the faults of a file, or of all that a folder holds and all that it should hold."""
    expected = {file for file in record if file == name or file.startswith(f"{name}/")}
    if not expected:
        return [f"{run_dir / CHECKSUMS} has no line of {name}"]
    found = expected if name in expected else expected | set(_files(run_dir, name))
    faults = [
        checksum_error(run_dir, file, record[file])
        if file in record
        else f"{run_dir / file} is not of the run"
        for file in sorted(found)
    ]
    return [fault for fault in faults if fault]


def _checksums(run_dir: Path, names: Iterable[str]) -> dict[str, str]:
    return {
        file: sha256(run_dir / file)
        for name in names
        for file in (_files(run_dir, name) if (run_dir / name).is_dir() else [name])
    }


def _files(run_dir: Path, name: str) -> list[str]:
    """Lists what a folder of a run holds.

    Raises:
        ValueError: it is missing, a link or a file.
    """
    folder = run_dir / name
    if folder.is_symlink() or not folder.is_dir():
        raise ValueError(f"{folder} should be a folder of the run, it is missing, a link or a file")
    return sorted(f"{name}/{path.name}" for path in folder.iterdir())


def _sha256_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
