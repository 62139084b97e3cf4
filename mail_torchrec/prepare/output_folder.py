"""Output folder of a preparation: claimed for its inputs, so that an interrupted one can go on."""

import json
import os
from pathlib import Path

from mail_torchrec.prepare.resumable_steps import StepRecord
from mail_torchrec.utils.file_lock import LOCK

RECORD_NAME, WORK_FOLDER = "prepared.json", ".work"
_BEGUN_NAME = "begun.json"


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that is either not there or complete."""
    unfinished = path.with_name(f".{path.name}.half")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def file_identity(path: Path) -> list[int]:
    """Returns size and time of change, which tell whether a file is still the same."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def is_finished(out: Path, inputs: StepRecord) -> bool:
    """Checks whether ``out`` is ready, and claims it for these inputs where it is empty.

    Raises:
        ValueError: ``out`` was begun with other inputs, or holds something else.
    """
    for path in (out / RECORD_NAME, out / WORK_FOLDER / _BEGUN_NAME):
        if path.is_file():
            _check_same_inputs(out, json.loads(path.read_text())["inputs"], inputs)
            return path.name == RECORD_NAME
    if others := set(os.listdir(out)) - {WORK_FOLDER, LOCK}:
        raise ValueError(
            f"'{out}' should be empty or not exist, it holds {sorted(others)[:5]}; choose another "
            "--out"
        )
    (out / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
    write_atomically(out / WORK_FOLDER / _BEGUN_NAME, json.dumps({"inputs": inputs}))
    return False


def _check_same_inputs(out: Path, begun: StepRecord, inputs: StepRecord) -> None:
    changes = [
        f"{key} was {begun.get(key)}, now {value}"
        for key, value in inputs.items()
        if key != "files" and begun.get(key) != value
    ]
    before, now = begun["files"], inputs["files"]
    changes += [f"{name} has changed" for name in now if before.get(name, now[name]) != now[name]]
    changes += [f"{name} is gone" for name in before if name not in now]
    changes += [f"{name} is new" for name in now if name not in before]
    if changes:
        raise ValueError(
            f"'{out}' was begun with other settings or files: {'; '.join(changes)}; choose "
            "another --out, or delete it"
        )
