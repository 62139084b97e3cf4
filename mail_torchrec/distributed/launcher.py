"""What the launcher that started this process is told, and what it tells."""

import os


def tell_launcher(error: Exception) -> None:
    """Hands the error to torchrun, whose report of the failure ends with it instead of a bare exit code."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def num_restarts() -> int:
    """How often the launcher has started this job again: torchrun, or Slurm by a requeue."""
    return max(
        int(os.environ.get(name, "0"))
        for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    )


def launcher_keeps_store() -> bool:
    """Whether the process group's store lives in the launcher, and so dies with it; else rank 0 keeps it."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
