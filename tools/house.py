"""Measures the package's structure from its syntax trees: rooms, imports, sizes, docstrings.

    python tools/house.py            # the table; exits with 1 where a bound is broken
    python tools/house.py --where    # and every place that breaks one
    python tools/house.py --rooms    # and which room imports which

A *room* is a folder of ``mail_torchrec``, or of ``data`` and ``towers``. No code is run.
"""

import ast
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tools.structure`

from tools.structure import (
    PACKAGE,
    ROOT,
    Source,
    code_lines,
    functions,
    module_imports,
    num_lines,
    num_nodes,
    riddles,
    room_imports,
    shapeless_tensors,
    sources,
    two_way_pairs,
)

MAX_COLUMNS, MAX_FUNCTION_LINES, MAX_FILE_LINES, MAX_FOLDER_FILES = 100, 60, 300, 16
MAX_P90_NODES, MAX_NODES_A_LINE, MAX_README_LINES = 200, 11.0, 220


@dataclass(frozen=True)
class Measure:
    """One line of the table."""

    name: str
    value: object
    holds: bool | None = None
    """Whether the bound holds; None where there is none."""
    places: list[str] = field(default_factory=list)
    """Every place that breaks the bound."""


def house(modules: list[Source]) -> list[Measure]:
    """The whole table."""
    return [*_sizes(modules), *_imports(modules), *_functions(modules), *_language(modules)]


def _bounded(name: str, places: list[str]) -> Measure:
    """A count that should be 0."""
    return Measure(name, len(places), not places, places)


def _sizes(modules: list[Source]) -> list[Measure]:
    lengths = {source: source.text.count("\n") for source in modules}
    by_folder = Counter(str(source.path.parent.relative_to(ROOT)) for source in modules)
    allowed = ("__init__.py", "__main__.py", "config.py", "settings.py")
    loose = [path.name for path in PACKAGE.glob("*.py") if path.name not in allowed]
    readme = len((ROOT / "README.md").read_text().splitlines())
    return [
        Measure("files", len(modules)),
        Measure("median file, lines", statistics.median(lengths.values())),
        _bounded(
            f"files over {MAX_FILE_LINES} lines",
            [
                f"{source.place(source.tree)} {length}"
                for source, length in lengths.items()
                if length > MAX_FILE_LINES
            ],
        ),
        _bounded(
            f"folders of more than {MAX_FOLDER_FILES} files",
            [folder for folder, number in by_folder.items() if number > MAX_FOLDER_FILES],
        ),
        _bounded("modules loose at the root", loose),
        _bounded(f"lines over {MAX_COLUMNS} columns", long_lines(modules)),
        Measure("lines of README.md", readme, readme <= MAX_README_LINES),
    ]


def long_lines(modules: list[Source]) -> list[str]:
    """Every line over the limit."""
    return [
        f"{source.path.relative_to(ROOT)}:{number}"
        for source in modules
        for number, line in enumerate(source.text.splitlines(), start=1)
        if len(line) > MAX_COLUMNS
    ]


def _imports(modules: list[Source]) -> list[Measure]:
    return [
        _bounded("modules that import each other", two_way_pairs(module_imports(modules))),
        _bounded("rooms that import each other", two_way_pairs(room_imports(modules))),
    ]


def _functions(modules: list[Source]) -> list[Measure]:
    found = [(source, function) for source in modules for function in functions(source)]
    lengths = sorted(num_lines(function) for _, function in found)
    nodes = sorted(num_nodes(function) for _, function in found)
    p90 = nodes[int(0.9 * len(nodes))]
    a_line = sum(num_nodes(source.tree) for source in modules) / sum(map(code_lines, modules))
    return [
        Measure("functions", len(found)),
        Measure(
            "median / p90 function, lines",
            f"{statistics.median(lengths):.0f} / {lengths[int(0.9 * len(lengths))]}",
        ),
        _bounded(
            f"functions over {MAX_FUNCTION_LINES} lines",
            [
                f"{source.place(function)} {function.name} {num_lines(function)}"
                for source, function in found
                if num_lines(function) > MAX_FUNCTION_LINES
            ],
        ),
        Measure("syntax nodes a function, p90", p90, p90 < MAX_P90_NODES),
        Measure("syntax nodes a code line", round(a_line, 1), a_line <= MAX_NODES_A_LINE),
    ]


def _language(modules: list[Source]) -> list[Measure]:
    names: dict[str, list[str]] = defaultdict(list)
    for source in modules:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef):
                names[node.name].append(source.place(node))
    twice = [f"{name}: {', '.join(at)}" for name, at in names.items() if len(at) > 1]
    return [
        _bounded("docstrings that open with a question word", _all(riddles, modules)),
        _bounded("public tensor arguments without a shape", _all(shapeless_tensors, modules)),
        _bounded("class names used twice", twice),
    ]


def _all(check: Callable[[Source], Iterator[str]], modules: list[Source]) -> list[str]:
    return [place for source in modules for place in check(source)]


def files_by_room(modules: list[Source]) -> dict[str, int]:
    """Counts the files of each room."""
    return dict(sorted(Counter(source.room or "." for source in modules).items()))


@click.command(help=__doc__)
@click.option("--where", is_flag=True, help="Print every place that breaks a bound.")
@click.option("--rooms", is_flag=True, help="Print the files of each room and what it imports.")
def main(where: bool, rooms: bool) -> None:
    """Prints the table."""
    modules = sources()
    measures = house(modules)
    if rooms:
        imports = room_imports(modules)
        for room, number in files_by_room(modules).items():
            click.echo(f"{room:16} {number:3}  imports {', '.join(sorted(imports.get(room, ())))}")
    for measure in measures:
        mark = "" if measure.holds is None else "ok" if measure.holds else "NO"
        click.echo(f"{mark:3} {measure.name}: {measure.value}")
        if where:
            click.echo("".join(f"      {place}\n" for place in measure.places), nl=False)
    sys.exit(any(measure.holds is False for measure in measures))


if __name__ == "__main__":
    main()
