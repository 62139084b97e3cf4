"""Jobs on a real Slurm: controller, accounting and two nodes on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hosts import SMALL, Hosts, hosts, needs_slurm, ranks_of_plan, wait_for
from tests.support.pages import commands

pytestmark = [needs_slurm, pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Hosts]:
    with hosts("slurm/local_cluster.sh", folder) as cluster:
        yield cluster


def submit(cluster: Hosts, command: list[str]) -> str:
    """Submits with TorchX, and returns the number of the job."""
    app = cluster.run("head", *command).strip()
    assert app.startswith("slurm://torchx/")
    return app.rpartition("/")[2]


def accounted(cluster: Hosts, job: str, field: str) -> list[str]:
    """Returns a field of the accounting of a job's parts, one a node."""
    query = [
        "sacct",
        "--noheader",
        "--parsable2",
        "--allocations",
        f"--format={field}",
        f"--jobs={job}",
    ]
    return cluster.run("head", *query).splitlines()


def output(cluster: Hosts, job: str) -> str:
    """Returns the output of a job, for a failing test."""
    return "\n".join(
        f"== {path.name}\n{path.read_text()[-3000:]}"
        for path in sorted(cluster.folder.glob(f"slurm-{job}*"))
    )


def wait_for_end(cluster: Hosts, job: str, state: str) -> None:
    """Waits until a job has left the queue; fails where the accounting has it in another state."""
    wait_for(
        lambda: not cluster.run("head", "squeue", "--noheader"),
        f"job {job} to end",
        also=lambda: output(cluster, job),
    )

    def states() -> set[str]:
        return {
            words.split()[0] for words in accounted(cluster, job, "State")
        }  # the first word of "CANCELLED by 0"

    wait_for(
        lambda: states() == {state},
        f"job {job} to be {state}",
        seconds=30,
        also=lambda: f"{states()}\n{output(cluster, job)}",
    )


def records(run: Path) -> list[dict[str, float]]:
    """Reads the record of each step."""
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in every if "rows_per_second" in record]


def programs(cluster: Hosts) -> str:
    """Lists the torchrun and ranks that live in the cluster."""
    listed = cluster.run("head", "ps", "-eo", "args")
    return "\n".join(line for line in listed.splitlines() if "mail_torchrec" in line)


@pytest.mark.long
def test_the_readme_s_command_trains_on_two_nodes(cluster: Hosts) -> None:
    [command] = commands("torchx run -s slurm")
    job = submit(cluster, command)
    wait_for_end(cluster, job, "COMPLETED")
    assert sorted(accounted(cluster, job, "NodeList")) == ["n1", "n2"]
    run = cluster.folder / command[command.index("--run_dir") + 1]
    assert json.loads((run / "metrics.json").read_text())["all"]["rows"] > 0
    assert ranks_of_plan(run) == {0, 1}


def test_slurm_takes_the_job_of_every_night_and_submits_the_next_one(cluster: Hosts) -> None:
    words = ["launch/slurm/nightly.sbatch", "mine.yaml", "no-such-folder", "no-day"]
    app = cluster.run("head", "sbatch", "--parsable", *words).strip()
    wait_for(
        lambda: accounted(cluster, app, "ExitCode") == ["2:0"],
        "the job to refuse the day",
        also=lambda: cluster.run("head", "cat", f"nightly-{app}.log"),
    )
    [waiting] = cluster.run("head", "squeue", "--noheader", "--format=%j %T").splitlines()
    assert waiting.split() == ["mail-nightly", "PENDING"]
    cluster.run("head", "scancel", "--name", "mail-nightly")


@pytest.mark.long
def test_a_cancelled_job_goes_on_from_its_checkpoint_when_it_is_requeued(cluster: Hosts) -> None:
    run = cluster.folder / "runs" / "requeued"
    arguments = ["--config", "launch/configs/synthetic.yaml", "--run_dir", str(run), "--j", "2x1"]
    overrides = ["data.root=worlds/demo", *SMALL, "train.epochs=12", "checkpoint.every=5"]
    job = submit(
        cluster,
        ["torchx", "run", "-s", "slurm", "components/mail.py:train", *arguments, "--", *overrides],
    )
    wait_for(
        lambda: list(run.glob("checkpoints/step-*")),
        "a checkpoint",
        also=lambda: output(cluster, job),
    )
    cluster.run("head", "torchx", "cancel", f"slurm://torchx/{job}")
    wait_for_end(cluster, job, "CANCELLED")
    wait_for(
        lambda: not programs(cluster),
        "torchrun and ranks to end",
        seconds=60,
        also=lambda: programs(cluster),
    )
    assert not (run / "metrics.json").exists()
    newest = max(int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*"))
    before = records(run)[:newest]
    cluster.run("head", "scontrol", "requeue", job)
    wait_for_end(cluster, job, "COMPLETED")
    after = records(run)
    assert [record["step"] for record in after] == list(range(1, len(after) + 1)) and len(
        after
    ) % 12 == 0
    assert (
        len(before) == newest and after[:newest] == before
    )  # to the measured rows per second: these steps were not run again
    assert (run / "metrics.json").exists()
