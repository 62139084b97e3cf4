"""Rooms behind the export stand on ``inference`` and ``data`` alone, and load no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mail_torchrec

PACKAGE = Path(mail_torchrec.__file__).parent
ROOMS = ("inference", "serve", "triton", "vectors", "abtest")
LOWER = {"data", "settings", "utils", "inference"}
ALLOWED = {room: LOWER | {room} for room in ROOMS} | {
    "abtest": LOWER | {"abtest", "reporting"},
    "inference": LOWER,
}

IMPORT_ALL = """
import importlib, sys, types
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton's own")
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted(name for name in sys.modules if name.partition(".")[0] in ("torch", "torchrec")))
"""


def modules(room: str) -> list[Path]:
    return sorted((PACKAGE / room).glob("*.py"))


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a module imports, also inside functions."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    parts = [name.split(".") for name in names]
    return {room[0] for package, *room in parts if package == "mail_torchrec" and room}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_behind_the_export_import_nothing_above_inference(room: str) -> None:
    assert modules(room)
    for path in modules(room):
        assert imported_rooms(path) <= ALLOWED[room], path


def test_no_module_behind_the_export_loads_torch() -> None:
    names = [f"mail_torchrec.{room}.{path.stem}" for room in ROOMS for path in modules(room)]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *names],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
