"""Rank-aware logging to standard error, and the silencing of third-party warnings.

Every module logs through ``get_logger(__name__)``; rank 0 alone prints. The last words of a thread
that ends the process are printed on every rank, with a rank prefix (:func:`write_unlocked`). URIs
in messages are printed without their credentials.
"""

import logging
import os
import sys
import warnings

from tqdm import tqdm

from mail_torchrec.utils.uris import redact

LEVELS = ("debug", "info", "warning", "error")
LEVEL_VARIABLE = "MAIL_TORCHREC_LOG_LEVEL"
"""Environment variable with the level, below the command line's ``--log-level``."""

_PACKAGE = "mail_torchrec"
_PREFIXES = {logging.WARNING: "WARNING: ", logging.ERROR: "Error: "}


def get_logger(name: str) -> logging.Logger:
    """Returns the logger of a module of this package; the handler is installed on first use."""
    package = logging.getLogger(_PACKAGE)
    if not any(isinstance(handler, _TqdmHandler) for handler in package.handlers):
        package.addHandler(_TqdmHandler())
        package.propagate = False
        if package.level == logging.NOTSET:
            set_log_level(os.environ.get(LEVEL_VARIABLE, "info"))
    return logging.getLogger(name)


def set_log_level(level: str) -> None:
    """Sets the lowest level that is printed.

    Args:
        level: one of :data:`LEVELS`, in any case.

    Raises:
        ValueError: it is none of these.
    """
    if level.lower() not in LEVELS:
        raise ValueError(
            f"the log level (--log-level, {LEVEL_VARIABLE}) should be one of "
            f"{', '.join(LEVELS)}, received '{level}'"
        )
    logging.getLogger(_PACKAGE).setLevel(level.upper())


def write_unlocked(message: str) -> None:
    """Writes a line to standard error from any rank, without taking a lock.

    For a thread that is about to end the process: the main thread may hold the locks of logging and
    of the progress bars, and never give them back. With several ranks the line names the rank.
    """
    message = redact(message)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    line = f"[rank {_rank()}] {message}\n" if several else f"{message}\n"
    try:
        sys.stderr.write(line)
        sys.stderr.flush()
    except RuntimeError:  # called by a signal handler that interrupted a write
        os.write(2, line.encode())


def silence_third_parties() -> None:
    """Drops deprecation notices of torch and torchrec about their own calls; errors stay."""
    for module in ("torch", "torchrec", "fbgemm_gpu", "mail_torchrec.embeddings.initial_weights"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module.replace(".", r"\."))
    warnings.filterwarnings(
        "ignore", message="torch.distributed is disabled, unavailable or uninitialized"
    )
    for name in ("torchrec", "torch.fx._symbolic_trace"):
        logging.getLogger(name).setLevel(logging.ERROR)


class _TqdmHandler(logging.Handler):
    """Prints records through tqdm, so that progress bars on the terminal stay whole."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(lambda record: _rank() == 0)

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one record."""
        try:
            prefix = _PREFIXES.get(record.levelno, "")
            tqdm.write(redact(f"{prefix}{record.getMessage()}"), file=sys.stderr)
        except Exception:  # logging never ends the program that logs
            self.handleError(record)


def _rank() -> int:
    """Returns this process's rank, from the process group or the launcher's environment."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    return int(os.environ.get("RANK", "0"))
