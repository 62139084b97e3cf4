"""Two hosts run the Kubernetes manifest's command, and one of them is cut off for a while."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hosts import ROOT, SMALL, Hosts, hosts, needs_hosts, wait_for
from tests.support.kubernetes_manifest import pod

pytestmark = [needs_hosts, pytest.mark.distributed, pytest.mark.slow, pytest.mark.long]

OVERRIDES = [*SMALL, "train.epochs=12", "train.timeout=15", "checkpoint.every=5"]


@pytest.fixture
def two(folder: Path) -> Iterator[Hosts]:
    """Two hosts that have the names of the manifest's pods, and its claim in the same place."""
    with hosts("hosts.sh", folder) as two:
        claim = folder / "claim"
        claim.mkdir()
        (claim / "data").symlink_to(folder / "worlds" / "demo")
        (claim / "config.yaml").symlink_to(ROOT / "launch" / "configs" / "synthetic.yaml")
        two.run("head", "mount", "--bind", str(claim), "/mnt")
        two.run("head", "sh", "-c", "echo 192.0.2.1 mail-train-0.mail-train >> /run/hosts")
        yield two


def test_a_host_that_was_cut_off_comes_back(two: Hosts, folder: Path) -> None:
    [container] = pod()["containers"]
    command = [
        *container["command"],
        *(word.replace("--nproc-per-node=8", "--nproc-per-node=1") for word in container["args"]),
        *OVERRIDES,
    ]
    run, logs = (
        folder / "claim" / "runs" / "mail",
        {host: folder / f"{host}.log" for host in ("n1", "n2")},
    )

    def said() -> str:
        return "\n".join(f"== {log.name}\n{log.read_text()[-5000:]}" for log in logs.values())

    variables = {variable["name"]: variable["value"] for variable in container["env"]} | {
        "OMP_NUM_THREADS": "1"
    }
    processes = [two.start(host, *command, log=log, **variables) for host, log in logs.items()]
    wait_for(lambda: list(run.glob("checkpoints/step-*")), "a checkpoint", also=said)
    so_far = len(logs["n1"].read_text())
    two.run("head", "ip", "link", "set", "n2", "down")
    wait_for(
        lambda: "failed (exitcode: 1)" in logs["n1"].read_text()[so_far:],
        "the first host's rank to miss the second",
        also=said,
    )
    two.run("head", "ip", "link", "set", "n2", "up")
    wait_for(
        lambda: all(process.poll() is not None for process in processes),
        "both hosts to finish",
        also=said,
    )
    assert [process.returncode for process in processes] == [0, 0], said()
    assert (run / "metrics.json").exists()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if "rows_per_second" in record]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) % 12 == 0
