"""Processes of a job are found by their mark, whoever their parent is."""

import os
import signal
import subprocess

from tools.marked_processes import Mark


def test_an_orphan_is_found_until_it_ends() -> None:
    mark = Mark()
    words = ["sh", "-c", "sleep 60 >/dev/null & echo $!"]
    environment = os.environ | mark.environment
    orphan = int(subprocess.run(words, env=environment, stdout=subprocess.PIPE).stdout)
    try:
        assert [one.pid for one in mark.alive()] == [orphan]
        assert mark.wait_until_gone([], 0) == []
        [left] = mark.wait_until_gone(None, 0)
        assert left.startswith(f"{orphan} ") and "sleep 60" in left
    finally:
        os.kill(orphan, signal.SIGKILL)
    assert mark.wait_until_gone(None, 10) == []
