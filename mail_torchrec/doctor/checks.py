"""Diagnoses an installation, as ``mail-torchrec doctor`` reports it.

It checks that the versions fit together and fit the machine. :func:`diagnose` is a pure function
over an :class:`~mail_torchrec.doctor.installation.Installation`. ``python -m mail_torchrec.doctor``
gives the same report where the command itself cannot start.
"""

import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mail_torchrec.doctor.installation import Installation, inspect_installation

_CUDA_FBGEMM, _CPU_FBGEMM = _FBGEMM = ("fbgemm-gpu", "fbgemm-gpu-cpu")
_REINSTALL_ALL = "rm -r .venv && ./launch/install.sh"
# The oldest compute capability that FBGEMM's CUDA wheel is built for.
_OLDEST_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Problem:
    """A mismatch of an installation.

    Attributes:
        finding: the mismatch.
        cause: the reason that it does not work.
        fix: the command, or the step, that repairs it.
    """

    finding: str
    cause: str
    fix: str


def diagnose(installation: Installation) -> list[Problem]:
    """Finds all problems of an installation, causes before their consequences."""
    return [problem for check in _CHECKS for problem in check(installation)]


def report(installation: Installation, problems: list[Problem]) -> str:
    """Formats the facts as a table, then each problem with its cause and its fix."""
    facts = _facts(installation)
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {value}" for name, value in facts]
    lines += [
        "",
        f"{len(problems)} problem{'s' * (len(problems) != 1)} found{':' if problems else '.'}",
    ]
    for number, problem in enumerate(problems, 1):
        lines += [
            "",
            f"{number}. {problem.finding}",
            f"   cause: {problem.cause}",
            f"   fix:   {problem.fix}",
        ]
    return "\n".join(lines)


def main() -> int:
    """Prints the report.

    Returns:
        The exit code: 0 without problems, else 1.
    """
    installation = inspect_installation()
    problems = diagnose(installation)
    print(report(installation, problems))
    return 1 if problems else 0


def _facts(installation: Installation) -> list[tuple[str, str]]:
    """Lists names and values of the report's table."""
    python = ".".join(map(str, installation.python))
    return [
        ("Python", f"{python} on {platform.system()} {platform.machine()}"),
        *_package_facts(installation),
        ("CPUs", str(installation.num_cpus)),
        ("NVIDIA driver", installation.driver or "none"),
        ("GPUs", _describe_gpus(installation)),
        ("collectives", ", ".join(installation.backends) or "none"),
    ]


def _package_facts(installation: Installation) -> list[tuple[str, str]]:
    versions = installation.distributions
    build = f"CUDA {installation.cuda_build} build" if installation.cuda_build else "CPU build"
    others = ("numpy", "pyarrow", "scikit-learn", "torchx", "duckdb", "ibis-framework")
    return [
        ("torch", f"{versions['torch']} ({build})" if "torch" in versions else "not installed"),
        ("FBGEMM", " and ".join(_installed(versions, _FBGEMM)) or "not installed"),
        ("TorchRec", versions.get("torchrec", "not installed")),
        ("others", ", ".join(_installed(versions, others)) or "not installed"),
    ]


def _installed(versions: Mapping[str, str], names: Sequence[str]) -> list[str]:
    return [f"{name} {versions[name]}" for name in names if name in versions]


def _describe_gpus(installation: Installation) -> str:
    gpus = []
    for index, gpu in enumerate(installation.gpus):
        capability = "".join(map(str, gpu.capability))
        memory = f"{gpu.memory_bytes / 2**30:.0f} GiB"
        gpus.append(f"{index}: {gpu.name}, {memory}, sm_{capability}")
    return "; ".join(gpus) or "none"


def _required_fbgemm(installation: Installation) -> tuple[str, str] | None:
    """Returns FBGEMM's package for this machine, and its version and TorchRec's for this torch.

    Torch 2.(X+5) needs 1.X of both; None without a known torch.
    """
    torch = re.match(r"2\.(\d+)\.", installation.distributions.get("torch", ""))
    if torch is None:
        return None
    package = _CUDA_FBGEMM if installation.driver else _CPU_FBGEMM
    return package, f"1.{int(torch.group(1)) - 5}"


def _reinstall(installation: Installation) -> str:
    """Returns the commands that install the FBGEMM and the TorchRec of this torch."""
    triple = _required_fbgemm(installation)
    if triple is None:
        return _REINSTALL_ALL
    package, version = triple
    return (
        f"python -m pip uninstall -y {_CUDA_FBGEMM} {_CPU_FBGEMM} && "
        f"python -m pip install --no-deps '{package}=={version}.*' 'torchrec=={version}.*'   (in "
        f"a clone: {_REINSTALL_ALL})"
    )


def _check_python(installation: Installation) -> Iterator[Problem]:
    if installation.python[:2] not in ((3, 11), (3, 12)):
        version = ".".join(map(str, installation.python))
        yield Problem(
            f"This is Python {version}.",
            "The locked versions exist for Python 3.11 and 3.12.",
            "rm -r .venv && PYTHON=python3.12 ./launch/install.sh",
        )


def _check_present(installation: Installation) -> Iterator[Problem]:
    missing = [name for name in ("torch", "torchrec") if name not in installation.distributions]
    if not {_CUDA_FBGEMM, _CPU_FBGEMM} & installation.distributions.keys():
        missing.append((_required_fbgemm(installation) or (_CPU_FBGEMM,))[0])
    if missing:
        fix = _REINSTALL_ALL if "torch" in missing else _reinstall(installation)
        yield Problem(
            f"Not installed: {', '.join(missing)}.",
            "Nothing trains without torch, FBGEMM and TorchRec.",
            fix,
        )


