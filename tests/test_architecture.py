"""Structure of the package: who imports whom, sizes, names. Each test lists all offenders."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tools import house, structure
from tools.house import Measure
from tools.structure import ROOT, Source, imported_modules, room_of

LAYERS = [
    {"settings"},
    {"utils"},
    {"records", "validation", "calibration", "drift"},
    {"losses", "data/parquet"},
    {"data/ids"},
    {"data/schema"},
    {"data/derived", "data/content", "data/items"},
    {"data"},
    {"data/weights"},
    {"data/checks"},
    {"data/reading"},
    {"distributed", "reporting", "trackers", "continuation"},
    {"metrics", "vocabularies"},
    {"towers/layers"},
    {"towers"},
    {"towers/tasks", "towers/zero_shot"},
    {"baselines"},
    {"embeddings/communication", "embeddings/rates"},
    {"embeddings"},
    {"embeddings/touched"},
    {"model"},
    {"optim", "profiling"},
    {"inference/tables"},
    {"checkpoint", "inference", "predictions"},
    {"deltas"},
    {"config"},
    {"train/cost"},
    {"train"},
    {"predict", "reproduce/methods"},
    {
        "doctor",
        "planning",
        "reproduce",
        "sweep",
        "export",
        "prepare",
        "synthetic",
        "data_check",
        "daily",
        "known_ids",
    },
    {"publishing", "planning/measured", "reproduce/curves", "reproduce/coldrec", "diagnose"},
    {"abtest", "vectors", "serve", "triton", "prepare/events"},
    {"cli"},
    {"__main__"},
]
"""Lower to higher: a room may import rooms of lower layers, and none beside it."""
PLAIN_TENSORS = {
    *("towers", "towers/layers", "towers/tasks", "towers/zero_shot"),
    *("losses", "baselines"),
}
"""Rooms that see tensors and nothing of data, tables or training."""
BEHIND_AN_ARTEFACT = {
    "inference",
    "inference/tables",
    "deltas",
    "publishing",
    "serve",
    "triton",
    "vectors",
    "abtest",
}
"""Rooms that score and compare what was exported: they import no torch."""
UNDER_AN_ARTEFACT = {
    "utils",
    "settings",
    "records",
    "calibration",
    "drift",
    "data",
    "data/schema",
    "data/content",
    "data/derived",
    "data/items",
    "data/weights",
    "data/parquet",
    "data/ids",
} | {
    "data/reading",
    "reporting",
    *BEHIND_AN_ARTEFACT,
}
LIBRARY_HOMES = {
    "torchrec.distributed": {
        *("embeddings", "embeddings/touched", "distributed", "train", "planning"),
        "embeddings/communication",
    },
    "torchrec": {
        *("data/reading", "embeddings", "distributed", "model", "optim", "train"),
        *("embeddings/communication", "embeddings/touched"),
        *("train/cost", "planning", "export"),
    },
    "torchx": {"sweep", "planning/measured"},
    "ibis": {"prepare", "prepare/events"},
    "duckdb": set(),
    "onnxruntime": {"inference"},
    "onnx_ir": {"export", "inference"},
    "faiss": {"vectors"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "grpc": {"serve"},
    "tritonclient": {"serve", "triton"},
    "prometheus_client": {"serve"},
    "mlflow": {"trackers"},
    "optuna": {"sweep"},
}


@pytest.fixture(scope="module")
def modules() -> list[Source]:
    return structure.sources()


@pytest.fixture(scope="module")
def measures(modules: list[Source]) -> dict[str, Measure]:
    return {measure.name: measure for measure in house.house(modules)}


def part(source: Source) -> str:
    """The room of a module, or its own name at the package's root."""
    return source.room or source.path.stem


def part_of_module(name: str) -> str:
    """The same of a dotted name, ``mail_torchrec.data.ids.hash``."""
    parts = name.split(".")[1:]
    folder = structure.PACKAGE
    rooms = tuple(p for i, p in enumerate(parts) if folder.joinpath(*parts[: i + 1]).is_dir())
    return room_of(rooms) or (parts[0] if parts else "")


def package_imports(source: Source) -> set[str]:
    """Rooms, and modules at the root, that a module imports."""
    names = {n for n in imported_modules(source) if n.startswith("mail_torchrec.")}
    return {part_of_module(name) for name in names} - {part(source)}


def layer(room: str) -> int:
    [index] = [i for i, rooms in enumerate(LAYERS) if room in rooms]
    return index


def test_every_room_has_a_layer(modules: list[Source]) -> None:
    named = [room for rooms in LAYERS for room in rooms]
    assert len(named) == len(set(named))
    assert {part(source) for source in modules} - {"__init__"} == set(named)


def test_imports_point_downwards(modules: list[Source]) -> None:
    wrong = [
        f"{source.module} ({part(source)}) imports {room}"
        for source in modules
        if source.path.stem != "__init__"
        for room in package_imports(source)
        if layer(room) >= layer(part(source)) and {room, part(source)} != {"config", "train"}
    ]
    assert not wrong


