"""The project's tests that need a GPU, each result as it comes.

Those of tables in host memory are left to the stage ``uvm``.
"""

import re
import subprocess
import sys

from tools.gpu.runner import ROOT
from tools.gpu.stage import StageRun

OF_HOST_MEMORY = "host_memory or uvm"
_RESULT = re.compile(r"^(?P<test>\S+::.*?) (?P<word>PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_GOOD = ("PASSED", "SKIPPED", "XFAIL")
_NOTHING_COLLECTED = 5


def check(run: StageRun) -> None:
    """Runs them."""
    run_gpu_tests(run, f"not ({OF_HOST_MEMORY})")


def run_gpu_tests(run: StageRun, expression: str) -> None:
    """Runs the tests marked ``gpu`` whose names pytest's ``-k`` expression chooses.

    Only files that have such tests are collected, for others want packages that may be missing.

    Raises:
        RuntimeError: pytest ended without running them; the log says why.
    """
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text()
    ]
    options = "-m gpu -v --tb=short --color=no -W ignore -p no:cacheprovider".split()
    words = [sys.executable, "-m", "pytest", *options, "-k", expression, *files]
    counts: dict[str, int] = {}
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="")
            if found := _RESULT.match(line):
                word = found["word"]
                counts[word] = counts.get(word, 0) + 1
                run.record(found["test"], word, ok=word in _GOOD)
    if process.returncode not in (0, 1, _NOTHING_COLLECTED):
        raise RuntimeError(f"pytest ended with exit status {process.returncode}")
    text = ", ".join(f"{number} {word.lower()}" for word, number in sorted(counts.items()))
    # On a GPU tests that are all skipped have shown nothing.
    ok = run.device == "cpu" or counts.get("PASSED", 0) > 0
    run.record("tests", counts, ok=ok, text=text or "no test was found")
