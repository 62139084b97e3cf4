"""Some steps under NVIDIA's compute-sanitizer, which finds accesses outside of memory and races."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tools.gpu.stage import StageRun

_PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
_RESERVED_SECONDS = 5.0
_SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error")


def check_memory(run: StageRun) -> None:
    """Runs the stage ``steps`` under it; on a CPU, or where it is missing, without.

    Where its time ends before it does, that is recorded and no error.
    """
    limit = run.seconds_left - _RESERVED_SECONDS
    words = [sys.executable, "-m", "tools.gpu.stage", "steps", f"{limit:.0f}"]
    words += ["--device", run.device, "--small", "--scratch", str(run.scratch)]
    words += ["--out", str(run.out), "--record", str(run.scratch / "steps.jsonl")]
    path = os.pathsep.join([os.environ.get("PATH", ""), *_PLACES])
    tool = shutil.which("compute-sanitizer", path=path) if run.device == "cuda" else None
    if tool is None:
        subprocess.run(words, check=True, timeout=limit)
        reason = "a CPU has none" if run.device == "cpu" else "compute-sanitizer was not found"
        run.record("sanitizer", reason, text=f"two steps ran without it: {reason}")
        return
    log = Path(run.scratch / "sanitizer.txt")
    # Torch's own cache of memory would hide accesses behind the end of a tensor.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    options = ["--tool", "memcheck", "--target-processes", "all", "--log-file", str(log)]
    try:
        status = subprocess.run([tool, *options, *words], env=environment, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        run.record("memcheck", None, text=f"memcheck did not end in {limit:.0f} s")
        return
    text = log.read_text(errors="replace") if log.exists() else ""
    print(text[-20_000:])
    found = _SUMMARY.search(text)
    if found is None:
        run.record("memcheck", status, text=f"memcheck did not run: {_first_line(text)}")
        return
    errors = int(found[1])
    run.record("memcheck", errors, ok=not errors, text=f"memcheck: {errors} errors in two steps")


def _first_line(text: str) -> str:
    lines = (line.strip("= \n") for line in text.splitlines())
    return next((line for line in lines if line and "COMPUTE-SANITIZER" not in line), "no output")