def test_config_takes_only_settings_from_the_rooms(modules: list[Source]) -> None:
    """So the root of the configuration does not depend on what the settings build."""
    [config] = [source for source in modules if source.module == "mail_torchrec.config"]
    names = {name for name in imported_modules(config) if name.startswith("mail_torchrec.train")}
    assert {name.split(".")[2] for name in names} == {"settings"}


def test_towers_and_losses_know_neither_data_nor_tables_nor_training(
    modules: list[Source],
) -> None:
    allowed = PLAIN_TENSORS | {"utils", "settings", "distributed"}
    wrong = [
        f"{source.module} imports {room}"
        for source in modules
        if part(source) in PLAIN_TENSORS
        for room in package_imports(source) - allowed
    ]
    assert not wrong


def test_what_stands_behind_an_artefact_imports_inference_and_data_alone(
    modules: list[Source],
) -> None:
    allowed = BEHIND_AN_ARTEFACT | UNDER_AN_ARTEFACT
    wrong = [
        f"{source.module} imports {room}"
        for source in modules
        if part(source) in BEHIND_AN_ARTEFACT
        for room in package_imports(source) - allowed
    ]
    assert not wrong


def test_libraries_stay_in_their_rooms(modules: list[Source]) -> None:
    wrong = [
        f"{source.module} imports {library}"
        for library, homes in LIBRARY_HOMES.items()
        for source in modules
        if part(source) not in homes
        and any(n == library or n.startswith(library + ".") for n in imported_modules(source))
    ]
    assert not wrong


def test_only_components_import_torchx_and_they_name_the_package_as_a_string() -> None:
    [component] = [s for s in map(_parsed, (ROOT / "components").glob("*.py"))]
    names = imported_modules(component)
    assert any(name.startswith("torchx") for name in names)
    assert not any(name.startswith("mail_torchrec") for name in names)


@pytest.mark.parametrize(
    "name",
    [
        f"files over {house.MAX_FILE_LINES} lines",
        f"folders of more than {house.MAX_FOLDER_FILES} files",
        "modules loose at the root",
        f"lines over {house.MAX_COLUMNS} columns",
        "modules that import each other",
        "rooms that import each other",
        f"functions over {house.MAX_FUNCTION_LINES} lines",
        "syntax nodes a function, p90",
        "syntax nodes a code line",
        "docstrings that open with a question word",
        "public tensor arguments without a shape",
        "class names used twice",
        "lines of README.md",
    ],
)
def test_the_house_keeps_its_bounds(name: str, measures: dict[str, Measure]) -> None:
    measure = measures[name]
    assert measure.holds, f"{measure.value}: {measure.places}"


def test_tools_and_components_keep_the_same_sizes() -> None:
    others = [*structure.sources(ROOT / "components"), *structure.sources(ROOT / "tools")]
    long_files = [s.path.name for s in others if s.text.count("\n") > house.MAX_FILE_LINES]
    long_functions = [
        f"{source.path.name}: {function.name}"
        for source in others
        for function in structure.functions(source)
        if structure.num_lines(function) > house.MAX_FUNCTION_LINES
        and source.path.parent.name != "components"  # a component's parameters are its help
    ]
    assert not long_files and not long_functions and not house.long_lines(others)


def test_importing_the_command_line_loads_no_torch_and_no_engine_and_prints_nothing() -> None:
    heavy = "{'torch', 'ibis', 'duckdb', 'pyspark'}"
    code = f"import sys, mail_torchrec.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "[]\n" and done.stderr == ""


SAMPLE = '''
"""Which module is this?"""
import numpy as np
from torch import Tensor

class Rows:
    """Rows of a batch."""

    ids: Tensor
    weights: Tensor
    """Weight of each row, ``[rows]``."""
    label_B: Tensor

    def take(self, rows: Tensor, part_B: Tensor) -> Tensor:
        """Some of the rows."""

def of(one: Tensor, other: Tensor, column: "pa.Array") -> None:
    """Joins two.

    Args:
        one: values, ``[rows, columns]``.
        other: values.
        column: of a file.
    """
'''


def test_the_measures_find_what_they_look_for(tmp_path: Path) -> None:
    """A checker that finds nothing would hold every bound."""
    path = structure.PACKAGE / "sample.py"  # never written
    source = Source(path, SAMPLE, ast.parse(SAMPLE))
    assert len(list(structure.riddles(source))) == 1
    found = [place.split(" ", 1)[1] for place in structure.shapeless_tensors(source)]
    assert found == ["Rows.ids", "take(rows)", "of(other)"]
    pairs = structure.two_way_pairs({"a": {"b", "c"}, "b": {"a"}, "c": set()})
    assert pairs == ["a <-> b"]


def _parsed(path: Path) -> Source:
    return Source(path, path.read_text(), ast.parse(path.read_text()))
