"""No module behind the export loads torch, in an interpreter where nothing else does."""

import subprocess
import sys
from pathlib import Path

import mail_torchrec

PACKAGE = Path(mail_torchrec.__file__).parent
ROOMS = ("inference", "deltas", "serve", "triton", "vectors", "abtest")

IMPORT_ALL = """
import importlib, sys, types
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton's own")
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted(name for name in sys.modules if name.partition(".")[0] in ("torch", "torchrec")))
"""


def test_no_module_behind_the_export_loads_torch() -> None:
    names = [
        f"mail_torchrec.{room}.{path.stem}"
        for room in ROOMS
        for path in sorted((PACKAGE / room).glob("*.py"))
    ]
    assert len(names) > 40
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *names],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
