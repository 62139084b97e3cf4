"""Checkpoints looked at from outside: what there is, whether it is whole, what is inside. Needs neither TorchRec nor a process group."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from mail_torchrec.checkpoint.folder import SUMS, Checkpoints, fault, read_sums
from mail_torchrec.checkpoint.manifest import Manifest, read_manifest
from mail_torchrec.utils.logging import bar_interval

_TABLE = re.compile(r"model\..*\.(?:embedding_bags|embeddings)\.(?P<name>.+)\.weight")
_TOWER = re.compile(r"model\.towers\.(?P<name>[^.]+)\.")


@dataclass(frozen=True)
class _Tensor:
    """One tensor of a checkpoint."""

    key: str
    size: tuple[int, ...]
    dtype: str
    num_bytes: int
    num_shards: int


def listed(folder: Path) -> str:
    """The checkpoints of a run as a table, the oldest first.

    Raises:
        ValueError: there are none.
    """
    rows = []
    for path in _found(folder, whole=False):
        try:
            manifest = read_manifest(path)
        except ValueError:
            rows.append([path.name, "", "", "", "", "", _state(path)])
            continue
        where = _epoch(manifest)
        rows.append(
            [
                path.name,
                f"{manifest.step:,}",
                where,
                manifest.written,
                _bytes(_size(path)),
                str(len(manifest.ranks)),
                _state(path),
            ]
        )
    return _table(["checkpoint", "step", "epoch", "written", "size", "ranks", "state"], rows)


def verify(folder: Path) -> list[str]:
    """Compares files with their checksums; what is wrong, a line a file.

    Raises:
        ValueError: there is no checkpoint.
    """
    faults: list[str] = []
    paths = _found(folder, whole=True)
    with tqdm(
        total=sum(map(_size, paths)),
        desc="verify",
        unit="B",
        unit_scale=True,
        leave=False,
        mininterval=bar_interval(),
    ) as bar:
        for path in paths:
            try:
                sums = read_sums(path)
            except ValueError as error:
                faults.append(str(error))
                continue
            faults += [
                f"{path / name} has no checksum" for name in sorted(_names(path) - sums.keys())
            ]
            for name, expected in sums.items():
                if found := fault(path, name, expected):
                    faults.append(found)
                bar.update(_file_size(path / name))
    return faults


def shown(folder: Path) -> str:
    """What the newest checkpoint holds, or the one that ``folder`` is.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = _found(folder, whole=True)[-1]
    manifest, tensors = read_manifest(path), _tensors(path)
    tables = {
        match["name"]: tensor for tensor in tensors if (match := _TABLE.fullmatch(tensor.key))
    }
    rows = [
        [
            name,
            f"{table.size[0]:,}",
            str(table.size[1]),
            table.dtype,
            str(table.num_shards),
            _bytes(table.num_bytes),
            _state_of(table, tensors),
        ]
        for name, table in tables.items()
    ]
    towers: dict[str, list[_Tensor]] = {}
    for tensor in tensors:
        if match := _TOWER.match(tensor.key):
            towers.setdefault(match["name"], []).append(tensor)
    files, versions = len(_names(path)), ", ".join(map(" ".join, manifest.versions.items()))
    num_optimizer = sum(
        tensor.num_bytes
        for tensor in tensors
        if tensor.key.startswith("optimizer.") and ".towers." in tensor.key
    )
    lines = [
        f"{path}",
        f"run '{manifest.config_name}': step {manifest.step:,}, {_epoch(manifest)}, "
        f"{len(manifest.ranks)} ranks, {manifest.written}",
        f"{_bytes(_size(path))} in {files} files; {versions}",
        "",
        _table(["table", "rows", "dim", "type", "shards", "weights", "optimizer state"], rows),
        "",
        *(
            f"tower {name}: {sum(math.prod(part.size) for part in parts):,} numbers in "
            f"{len(parts)} tensors"
            for name, parts in towers.items()
        ),
        f"optimizer state of the towers: {_bytes(num_optimizer)}",
    ]
    return "\n".join(lines)


def _state_of(table: _Tensor, tensors: list[_Tensor]) -> str:
    """The optimizer state of a table: name and size of each part."""
    middle = f".{table.key.removeprefix('model.')}."
    parts = [
        (tensor.key.partition(middle)[2], tensor.num_bytes)
        for tensor in tensors
        if tensor.key.startswith("optimizer.") and middle in tensor.key
    ]
    return ", ".join(f"{name} {_bytes(size)}" for name, size in parts) or "none"


def _found(folder: Path, *, whole: bool) -> list[Path]:
    """The checkpoints that a path means: itself, or those of a run; ``whole`` leaves out what was not published."""
    if (folder / SUMS).exists():
        return [folder]
    checkpoints = Checkpoints(
        folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    )
    published = checkpoints.published()
    others = (
        []
        if whole or not checkpoints.path.is_dir()
        else sorted({*checkpoints.path.glob(".step-*"), *checkpoints.path.glob("step-*.damaged")})
    )
    if not published and not others:
        raise ValueError(
            f"'{folder}' should be the directory of a run or a checkpoint (step-...), and there "
            "is no checkpoint"
        )
    return [*published, *others]


def _state(path: Path) -> str:
    if path.name.startswith("."):
        return "being written, or left by a killed run"
    if path.name.endswith(".damaged"):
        return "damaged, set aside"
    try:
        missing = read_sums(path).keys() - _names(path)
    except ValueError:
        return f"damaged: no readable {SUMS}"
    return f"damaged: {', '.join(sorted(missing))} missing" if missing else "published"


def _tensors(path: Path) -> list[_Tensor]:
    from mail_torchrec.checkpoint.storage import saved_tensors

    return [
        _Tensor(
            key,
            tuple(saved.size),
            str(saved.properties.dtype).removeprefix("torch."),
            math.prod(saved.size) * saved.properties.dtype.itemsize,
            len(saved.chunks),
        )
        for key, saved in saved_tensors(path).items()
    ]


def _epoch(manifest: Manifest) -> str:
    steps = sum(part.steps for part in manifest.position.taken)
    return (
        f"epoch {manifest.position.epoch + 1}, {steps:,} steps of it done"
        if steps
        else f"after epoch {manifest.position.epoch}"
    )


def _names(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()} - {SUMS}


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
