"""Silences what third parties say to their own developers, so that a user sees what concerns a user."""

import logging
import warnings


def quiet_third_parties() -> None:
    """Drops deprecation notices and hints of torch and torchrec about calls between each other. Errors are not touched."""
    for module in ("torch", "torchrec", "fbgemm_gpu", "mail_torchrec.embeddings.initial"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module.replace(".", r"\."))
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
    for name in ("torchrec", "torch.fx._symbolic_trace"):
        logging.getLogger(name).setLevel(logging.ERROR)
