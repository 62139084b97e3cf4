"""A run whose files somebody changed gives its figures or one line, and touches nothing outside."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mail_torchrec.checkpoint.inspection import verify_checkpoints
from mail_torchrec.config import Config, dump_config, load_config
from mail_torchrec.export.finished_run import FinishedRun
from mail_torchrec.planning.compare import compare_run
from mail_torchrec.planning.scenarios import parse_grid
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.records.checksums import CHECKSUMS
from mail_torchrec.reporting.comparison import as_json, compare
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.hostile import add_file, mutate_file, recorded_anew
from tests.support.small_rows import config_tree, write_rows

Reader = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its predictions."""
    folder = tmp_path_factory.mktemp("whole")
    write_rows(folder / "rows/train/a.parquet", 120, seed=1)
    write_rows(folder / "rows/test/b.parquet", 60, seed=2)
    tree = config_tree(folder / "rows")
    tree["train"] |= {"save_predictions": True, "log_every": 1}
    train(Config.model_validate(tree), RunDir(folder / "run"))
    (folder / "mine.yaml").write_text(dump_config(Config.model_validate(tree)))
    return folder / "run"


def planned(run: Path) -> Any:
    none: dict[str, Any] = {"batch_sizes": None, "vary": (), "rows": ()}
    grid = parse_grid(run, (), hardware_name="cpu", hardware_overrides=(), ranks="2", **none)
    return [(scenario.name, scenario.num_rows) for scenario in grid.scenarios()]


def opened_for_export(run: Path) -> Any:
    found = FinishedRun.open(RunDir(run))
    weights = [float(value.double().sum()) for value in found.towers.state_dict().values()]
    return dump_config(found.config), found.encoders.num_rows, found.metrics, weights


def verified(run: Path) -> str:
    if faults := verify_checkpoints(run):
        assert all(len(fault.splitlines()) == 1 for fault in faults), faults
        raise ValueError(faults[0])
    return "whole"


def compared(run: Path) -> Any:
    return json.loads(as_json(compare([run])))[0]["metrics"]


READERS: dict[str, Reader] = {
    "compare": compared,
    "plan": planned,
    "plan --compare": lambda run: compare_run(RunDir(run), None, ()),
    "checkpoint verify": verified,
    "export": opened_for_export,
    "evaluate": lambda run: evaluate_run(RunDir(run), None, []),
}


def resumed(run: Path, whole: Path) -> Any:
    return train(load_config(whole.parent / "mine.yaml", []), RunDir(run), resume=True)


def outcome(read: Callable[..., Any], *paths: Path) -> Any:
    """What a reader finds; None where it refuses, in one line."""
    try:
        return read(*paths)
    except (ValueError, OSError) as error:
        first, *faults = str(error).splitlines()  # every fault of a configuration has a line
        assert first and all(fault.startswith("  ") for fault in faults), error
        return None


def outside(place: Path) -> dict[Path, bytes | None]:
    """All that lies beside the case."""
    paths = (path for path in place.rglob("*") if place / "case" not in (path, *path.parents))
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def in_cases(
    whole: Path, place: Path, seeds: Iterator[int] | range, harm: Callable[..., str]
) -> list[tuple[str, dict[str, Any]]]:
    """Harms a copy for each seed, and reads it by every command, at last by ``train --resume``."""
    (place / "outside").mkdir(exist_ok=True)
    found = []
    for seed in seeds:
        run = Path(shutil.copytree(whole, place / "case"))
        what = f"{seed}: {harm(run, random.Random(seed))}"
        before = outside(place)
        outcomes = {name: outcome(read, run) for name, read in READERS.items()}
        outcomes["resume"] = outcome(resumed, run, whole)
        assert outside(place) == before, what
        found.append((what, outcomes))
        shutil.rmtree(place / "case")
        shutil.rmtree(place / "outside")
        (place / "outside").mkdir()
    return found


@pytest.fixture(scope="module")
def expected(whole: Path) -> dict[str, Any]:
    found = {name: read(whole) for name, read in READERS.items()}
    return found | {"resume": resumed(whole, whole)}


def own_files(run: Path) -> list[Path]:
    files = (path for path in sorted(run.rglob("*")) if path.is_file())
    return [path for path in files if path.relative_to(run).parts[0] != "checkpoints"]


