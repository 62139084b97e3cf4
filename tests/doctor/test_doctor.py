"""Each mismatch of an installation is found with its cause and a fix; a sound one has none."""

import subprocess
import sys
from dataclasses import replace

import pytest

from mail_torchrec.doctor import checks as doctor
from mail_torchrec.doctor.checks import diagnose, report
from mail_torchrec.doctor.installation import Gpu, Installation, inspect_installation, parse_probe

H100 = Gpu(name="NVIDIA H100", memory_bytes=80 * 2**30, capability=(9, 0))
T4 = Gpu(name="Tesla T4", memory_bytes=16 * 2**30, capability=(7, 5))

CPU = Installation(
    python=(3, 11, 7),
    num_cpus=2,
    distributions={"torch": "2.13.0+cpu", "fbgemm-gpu-cpu": "1.8.0", "torchrec": "1.8.0"},
    backends=("gloo",),
)
CUDA = Installation(
    python=(3, 12, 1),
    num_cpus=16,
    distributions={"torch": "2.11.0+cu130", "fbgemm-gpu": "1.6.0", "torchrec": "1.6.1"},
    driver="580.82.07",
    cuda_build="13.0",
    gpus=(H100,),
    backends=("gloo", "nccl"),
)


def having(installation: Installation, **versions: str | None) -> Installation:
    """Returns the installation with other distributions; None removes one."""
    merged = dict(installation.distributions) | {
        name.replace("_", "-"): version for name, version in versions.items()
    }
    return replace(
        installation,
        distributions={name: version for name, version in merged.items() if version is not None},
    )


SOUND = {
    "CPU": CPU,
    "CUDA": CUDA,
    "CUDA build of torch without a driver, FBGEMM's CPU build": replace(
        having(CPU, torch="2.13.0"), cuda_build="13.0"
    ),
    "GPUs hidden on purpose": replace(CUDA, gpus=(), visible_devices=""),
    "another sound triple": having(CPU, torch="2.12.1", fbgemm_gpu_cpu="1.7.2", torchrec="1.7.0"),
    "the newest triple": having(CPU, torch="2.14.1", fbgemm_gpu_cpu="1.9.0", torchrec="1.9.2"),
}

# what is wrong: the installation, what the finding says, what the fix says
UNSOUND = {
    "Python": (
        replace(CPU, python=(3, 13, 0)),
        "Python 3.13.0",
        "PYTHON=python3.12 ./launch/install.sh",
    ),
    "no torch": (having(CPU, torch=None), "Not installed: torch.", "./launch/install.sh"),
    "no TorchRec": (
        having(CPU, torchrec=None),
        "Not installed: torchrec.",
        "pip install --no-deps 'fbgemm-gpu-cpu==1.8.*' 'torchrec==1.8.*'",
    ),
    "no FBGEMM": (
        having(CPU, fbgemm_gpu_cpu=None),
        "Not installed: fbgemm-gpu-cpu.",
        "'fbgemm-gpu-cpu==1.8.*'",
    ),
    "no FBGEMM with a GPU": (
        having(CUDA, fbgemm_gpu=None),
        "Not installed: fbgemm-gpu.",
        "'fbgemm-gpu==1.6.*'",
    ),
    "both FBGEMM": (
        having(CPU, fbgemm_gpu="1.8.0"),
        "Both fbgemm-gpu and fbgemm-gpu-cpu",
        "uninstall -y fbgemm-gpu fbgemm-gpu-cpu &&",
    ),
    "both FBGEMM with a GPU": (
        having(CUDA, fbgemm_gpu_cpu="1.6.0"),
        "Both fbgemm-gpu and fbgemm-gpu-cpu",
        "'fbgemm-gpu==1.6.*'",
    ),
    "old FBGEMM": (
        having(CPU, fbgemm_gpu_cpu="1.6.0"),
        "torch 2.13.0+cpu stands beside fbgemm-gpu-cpu 1.6.0.",
        "'fbgemm-gpu-cpu==1.8.*'",
    ),
    "new torch": (
        having(CPU, torch="2.15.0"),
        "torch 2.15.0 stands beside fbgemm-gpu-cpu 1.8.0 and torchrec 1.8.0.",
        "'torchrec==1.10.*'",
    ),
    "CUDA FBGEMM without a driver": (
        replace(CUDA, driver=None, gpus=()),
        "no NVIDIA driver",
        "'fbgemm-gpu-cpu==1.6.*'",
    ),
    "driver without a CUDA build": (
        replace(CPU, driver="580.82.07"),
        "torch is a CPU build",
        "TORCH_INDEX_URL=",
    ),
    "driver with FBGEMM's CPU build": (
        having(CUDA, fbgemm_gpu=None, fbgemm_gpu_cpu="1.6.0"),
        "but fbgemm-gpu-cpu",
        "'fbgemm-gpu==1.6.*'",
    ),
    "driver too old": (
        replace(CUDA, driver="470.1", gpus=()),
        "torch sees no GPU",
        "update the driver",
    ),
    "GPU too old": (
        replace(CUDA, gpus=(T4,)),
        "Tesla T4 has compute capability 7.5",
        "train.device=cpu",
    ),
    "no gloo": (replace(CPU, backends=()), "built without gloo.", "./launch/install.sh"),
    "no nccl": (replace(CUDA, backends=("gloo",)), "built without nccl.", "./launch/install.sh"),
    "FBGEMM does not import": (
        replace(
            CPU,
            import_errors={
                "fbgemm_gpu": "OSError: libcudart.so.13: cannot open shared object file"
            },
        ),
        "`import fbgemm_gpu` fails.",
        "'fbgemm-gpu-cpu==1.8.*'",
    ),
}


