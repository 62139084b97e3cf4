"""The TorchX components start the command line that they should, on one machine and on Slurm."""

import shlex
from pathlib import Path

import pytest
from torch.distributed.run import parse_args
from torchx.runner import get_runner
from torchx.specs.file_linter import get_fn_docstring, validate

from components import mail

COMPONENTS = Path(mail.__file__)
TRAIN = ["--config", "launch/configs/synthetic.yaml", "--run_dir", "runs/a"]


def dryrun(scheduler, component, arguments):
    """Returns TorchX's request, the arguments read by its own parser as on the command line."""
    with get_runner() as runner:
        return runner.dryrun_component(f"{COMPONENTS}:{component}", arguments, scheduler)


def local(component, arguments):
    """Returns torchrun's command line on one machine as words, and the process's environment."""
    (params,) = dryrun("local_cwd", component, arguments).request.role_params.values()
    (replica,) = params
    assert replica.args[:2] == ["bash", "-c"]
    return shlex.split(replica.args[2]), replica.env


def after(flag, words):
    """The word that follows a flag."""
    return words[words.index(flag) + 1]


@pytest.mark.parametrize("component", ["train", "evaluate", "plan", "plan_ranks", "export"])
def test_torchx_accepts_the_component(component):
    assert validate(str(COMPONENTS), component) == []


def test_train_runs_the_package_under_torchrun():
    words, _ = local("train", [*TRAIN, "--", "model.zero_shot=null", "name=two words"])
    assert words[0] == "torchrun"
    assert after("--nnodes", words) == "1"
    assert after("--nproc_per_node", words) == "2"
    expected = "mail_torchrec train --config launch/configs/synthetic.yaml --run-dir runs/a".split()
    assert words[words.index("-m") + 1 :] == [*expected, "model.zero_shot=null", "name=two words"]


def test_evaluate_runs_one_rank_unless_told():
    words, _ = local("evaluate", ["--run_dir", "runs/a", "--data", "worlds/a/test"])
    assert after("--nproc_per_node", words) == "1"
    assert (
        words[words.index("-m") + 1 :]
        == "mail_torchrec evaluate --run-dir runs/a --data worlds/a/test".split()
    )


def test_predict_runs_on_as_many_ranks_as_are_told():
    words, _ = local("predict", "--run_dir runs/a --data rows --out p --j 1x2 -- --keep id".split())
    assert after("--nproc_per_node", words) == "2"
    expected = "mail_torchrec predict --run-dir runs/a --data rows --out p --keep id".split()
    assert words[words.index("-m") + 1 :] == expected


@pytest.mark.parametrize(
    ("component", "words", "expected"),
    [
        (
            "plan",
            "--config c.yaml --out plans/a -- --ranks 8",
            "plan --config c.yaml --out plans/a --ranks 8",
        ),
        (
            "export",
            "--run_dir runs/a --out models/a -- --tables int8",
            "export --run-dir runs/a --out models/a --tables int8",
        ),
    ],
)
def test_plan_and_export_are_one_process_without_torchrun(component, words, expected):
    (params,) = dryrun("local_cwd", component, words.split()).request.role_params.values()
    (replica,) = params
    assert replica.args == f"python -m mail_torchrec {expected}".split()


@pytest.mark.parametrize(
    ("flags", "resumes"),
    [
        ([], False),
        (["--resume", "True"], True),
        (["--max_retries", "2"], True),
        (["--max_restarts", "2"], False),
    ],
)
def test_a_job_that_may_be_submitted_again_resumes(flags, resumes):
    words, _ = local("train", [*TRAIN, *flags, "--", "train.epochs=2"])
    assert ("--resume" in words) == resumes
    assert words[-1] == "train.epochs=2"


def test_restarts_are_torchrun_s():
    _, environment = local("train", [*TRAIN, "--max_restarts", "5"])
    assert environment["PET_MAX_RESTARTS"] == "5"
    assert "PET_MAX_RESTARTS" not in local("train", TRAIN)[1]


def test_torchrun_reads_the_restarts_from_its_environment(monkeypatch):
    monkeypatch.setenv("PET_MAX_RESTARTS", "5")
    assert parse_args(["-m", "x"]).max_restarts == 5


def test_slurm_queues_a_failed_job_again():
    script = str(dryrun("slurm", "train", [*TRAIN, "--max_retries", "3"]))
    assert "export TORCHX_MAX_RETRIES=3" in script and "--requeue" in script


@pytest.mark.parametrize("component", ["train", "evaluate"])
def test_malformed_hosts_and_ranks_are_refused(component):
    needed = TRAIN if component == "train" else ["--run_dir", "runs/a", "--data", "worlds/a/test"]
    with pytest.raises(ValueError, match=r"Invalid format for -j.*2x.*Given: 2by4"):
        dryrun("local_cwd", component, [*needed, "--j", "2by4"])


def test_the_environment_reaches_the_ranks():
    _, environment = local("train", [*TRAIN, "--env", "OMP_NUM_THREADS=3,NCCL_DEBUG=INFO"])
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["NCCL_DEBUG"] == "INFO"


def test_slurm_gets_a_job_of_each_host():
    arguments = [
        "--j",
        "2x8",
        "--gpu",
        "8",
        "--cpu",
        "64",
        "--memMB",
        "500000",
        "--rdzv_port",
        "29411",
    ]
    script = str(dryrun("slurm", "train", [*TRAIN, *arguments, "--", "train.epochs=2"]))
    hosts = [line for line in script.splitlines() if line.startswith("#SBATCH --job-name")]
    assert len(hosts) == 2
    for wanted in (
        "--ntasks-per-node=1",
        "--cpus-per-task=64",
        "--mem=500000",
        "--gpus-per-task=8",
    ):
        assert all(wanted in host.split() for host in hosts)
    assert script.count("--nnodes 2 --nproc_per_node 8") == 2
    assert script.count(":=localhost}:29411") == 2
    command = "-m mail_torchrec train --config launch/configs/synthetic.yaml --run-dir runs/a"
    assert script.count(f"{command} train.epochs=2") == 2


def test_an_unknown_scheduler_argument_is_refused(capsys):
    with pytest.raises(SystemExit):
        dryrun("local_cwd", "train", [*TRAIN, "--gpus", "8"])
    assert "--gpus" in capsys.readouterr().err


@pytest.mark.parametrize(
    "component", [mail.train, mail.evaluate, mail.plan, mail.plan_ranks, mail.export]
)
def test_the_help_explains_every_argument(component):
    _, descriptions = get_fn_docstring(component)
    assert [name for name, text in descriptions.items() if not text.strip()] == []
