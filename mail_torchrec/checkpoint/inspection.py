"""Lists, verifies and summarises checkpoints; needs neither TorchRec nor a process group."""

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mail_torchrec.checkpoint.folder import Checkpoints
from mail_torchrec.checkpoint.integrity import list_faults
from mail_torchrec.checkpoint.manifest import CheckpointManifest, check_format, read_manifest
from mail_torchrec.checkpoint.tensor_index import read_index
from mail_torchrec.records.checksums import CHECKSUMS, checksum_error, read_checksums
from mail_torchrec.records.run_record import run_faults
from mail_torchrec.utils.formats import RUN_FILE, check_run_format
from mail_torchrec.utils.progress import progress_bar

_TABLE = re.compile(r"model\..*\.(?:embedding_bags|embeddings)\.(?P<name>[^./]+)/?\.weight")
_TOWER = re.compile(r"model\.towers\.(?P<name>[^.]+)\.")
_TOWER_STATE = re.compile(r"optimizer\.[^.]+\.towers\.")


@dataclass(frozen=True)
class _SavedTensor:
    """Size and storage of one tensor of a checkpoint."""

    key: str
    size: tuple[int, ...]
    dtype: str
    num_bytes: int
    num_shards: int

    def is_optimizer_state(self) -> bool:
        """Returns whether the tensor is state of an optimizer, not of the model."""
        return self.key.startswith("optimizer.")


def checkpoint_list(folder: Path) -> str:
    """Formats the checkpoints of a run as a table, the oldest first; the best one is marked.

    Raises:
        ValueError: there are none, or the run has another format.
    """
    rows = []
    paths = _find_checkpoints(folder, published_only=False)
    best = _best_step(paths)
    for path in paths:
        try:
            manifest = read_manifest(path)
        except ValueError:
            rows.append([path.name, "", "", "", "", "", _state(path)])
            continue
        rows.append(
            [
                path.name,
                f"{manifest.step:,}",
                _epoch(manifest),
                manifest.written,
                _bytes(_size(path)),
                str(len(manifest.ranks)),
                _state(path) + (", the best" if manifest.step == best else ""),
            ]
        )
    return _table(["checkpoint", "step", "epoch", "written", "size", "ranks", "state"], rows)


def verify_checkpoints(folder: Path) -> list[str]:
    """Compares files with their checksums; describes the faults, one line a file.

    Args:
        folder: a checkpoint, or a run, whose own files are compared too.

    Raises:
        ValueError: there is no checkpoint, or it has another format.
    """
    faults = run_faults(folder) if os.path.lexists(folder / RUN_FILE) else []
    paths = _find_checkpoints(folder, published_only=True)
    total = sum(map(_size, paths))
    with progress_bar(desc="verify", total=total, unit="B", unit_scale=True) as bar:
        for path in paths:
            try:
                checksums = read_checksums(path)
                unlisted = sorted(_names(path) - checksums.keys())
                faults += [f"{path / name} has no checksum" for name in unlisted]
                faults += list_faults(path, checksums)
            except (ValueError, OSError) as error:
                faults.append(str(error))
                continue
            for name, expected in checksums.items():
                try:
                    fault = checksum_error(path, name, expected)
                except OSError as error:
                    fault = f"{path / name} cannot be read ({error.strerror})"
                if fault:
                    faults.append(fault)
                bar.update(_file_size(path / name))
    return faults


def checkpoint_summary(folder: Path) -> str:
    """Describes the content of the newest checkpoint of a run, or of one checkpoint.

    Raises:
        ValueError: there is none, it is damaged, or it has another format.
    """
    path = _find_checkpoints(folder, published_only=True)[-1]
    manifest, tensors = read_manifest(path), _saved_tensors(path)
    versions = ", ".join(map(" ".join, manifest.versions.items()))
    lines = [
        f"{path}",
        f"run '{manifest.config_name}': step {manifest.step:,}, {_epoch(manifest)}, "
        f"{len(manifest.ranks)} ranks, {manifest.written}",
        f"{_bytes(_size(path))} in {len(_names(path))} files; {versions}",
        "",
        _summary_of_tables(tensors),
        "",
        *_summary_of_towers(tensors),
    ]
    return "\n".join(lines)