@pytest.mark.parametrize("installation", SOUND.values(), ids=SOUND.keys())
def test_a_sound_installation_has_no_problem(installation):
    assert diagnose(installation) == []


@pytest.mark.parametrize(("installation", "finding", "fix"), UNSOUND.values(), ids=UNSOUND.keys())
def test_a_mismatch_is_found_with_cause_and_fix(installation, finding, fix):
    (problem,) = diagnose(installation)
    assert finding in problem.finding
    assert problem.cause
    assert fix in problem.fix


def test_an_import_error_is_told_as_the_cause():
    (problem,) = diagnose(
        replace(CPU, import_errors={"torch": "OSError: libtorch.so: no such file"})
    )
    assert problem.cause == "OSError: libtorch.so: no such file"


def test_the_cause_stands_before_what_follows_from_it():
    installation = replace(
        having(CPU, fbgemm_gpu="1.8.0"), import_errors={"fbgemm_gpu": "OSError: undefined symbol"}
    )
    both, failed_import = diagnose(installation)
    assert "Both" in both.finding
    assert "import" in failed_import.finding


def test_a_report_names_triple_devices_and_problems():
    text = report(CUDA, diagnose(CUDA))
    for part in (
        "3.12.1",
        "2.11.0+cu130 (CUDA 13.0 build)",
        "fbgemm-gpu 1.6.0",
        "1.6.1",
        "580.82.07",
        "0: NVIDIA H100, 80 GiB, sm_90",
        "gloo, nccl",
    ):
        assert part in text
    assert text.endswith("0 problems found.")

    broken = replace(CUDA, backends=("gloo",))
    (problem,) = diagnose(broken)
    assert (
        f"1 problem found:\n\n1. {problem.finding}\n   cause: {problem.cause}\n   fix:   "
        f"{problem.fix}" in report(broken, [problem])
    )


def test_a_crash_while_importing_is_a_finding():
    facts = '{"module": "torch", "cuda_build": null, "gpus": [], "backends": ["gloo"]}'
    stdout = f"noise\nmail-torchrec facts: {facts}\nmore noise\n"
    found = parse_probe(stdout, "warning\nFatal Python error: Segmentation fault", -11)
    assert found["backends"] == ("gloo",)
    assert found["import_errors"] == {
        "fbgemm_gpu": (
            "the process ended while importing it, exit code -11: Fatal Python error: "
            "Segmentation fault"
        )
    }


def test_facts_of_gpus_survive_the_other_process():
    gpu = '{"name": "NVIDIA H100", "memory_bytes": 85899345920, "capability": [9, 0]}'
    stdout = "\n".join(
        [
            'mail-torchrec facts: {"module": "torch", "cuda_build": "13.0", '
            f'"gpus": [{gpu}], "backends": ["gloo", "nccl"]}}',
            'mail-torchrec facts: {"module": "fbgemm_gpu", "error": "ImportError: no"}',
            'mail-torchrec facts: {"module": "torchrec"}',
        ]
    )
    assert parse_probe(stdout, "", 0) == {
        "cuda_build": "13.0",
        "gpus": (H100,),
        "backends": ("gloo", "nccl"),
        "import_errors": {"fbgemm_gpu": "ImportError: no"},
    }


@pytest.mark.parametrize(("installation", "code"), [(CPU, 0), (having(CPU, torchrec="1.6.1"), 1)])
def test_the_exit_code_says_whether_there_is_a_problem(installation, code, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "inspect_installation", lambda: installation)
    assert doctor.main() == code
    assert report(installation, diagnose(installation)) in capsys.readouterr().out


def test_this_installation_is_sound():
    installation = inspect_installation()
    assert diagnose(installation) == []
    assert installation.python == sys.version_info[:3]
    assert "gloo" in installation.backends


def test_importing_does_nothing():
    code = (
        "import sys; import mail_torchrec.doctor.checks; "
        "print(sorted({'torch', 'torchrec', 'fbgemm_gpu'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
