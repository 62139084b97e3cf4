"""Imported by the fork server, before anything else: the fork server is killed with its rank."""

from mail_torchrec.distributed.parent import kill_with_parent

kill_with_parent()
