"""How much a user sees: what third parties say to their own developers is silenced, progress bars do not flood log files."""

import logging
import sys
import warnings


def quiet_third_parties() -> None:
    """Drops deprecation notices and hints of torch and torchrec about calls between each other. Errors are not touched."""
    for module in ("torch", "torchrec", "fbgemm_gpu", "mail_torchrec.embeddings.initial_weights"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module.replace(".", r"\."))
    warnings.filterwarnings(
        "ignore", message="torch.distributed is disabled, unavailable or uninitialized"
    )
    for name in ("torchrec", "torch.fx._symbolic_trace"):
        logging.getLogger(name).setLevel(logging.ERROR)


def bar_interval() -> float:
    """Seconds between two pictures of a progress bar: few where they end up in a log file."""
    return 0.2 if sys.stderr.isatty() else 10.0
