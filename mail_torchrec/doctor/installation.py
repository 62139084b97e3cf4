"""Inspects an installation: installed versions, imports, devices.

torch, FBGEMM and TorchRec are imported in a process of their own, so that a crash while importing
is a finding and does not end the report.
"""

import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The modules that must import, in this order; and the beginning of a line of facts from the other
# process.
_MODULES = ("torch", "fbgemm_gpu", "torchrec")
_MARK = "mail-torchrec facts: "
_PROBE_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU that torch can use."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Installation:
    """The facts of an installation that a diagnosis needs."""

    python: tuple[int, int, int]
    num_cpus: int
    """CPUs that this process may use."""
    distributions: Mapping[str, str]
    """Version of each installed distribution, by its name in lower case with hyphens."""
    driver: str | None = None
    """The NVIDIA driver's version; None without a driver."""
    visible_devices: str | None = None
    """CUDA_VISIBLE_DEVICES, which can hide GPUs."""
    cuda_build: str | None = None
    """The CUDA that torch was built for; None for a CPU build."""
    gpus: tuple[Gpu, ...] = ()
    backends: tuple[str, ...] = ()
    """The collective backends that torch was built with, of gloo and nccl."""
    import_errors: Mapping[str, str] = field(default_factory=dict)
    """Error of each module that does not import."""


def inspect_installation() -> Installation:
    """Collects the facts of this machine and of the running Python."""
    distributions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        distributions.setdefault(name, distribution.version)
    return Installation(
        python=sys.version_info[:3],
        num_cpus=_num_cpus(),
        distributions=distributions,
        driver=_driver(),
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        **_probe_in_subprocess(),
    )


def probe() -> None:
    """Imports the modules and prints a marked line of facts for each; runs in its own process."""
    for module in _MODULES:
        facts: dict[str, Any] = {"module": module}
        try:
            imported = importlib.import_module(module)
            if module == "torch":
                facts |= _torch_facts(imported)
        except Exception as error:  # whatever an import raises is the finding
            facts["error"] = f"{type(error).__name__}: {error}"
        print(_MARK + json.dumps(facts), flush=True)


def _torch_facts(torch: Any) -> dict[str, Any]:
    """Collects the fields of an Installation that torch knows, as JSON values."""
    available = torch.distributed.is_available()
    backends = {
        "gloo": available and torch.distributed.is_gloo_available(),
        "nccl": available and torch.distributed.is_nccl_available(),
    }
    devices = (
        [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    return {
        "cuda_build": torch.version.cuda,
        "gpus": [
            {"name": d.name, "memory_bytes": d.total_memory, "capability": [d.major, d.minor]}
            for d in devices
        ],
        "backends": [name for name, there in backends.items() if there],
    }


def _probe_in_subprocess() -> dict[str, Any]:
    """Runs :func:`probe` in another process, and returns the fields of an Installation."""
    path = os.pathsep.join(
        filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
    )
    command = [sys.executable, "-c", "from mail_torchrec.doctor.installation import probe; probe()"]
    try:
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
        )
        return parse_probe(done.stdout, done.stderr, done.returncode)
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return parse_probe(output, f"no answer within {_PROBE_SECONDS} seconds", -1)


def parse_probe(stdout: str, stderr: str, exit_code: int) -> dict[str, Any]:
    """Parses the output of :func:`probe`.

    Args:
        stdout: its output, with the libraries' own lines in between.
        stderr: its errors; the last line explains an early end.
        exit_code: as subprocess gives it, negative for a signal.

    Returns:
        The fields cuda_build, gpus, backends and import_errors of an Installation.
    """
    lines = [line.removeprefix(_MARK) for line in stdout.splitlines() if line.startswith(_MARK)]
    seen = {facts["module"]: facts for facts in map(json.loads, lines)}
    errors = {module: facts["error"] for module, facts in seen.items() if "error" in facts}
    if unseen := [module for module in _MODULES if module not in seen]:
        last = (stderr.strip().splitlines() or ["no message"])[-1]
        errors[unseen[0]] = f"the process ended while importing it, exit code {exit_code}: {last}"
    facts = seen.get("torch", {})
    return {
        "cuda_build": facts.get("cuda_build"),
        "gpus": _parse_gpus(facts),
        "backends": tuple(facts.get("backends", [])),
        "import_errors": errors,
    }


def _parse_gpus(facts: Mapping[str, Any]) -> tuple[Gpu, ...]:
    return tuple(
        Gpu(name=gpu["name"], memory_bytes=gpu["memory_bytes"], capability=tuple(gpu["capability"]))
        for gpu in facts.get("gpus", [])
    )


def _num_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _driver() -> str | None:
    """Finds the NVIDIA driver's version, by the rule of launch/install.sh.

    Either nvidia-smi answers, or the kernel module and its device exist.
    """
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.split()[0]
    kernel = Path("/proc/driver/nvidia/version")
    if kernel.exists() and Path("/dev/nvidiactl").exists():
        found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", kernel.read_text())
        return found.group() if found else "of unknown version"
    return None