def harm_file(run: Path, random_: random.Random) -> str:
    if random_.random() < 0.1:
        return add_file(random_.choice([run, run / "vocabularies", run / "checkpoints"]), random_)
    path = random_.choice(own_files(run))
    return f"{path.relative_to(run)}: {mutate_file(path, run.parent / 'outside', random_)}"


def harm_folder(run: Path, random_: random.Random) -> str:
    folder = random_.choice([path for path in sorted(run.iterdir()) if path.is_dir()])
    moved = run.parent / "outside" / folder.name
    harms: dict[str, Callable[[], object]] = {
        "link": lambda: (folder.rename(moved), folder.symlink_to(moved)),
        "drop": lambda: shutil.rmtree(folder),
        "file": lambda: (shutil.rmtree(folder), folder.touch()),
        "pipe": lambda: (shutil.rmtree(folder), os.mkfifo(folder)),
        "loop": lambda: (shutil.rmtree(folder), folder.symlink_to(folder.name)),
    }
    name = random_.choice(list(harms))
    harms[name]()
    return f"{folder.name}: {name}"


def harm_line(run: Path, random_: random.Random) -> str:
    lines = (run / CHECKSUMS).read_text().splitlines(keepends=True)
    number = random_.randrange(len(lines))
    checksum, name = lines[number].rstrip("\n").split("  ")
    other = [
        "",
        2 * lines[number],
        f"{checksum[::-1]}  {name}\n",
        f"{checksum}  ../{name}\n",
        f"{checksum}  /{name}\n",
        f"{checksum} {name}\n",
    ]
    lines[number] = random_.choice(other)
    (run / CHECKSUMS).write_text("".join(lines))
    return f"{name}: {lines[number]}"


def check_equal_or_refused(
    found: list[tuple[str, dict[str, Any]]], expected: dict[str, Any]
) -> None:
    wrong = [
        (what, name)
        for what, outcomes in found
        for name, value in outcomes.items()
        if value is not None and value != expected[name]
    ]
    assert wrong == []
    refused = [value is None for _, outcomes in found for value in outcomes.values()]
    assert sum(refused) > 0.1 * len(refused)


def test_a_changed_run_gives_its_figures_or_is_refused(
    whole: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    check_equal_or_refused(in_cases(whole, tmp_path, range(6), harm_file), expected)
    check_equal_or_refused(in_cases(whole, tmp_path, range(2), harm_folder), expected)
    check_equal_or_refused(in_cases(whole, tmp_path, range(2), harm_line), expected)


@pytest.mark.long
@pytest.mark.parametrize("harm", [harm_file, harm_folder, harm_line])
def test_many_changed_runs(
    whole: Path, expected: dict[str, Any], tmp_path: Path, harm: Callable[..., str]
) -> None:
    count = {harm_file: 30, harm_folder: 10, harm_line: 12}[harm]
    check_equal_or_refused(in_cases(whole, tmp_path, range(count), harm), expected)


ODD_VALUES = ["../x", "/etc/passwd", "", "\0\n", 0, -1, 2**70, 1e308, True, None, [], {}, [[1]]]


def spoil_document(run: Path, random_: random.Random) -> str:
    """Changes one value of a document, and records the run anew, as whoever makes it can."""
    paths = [path for path in own_files(run) if path.suffix in (".json", ".jsonl", ".yaml")]
    path = random_.choice(paths)
    lines = path.suffix == ".jsonl"
    parse = yaml.safe_load if path.suffix == ".yaml" else json.loads
    content = [json.loads(line) for line in path.read_text().splitlines()] if lines else None
    content = content if lines else parse(path.read_text())
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node.keys() if isinstance(node, dict) else range(len(node))):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(content)
    node, key = random_.choice(places)
    if random_.random() < 0.3:
        del node[key]
    else:
        node[key] = random_.choice(ODD_VALUES)
    dumped = "\n".join(map(json.dumps, content)) if lines else json.dumps(content)
    path.write_text(dumped)
    recorded_anew(run)
    return f"{path.relative_to(run)}: {key} = {node[key] if key in node else 'gone'!r}"


def test_documents_that_lie_are_refused_or_read(whole: Path, tmp_path: Path) -> None:
    """Nothing is promised of the figures: a checksum is no signature."""
    assert len(in_cases(whole, tmp_path, range(5), spoil_document)) == 5


@pytest.mark.long
def test_many_documents_that_lie(whole: Path, tmp_path: Path) -> None:
    assert len(in_cases(whole, tmp_path, range(25), spoil_document)) == 25
