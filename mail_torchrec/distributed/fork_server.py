"""Imported by the fork server, before anything else: it is killed with its rank, and its forks too.

A fork asks for that at once, for it may be stopped (SIGSTOP) before it runs any code of a reader.
"""

import os

from mail_torchrec.distributed.parent import is_orphan, kill_with_parent

_is_fork = False


def _kill_fork_with_server() -> None:
    global _is_fork
    if not _is_fork:  # but a process that a reader forks
        _is_fork = True
        kill_with_parent()
        if is_orphan():
            os._exit(1)


kill_with_parent()
os.register_at_fork(after_in_child=_kill_fork_with_server)
