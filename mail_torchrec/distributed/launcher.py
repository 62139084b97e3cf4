"""Interface to the launcher that started this process: torchrun or Slurm."""

import os
from pathlib import Path

from mail_torchrec.utils.uris import redact


def report_error_to_launcher(error: Exception) -> None:
    """Records an error for torchrun, whose failure report then shows it with the exit code."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        try:
            raise error  # what is recorded is a traceback
        except Exception:
            get_error_handler().record_exception(error)
        record = Path(os.environ["TORCHELASTIC_ERROR_FILE"])
        if record.exists():
            record.write_text(redact(record.read_text()))


def started_by_torchrun() -> bool:
    """Returns whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def num_restarts() -> int:
    """Counts how often the launcher has restarted this job: torchrun, or Slurm by a requeue."""
    return max(
        int(os.environ.get(name, "0"))
        for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    )


def launcher_hosts_store() -> bool:
    """Returns whether the launcher hosts the process group's store; else rank 0 hosts it."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
