"""A hostile checkpoint gives its numbers or one line, runs no code, and stays in its folder."""

import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from mail_torchrec.checkpoint.folder import DCP_METADATA
from mail_torchrec.checkpoint.integrity import checkpoint_faults
from mail_torchrec.checkpoint.storage import read_tensors, write_tensors
from mail_torchrec.checkpoint.tensor_index import INDEX, read_index
from mail_torchrec.records.checksums import CHECKSUMS, sha256_of_files, write_checksums
from tests.support.hostile import (
    CANARY,
    add_file,
    creates_canary,
    hostile_pickle,
    live_pickles,
    mutate_file,
)

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
STATE = {
    "model.table": torch.arange(24, dtype=torch.float32).view(6, 4),
    "model.scale": torch.tensor(1.5, dtype=torch.float64),
    "optimizer.sum": torch.arange(6, dtype=torch.float32).view(3, 2).t(),
    "random.0.cpu": torch.arange(16, dtype=torch.uint8),
    "model.flags": torch.tensor([True, False, True]),
}
DATA = "__0_0.distcp"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as it is published."""
    folder = tmp_path_factory.mktemp("whole") / "step-00000005"
    folder.mkdir()
    write_tensors(dict(STATE), folder)
    for name in ("manifest.json", "config.yaml", "plan.json"):
        (folder / name).write_text(f'{{"name": "{name}"}}\n')
    hashed_anew(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current folder, in which a canary would appear."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def hashed_anew(folder: Path) -> None:
    """Writes the list of checksums that fits the files, as whoever changes a folder can."""
    names = [path.name for path in folder.iterdir() if path.is_file() and not path.is_symlink()]
    write_checksums(folder, sha256_of_files(folder, [name for name in names if name != CHECKSUMS]))


def read_all(folder: Path, *, verify: bool = True) -> dict[str, torch.Tensor] | None:
    """Reads a checkpoint as every command does; None where it is refused, in one line."""
    try:
        if verify and (faults := checkpoint_faults(folder)):
            assert all(len(fault.splitlines()) == 1 for fault in faults), faults
            return None
        sizes = {key: tensor.size for key, tensor in read_index(folder).tensors.items()}
        assert sum(tensor.num_bytes for tensor in read_index(folder).tensors.values()) < 100_000
        state = {key: torch.zeros(sizes[key], dtype=STATE[key].dtype) for key in STATE}
        read_tensors(state, folder)
    except (ValueError, OSError, KeyError) as error:
        assert isinstance(error, ValueError | OSError) or error.args[0] in STATE
        assert len(str(error).splitlines()) == 1, error
        return None
    return state


def is_equal(state: dict[str, torch.Tensor] | None) -> bool:
    return state is not None and all(torch.equal(state[key], STATE[key]) for key in STATE)


def in_case(place: Path, whole: Path, change: Callable[[Path], object], *, verify: bool) -> Any:
    """Reads a changed copy; nothing may appear beside it."""
    folder = Path(shutil.copytree(whole, place / "case"))
    (place / "outside").mkdir(exist_ok=True)
    what = change(folder)
    before = sorted(place.iterdir())
    state = read_all(folder, verify=verify)
    assert sorted(place.iterdir()) == before and not Path(CANARY).exists(), what
    shutil.rmtree(folder)
    return state, what


def with_pickle(folder: Path, stream: bytes, where: str) -> None:
    """Puts a pickle in DCP's metadata, or in the archive around a tensor's numbers."""
    if where == "metadata":
        (folder / DCP_METADATA).write_bytes(stream)
    elif where == "entry":  # the archive's own pickle, overwritten where it lies
        data = (folder / DATA).read_bytes()
        start = data.index(b"\x80\x02ctorch._utils")
        (folder / DATA).write_bytes(data[:start] + stream + data[start + len(stream) :])
    else:  # a new archive behind the others, which the index names in their place
        archive = BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("archive/data.pkl", stream)
            file.writestr("archive/data/0", STATE["model.table"].numpy().tobytes())
        size = (folder / DATA).stat().st_size
        numbers = archive.getvalue().index(STATE["model.table"].numpy().tobytes())
        with (folder / DATA).open("ab") as data_file:
            data_file.write(archive.getvalue())
        index = json.loads((folder / INDEX).read_text())
        index["tensors"]["model.table"]["chunks"][0]["position"] = size + numbers
        (folder / INDEX).write_text(json.dumps(index))
    hashed_anew(folder)


def many_pickles(place: Path, whole: Path, count: int) -> None:
    live = 0
    for seed in range(count):
        random_ = random.Random(seed)
        stream = hostile_pickle(random_)
        live += creates_canary(stream)
        where = random_.choice(["metadata", "entry", "archive"])
        state, _ = in_case(
            place,
            whole,
            lambda folder, stream=stream, where=where: with_pickle(folder, stream, where),
            verify=True,
        )
        # An overwritten pickle may reach into the numbers, which are then other numbers.
        assert is_equal(state) or where == "entry", (seed, where)
    assert live > count / 3  # the streams are harmful where somebody unpickles them


def many_harms(place: Path, whole: Path, count: int) -> None:
    refused = 0
    for seed in range(count):
        random_ = random.Random(seed)

        def harm(folder: Path, random_: random.Random = random_) -> str:
            if random_.random() < 0.1:
                return add_file(folder, random_)
            path = random_.choice(sorted(folder.iterdir()))
            return f"{path.name}: {mutate_file(path, place / 'outside', random_)}"

        state, what = in_case(place, whole, harm, verify=True)
        assert state is None or is_equal(state), (seed, what)
        refused += state is None
    assert refused > 0.6 * count


def many_indices(place: Path, whole: Path, count: int) -> None:
    """The index changed by somebody who hashes the files anew."""
    refused = 0
    for seed in range(count):
        random_ = random.Random(seed)
        state, what = in_case(
            place, whole, lambda folder, random_=random_: spoil_index(folder, random_), verify=True
        )
        refused += state is None
        changes_numbers = any(part in what for part in ("position", "dtype"))
        assert state is None or is_equal(state) or changes_numbers, (seed, what)
    assert refused > 0.6 * count


ODD_VALUES = [
    "../outside/x",
    "/etc/passwd",
    "",
    ".",
    "..",
    "a/b",
    "\0",
    "x",
    CHECKSUMS,
    -1,
    0,
    1,
    3,
    2**40,
    2**62,
    2**70,
    1.5,
    True,
    None,
    [],
    {},
    [2**40, 2**40],
    [0, 0],
    [-1, 2],
    [6, 4],
    "int64",
    "object",
]


def spoil_index(folder: Path, random_: random.Random) -> str:
    index = json.loads((folder / INDEX).read_text())
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = node.keys() if isinstance(node, dict) else range(len(node))
        for key in list(keys):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(index)
    node, key = random_.choice(places)
    harm = random_.choice(["replace", "drop", "double"])
    if harm == "replace":
        node[key] = random_.choice(ODD_VALUES)
    elif harm == "drop":
        del node[key]
    elif isinstance(node, list):
        node.append(node[key])
    else:
        node[f"{key}x"] = node[key]
    (folder / INDEX).write_text(json.dumps(index))
    hashed_anew(folder)
    return f"{harm} {key}"


def test_the_canary_s_pickles_are_live(place: Path) -> None:
    assert [stream for stream in live_pickles() if not creates_canary(stream)] == []


def test_no_pickle_is_ever_loaded(place: Path, whole: Path) -> None:
    many_pickles(place, whole, 60)


def test_a_changed_file_is_refused_or_not_needed(place: Path, whole: Path) -> None:
    many_harms(place, whole, 120)


def test_an_index_that_lies_is_refused(place: Path, whole: Path) -> None:
    many_indices(place, whole, 120)


@pytest.mark.long
def test_many_hostile_checkpoints(place: Path, whole: Path) -> None:
    many_pickles(place, whole, 400)
    many_harms(place, whole, 600)
    many_indices(place, whole, 400)


LINES: dict[str, Callable[[str], str]] = {
    "dropped": lambda line: "",
    "doubled": lambda line: line + line,
    "another checksum": lambda line: ("1" if line[0] == "0" else "0") + line[1:],
    "above the folder": lambda line: line.replace("  ", "  ../"),
    "absolute": lambda line: line.replace("  ", "  /"),
    "without its end": lambda line: line[:-3],
    "spaces": lambda line: line.replace("  ", " "),
}


@pytest.mark.parametrize("change", LINES)
def test_every_line_of_the_checksums_counts(place: Path, whole: Path, change: str) -> None:
    lines = (whole / CHECKSUMS).read_text().splitlines(keepends=True)
    assert len(lines) == 6
    for number in range(len(lines)):

        def spoil(folder: Path, number: int = number) -> None:
            changed = [*lines]
            changed[number] = LINES[change](lines[number])
            (folder / CHECKSUMS).write_text("".join(changed))

        state, _ = in_case(place, whole, spoil, verify=True)
        assert state is None, lines[number]


def test_a_hostile_index_takes_no_memory(place: Path, whole: Path) -> None:
    """One file's bytes, named a thousand times, would be a thousand times as large in memory."""
    index = json.loads((whole / INDEX).read_text())
    [chunk] = index["tensors"]["model.table"]["chunks"]
    more = {"dtype": "float32", "size": [6, 4], "chunks": [chunk]}
    huge = {"dtype": "float32", "size": [2**40], "chunks": []}
    for added in ({f"x{number}": more for number in range(1000)}, {"x": huge}):
        folder = Path(shutil.copytree(whole, place / "case"))
        (folder / INDEX).write_text(json.dumps({"tensors": index["tensors"] | added}))
        hashed_anew(folder)
        with pytest.raises(ValueError, match=r"twice or behind its end|not covered by its chunks"):
            read_index(folder)
        shutil.rmtree(folder)


def test_a_hard_link_is_a_file_like_any_other(place: Path, whole: Path) -> None:
    folder = Path(shutil.copytree(whole, place / "case", copy_function=os.link))
    assert is_equal(read_all(folder))
