"""What the launcher that started this process is told."""

import os


def tell_launcher(error: Exception) -> None:
    """Hands the error to torchrun, whose report of the failure ends with it instead of a bare exit code."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
