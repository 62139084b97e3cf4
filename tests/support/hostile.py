"""Hostile folders: files mutated, dropped, replaced, linked and added; pickles with a canary.

Everything is drawn from a random generator, so that a case can be run again by its seed.
"""

import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from mail_torchrec.records.checksums import CHECKSUMS
from mail_torchrec.records.run_record import begin_record

CANARY = "canary"
"""Folder below the current one that hostile pickles create."""

_UNRECORDED = {CHECKSUMS, ".lock", "run.json", "checkpoints", "tensorboard", "loss_curves.png"}
_PATH = b"V" + CANARY.encode() + b"\n"
_CALLS = (
    b"cos\nmkdir\n(" + _PATH + b"tR",
    b"(" + _PATH + b"ios\nmkdir\n",
    b"(cos\nmkdir\n" + _PATH + b"o",
    b"\x8c\x02os\x8c\x05mkdir\x93" + _PATH + b"\x85R",
    b"cos\nmkdir\nq\x00" + _PATH + b"\x85q\x010h\x00h\x01R",
    b"\x8c\x02os\x94\x8c\x05mkdir\x94h\x00h\x01\x93" + _PATH + b"\x85\x94R",
    b"cbuiltins\neval\nV__import__('os').mkdir('" + CANARY.encode() + b"')\n\x85R",
    b"cos\nmakedirs\n" + _PATH + b"\x85R",
)
_CLASSES = (
    b"ctorch.distributed.checkpoint.metadata\nMetadata\n",
    b"ctorch.distributed.checkpoint.metadata\nBytesStorageMetadata\n",
    b"ctorch.distributed.checkpoint.filesystem\n_StorageInfo\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n",
    b"cmail_torchrec.checkpoint.storage\n_NumbersReader\n",
)
_NOISE = (
    b"N",
    b"]",
    b"}",
    b")",
    b"K\x07",
    b"(I1\nI2\nt",
    b"\x8c\x01a",
    b"]q\x05",
    b"N\x94",
    b"K\x01\x85",
    b"\x82\x01",
    b"Vid\nQ",
    b"Pid\n",
)


def live_pickles() -> list[bytes]:
    """Pickles that do create the canary when they are loaded without care."""
    return [call + b"." for call in _CALLS]


def hostile_pickle(random_: random.Random) -> bytes:
    """Draws a stream of opcodes: calls, classes changed by BUILD, memo, extensions, noise."""
    parts = [b"\x80\x04"] if random_.random() < 0.5 else []
    for _ in range(random_.randint(0, 3)):
        parts.append(random_.choice(_NOISE))
    call = random_.choice(_CALLS)
    form = random_.randrange(6)
    if form == 0:  # a class whose attributes BUILD sets to the result of a call
        parts += [random_.choice(_CLASSES), b"}V__setstate__\n", call, b"s", b"b"]
    elif form == 1:  # an instance whose __class__ and state are given
        parts += [random_.choice(_CLASSES), b")\x81}V__class__\n", call, b"sb"]
    elif form == 2:  # keyword arguments
        parts += [b"csubprocess\nPopen\n)}Vargs\n](Vmkdir\n" + _PATH + b"es\x92"]
    elif form == 3:
        parts += [b"(", call, random_.choice(_CLASSES), b"d"]
    else:
        parts.append(call)
    for _ in range(random_.randint(0, 2)):
        parts.append(random_.choice(_NOISE))
    stream = b"".join(parts) + b"."
    if random_.random() < 0.2:
        place = random_.randrange(len(stream))
        stream = stream[:place] + random_.randbytes(1) + stream[place + 1 :]
    return stream


def creates_canary(stream: bytes) -> bool:
    """Loads a pickle as a careless reader would, and tells if that created the canary."""
    try:
        pickle.loads(stream)
    except Exception:  # what it does is what counts
        pass
    created = Path(CANARY).exists()
    shutil.rmtree(CANARY, ignore_errors=True)
    return created


def mutate_file(path: Path, outside: Path, random_: random.Random) -> str:
    """Does one of many harms to a file; returns which.

    Args:
        path: the file.
        outside: folder that files may be moved to.
        random_: generator.
    """
    harms: dict[str, Callable[[], object]] = {
        "flip": lambda: _flip(path, random_),
        "cut": lambda: os.truncate(path, random_.randrange(max(path.stat().st_size, 1))),
        "empty": lambda: os.truncate(path, 0),
        "grow": lambda: path.write_bytes(path.read_bytes() + random_.randbytes(9)),
        "noise": lambda: path.write_bytes(random_.randbytes(random_.randrange(200))),
        "drop": path.unlink,
        "link": lambda: _link(path, outside),
        "pipe": lambda: (path.unlink(), os.mkfifo(path)),
        "folder": lambda: (path.unlink(), path.mkdir()),
        "device": lambda: (path.unlink(), path.symlink_to("/dev/zero")),
        "loop": lambda: (path.unlink(), path.symlink_to(path.name)),
        "text": lambda: path.write_text(random_.choice(["{}", "[]", "[" * 100_000, "null", "\0"])),
    }
    name = random_.choice(list(harms))
    harms[name]()
    return name


def recorded_anew(run: Path) -> Path:
    """Writes the record that fits a run's files, as whoever changes them can; returns the run."""
    names = [path.name for path in run.iterdir() if path.name not in _UNRECORDED]
    begin_record(run, names)
    return run


def add_file(folder: Path, random_: random.Random) -> str:
    """Adds a file, link or pipe with a name that some reader may look for."""
    name = random_.choice(["x", ".metadata.tmp", "__9_0.distcp", "vocabularies.json", ".x", "a b"])
    kinds: list[Callable[[Path], object]] = [
        lambda path: path.write_bytes(random_.randbytes(30)),
        os.mkfifo,
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.mkdir(),
    ]
    random_.choice(kinds)(folder / name)
    return f"add {name}"


def _flip(path: Path, random_: random.Random) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
    path.write_bytes(data)


def _link(path: Path, outside: Path) -> None:
    target = outside / "moved"
    target.unlink(missing_ok=True)
    path.rename(target)
    path.symlink_to(target)