def _check_one_fbgemm(installation: Installation) -> Iterator[Problem]:
    if {_CUDA_FBGEMM, _CPU_FBGEMM} <= installation.distributions.keys():
        yield Problem(
            f"Both {_CUDA_FBGEMM} and {_CPU_FBGEMM} are installed.",
            "They unpack into one folder, so one overwrote the other; `pip install torchrec` "
            "without --no-deps does that.",
            _reinstall(installation),
        )


def _check_triple(installation: Installation) -> Iterator[Problem]:
    triple = _required_fbgemm(installation)
    if triple is None:
        return
    versions = installation.distributions
    wrong = [
        f"{name} {versions[name]}"
        for name in (_CUDA_FBGEMM, _CPU_FBGEMM, "torchrec")
        if name in versions and not versions[name].startswith(f"{triple[1]}.")
    ]
    if wrong:
        yield Problem(
            f"torch {versions['torch']} stands beside {' and '.join(wrong)}.",
            "FBGEMM and TorchRec 1.X are compiled for torch 2.(X+5): this torch needs "
            f"{triple[1]}.",
            _reinstall(installation),
        )


def _check_cuda_fbgemm(installation: Installation) -> Iterator[Problem]:
    if (
        _CUDA_FBGEMM in installation.distributions
        and installation.driver is None
        and _CPU_FBGEMM not in installation.distributions
    ):
        yield Problem(
            f"{_CUDA_FBGEMM} is the CUDA build, and this machine has no NVIDIA driver.",
            "It loads CUDA's libraries when it is imported; `pip install torchrec` without "
            "--no-deps brings it.",
            _reinstall(installation),
        )


def _check_cuda_torch(installation: Installation) -> Iterator[Problem]:
    if (
        installation.driver
        and "torch" in installation.distributions
        and "torch" not in installation.import_errors
    ):
        if installation.cuda_build is None:
            yield Problem(
                f"There is an NVIDIA driver ({installation.driver}), and torch is a CPU build.",
                "The GPUs lie idle: the index that torch came from, or TORCH_INDEX_URL, had a "
                "CPU build first.",
                "rm -r .venv && TORCH_INDEX_URL=<an index with CUDA builds of torch> "
                "./launch/install.sh",
            )
        elif (
            _CPU_FBGEMM in installation.distributions
            and _CUDA_FBGEMM not in installation.distributions
        ):
            yield Problem(
                f"There is an NVIDIA driver ({installation.driver}) and a CUDA build of torch, "
                f"but {_CPU_FBGEMM}.",
                "FBGEMM's CPU build has no CUDA kernels, so tables cannot live on a GPU.",
                _reinstall(installation),
            )


def _check_gpus(installation: Installation) -> Iterator[Problem]:
    hidden = installation.visible_devices is not None and installation.visible_devices.strip() in (
        "",
        "-1",
    )
    if installation.driver and installation.cuda_build and not installation.gpus and not hidden:
        yield Problem(
            f"There is an NVIDIA driver ({installation.driver}), and torch sees no GPU.",
            f"The driver is older than CUDA {installation.cuda_build} needs, or the GPUs are "
            "hidden from this process "
            f"(CUDA_VISIBLE_DEVICES={installation.visible_devices!r}).",
            "update the driver, or unset CUDA_VISIBLE_DEVICES; "
            '`python -c "import torch; torch.cuda.init()"` gives CUDA\'s own reason',
        )
    for gpu in installation.gpus:
        if gpu.capability < _OLDEST_CAPABILITY:
            yield Problem(
                f"{gpu.name} has compute capability {gpu.capability[0]}.{gpu.capability[1]}.",
                "FBGEMM's CUDA wheel has kernels for "
                f"{_OLDEST_CAPABILITY[0]}.{_OLDEST_CAPABILITY[1]} and later.",
                "train on the CPU (train.device=cpu), or build FBGEMM from source for this GPU",
            )


def _check_backends(installation: Installation) -> Iterator[Problem]:
    if "torch" not in installation.distributions or "torch" in installation.import_errors:
        return
    needed = ["gloo"] + ["nccl"] * bool(installation.gpus)
    if missing := [name for name in needed if name not in installation.backends]:
        yield Problem(
            f"torch was built without {' and '.join(missing)}.",
            "Ranks exchange embeddings and gradients through gloo on CPUs and nccl on GPUs.",
            _REINSTALL_ALL,
        )


def _check_imports(installation: Installation) -> Iterator[Problem]:
    packages = {
        "torch": {"torch"},
        "fbgemm_gpu": {_CUDA_FBGEMM, _CPU_FBGEMM},
        "torchrec": {"torchrec"},
    }
    for module, error in installation.import_errors.items():
        if packages[module] & installation.distributions.keys():
            fix = _REINSTALL_ALL if module == "torch" else _reinstall(installation)
            yield Problem(f"`import {module}` fails.", error, fix)


_CHECKS: tuple[Callable[[Installation], Iterator[Problem]], ...] = (
    _check_python,
    _check_present,
    _check_one_fbgemm,
    _check_triple,
    _check_cuda_fbgemm,
    _check_cuda_torch,
    _check_gpus,
    _check_backends,
    _check_imports,
)