def _best_step(paths: Sequence[Path]) -> int | None:
    """Returns the step that is evaluated and exported; None: the run has no validation rows."""
    for newest in reversed([path for path in paths if path.name.startswith("step-")]):
        try:
            of_newest = read_manifest(newest).validation.best_step
        except ValueError:  # the table says that it is damaged
            continue
        named = (Checkpoints(newest.parent).best_step(), of_newest)
        return max((step for step in named if step is not None), default=None)
    return None


def _summary_of_tables(tensors: list[_SavedTensor]) -> str:
    """Formats the embedding tables: sizes, shards, weights and optimizer state."""
    rows = [
        [
            match["name"],
            f"{table.size[0]:,}",
            str(table.size[1]),
            table.dtype,
            str(table.num_shards),
            _bytes(table.num_bytes),
            _optimizer_state(table, tensors),
        ]
        for table in tensors
        if (match := _TABLE.fullmatch(table.key))
    ]
    return _table(["table", "rows", "dim", "type", "shards", "weights", "optimizer state"], rows)


def _summary_of_towers(tensors: list[_SavedTensor]) -> list[str]:
    """Describes the towers and their optimizer state, a line each."""
    towers: dict[str, list[_SavedTensor]] = {}
    for tensor in tensors:
        if match := _TOWER.match(tensor.key):
            towers.setdefault(match["name"], []).append(tensor)
    lines = [
        f"tower {name}: {sum(math.prod(part.size) for part in parts):,} numbers in "
        f"{len(parts)} tensors"
        for name, parts in towers.items()
    ]
    state = sum(tensor.num_bytes for tensor in tensors if _TOWER_STATE.match(tensor.key))
    return [*lines, f"optimizer state of the towers: {_bytes(state)}"]


def _optimizer_state(table: _SavedTensor, tensors: list[_SavedTensor]) -> str:
    """Formats the optimizer state of a table: name and size of each part."""
    middle = f".{table.key.removeprefix('model.')}."
    parts = [
        (tensor.key.partition(middle)[2].replace("/", ""), tensor.num_bytes)
        for tensor in tensors
        if tensor.is_optimizer_state() and middle in tensor.key
    ]
    return ", ".join(f"{name} {_bytes(size)}" for name, size in parts) or "none"


def _find_checkpoints(folder: Path, *, published_only: bool) -> list[Path]:
    """Lists one checkpoint, or those of a run directory or of its folder of checkpoints.

    Raises:
        ValueError: there are none, or the run or the newest checkpoint has another format.
    """
    nested = folder / "checkpoints"
    if nested.is_symlink():
        raise ValueError(f"'{nested}' is a link; name the folder that it leads to")
    if nested.is_dir():
        check_run_format(folder)
    elif (folder / CHECKSUMS).exists():
        check_format(folder)
        return [folder]
    checkpoints = Checkpoints(nested if nested.is_dir() else folder)
    published = checkpoints.published()
    others: set[Path] = set()
    if not published_only and checkpoints.path.is_dir():
        others = {*checkpoints.path.glob(".step-*"), *checkpoints.path.glob("step-*.damaged*")}
    if not published and not others:
        raise ValueError(
            f"'{folder}' should be the directory of a run or a checkpoint (step-...), and there "
            "is no checkpoint"
        )
    for path in published:
        check_format(path)
    return [*published, *sorted(others)]


def _state(path: Path) -> str:
    """Describes whether a checkpoint is published, being written, or damaged."""
    if path.name.startswith("."):
        return "being written, or left by a killed run"
    if ".damaged" in path.name:
        return "damaged, set aside"
    try:
        missing = read_checksums(path).keys() - _names(path)
    except ValueError:
        return f"damaged: no readable {CHECKSUMS}"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return f"damaged: {', '.join(sorted(missing))} missing" if missing else "published"


def _saved_tensors(path: Path) -> list[_SavedTensor]:
    return [
        _SavedTensor(key, saved.size, saved.dtype, saved.num_bytes, len(saved.chunks))
        for key, saved in read_index(path).tensors.items()
    ]


def _epoch(manifest: CheckpointManifest) -> str:
    position = manifest.position
    steps = sum(part.steps for part in position.consumed)
    if not steps:
        return f"after epoch {position.epoch}"
    return f"epoch {position.epoch + 1}, {steps:,} steps of it done"


def _names(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()} - {CHECKSUMS}


def _size(path: Path) -> int:
    return sum(map(_file_size, path.iterdir()))


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _bytes(size: float) -> str:
    units = iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while size >= 1024 and unit != "TiB":
        size, unit = size / 1024, next(units)
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
