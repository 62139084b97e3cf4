"""Final weights, saved sharded, read back on any number of ranks."""

from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from mail_torchrec.collectives import world_size


def save_weights(model: nn.Module, folder: Path) -> None:
    """Writes every table shard and the dense parameters; each rank writes its own."""
    dcp.save(model.state_dict(), checkpoint_id=folder, no_dist=world_size() == 1)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Reads weights into a model of any sharding.

    Raises:
        ValueError: a weight is missing, or of another shape: the weights are another model's.
    """
    state = model.state_dict()
    try:
        dcp.load(state, checkpoint_id=folder, no_dist=world_size() == 1)
    except (CheckpointException, RuntimeError, ValueError) as error:
        raise ValueError(f"{folder} does not hold this model's weights: {error}") from error
    model.load_state_dict(state)
