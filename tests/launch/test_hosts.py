"""Hosts made of namespaces have names, addresses and a network, and leave nothing behind."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.hosts import ROOT, Hosts, hosts, needs_hosts, wait_for

LISTEN = (
    "import socket; server = socket.create_server(('', 5000)); "
    "server.accept()[0].sendall(socket.gethostname().encode())"
)
CALL = "import socket; print(socket.create_connection(('n1', 5000), timeout=2).recv(9).decode())"


@needs_hosts
def test_hosts_meet_by_name_until_one_is_cut_off(tmp_path: Path) -> None:
    with hosts("hosts.sh", tmp_path) as two:
        assert [two.run(host, "hostname").strip() for host in ("head", "n1", "n2")] == [
            "head",
            "n1",
            "n2",
        ]
        for caller in ("n2", "head"):
            with two.start("n1", "python", "-c", LISTEN, log=tmp_path / "log"):
                wait_for(lambda: ":5000" in two.run("n1", "ss", "-ltn"), "the listener")
                assert two.run(caller, "python", "-c", CALL).strip() == "n1"
        two.run("head", "ip", "link", "set", "n1", "down")
        with pytest.raises(AssertionError, match=r"timed out|No route to host"):
            two.run("n2", "python", "-c", CALL)


@needs_hosts
@pytest.mark.parametrize("end", ["leave", "kill"])
def test_nothing_outlives_the_hosts(tmp_path: Path, end: str) -> None:
    def lives(two: Hosts) -> bool:
        return any(
            name.isdigit() and _namespace(int(name)) == space for name in os.listdir("/proc")
        )

    with hosts("hosts.sh", tmp_path) as two:
        space = _namespace(two.init)
        two.start("n1", "setsid", "sleep", "3600", log=tmp_path / "log")
        wait_for(lambda: "sleep" in two.run("head", "ps", "-eo", "args"), "the sleeper")
        assert lives(two)
        if end == "kill":
            os.kill(two.init, 9)
    wait_for(lambda: not lives(two), "its processes to end", seconds=20)
    assert not (Path("/run") / "netns" / "n1").exists()


def _namespace(process: int) -> str:
    try:
        return os.readlink(f"/proc/{process}/ns/pid")
    except OSError:
        return ""


@needs_hosts
def test_who_is_not_root_is_told(tmp_path: Path) -> None:
    words = ["setpriv", "--reuid=65534", "--clear-groups", "bash", "-s", "--", "true"]
    with (ROOT / "launch" / "hosts.sh").open() as script:
        done = subprocess.run(words, stdin=script, capture_output=True, text=True, check=False)
    assert (
        done.returncode == 1
        and "should be run by root" in done.stderr
        and "received uid 65534" in done.stderr
    )


def test_missing_programs_are_named(tmp_path: Path) -> None:
    (tmp_path / "dirname").symlink_to("/usr/bin/dirname")
    words = ["/bin/bash", str(ROOT / "launch" / "slurm" / "local_cluster.sh"), "true"]
    done = subprocess.run(
        words, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert all(
        name in done.stderr
        for name in ("slurmctld", "munged", "mariadbd", "launch/slurm/install_debian.sh")
    )
