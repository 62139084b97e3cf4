"""Mean fill: a new row gets the mean old row's behaviours."""

from typing import Literal

import torch
from torch import Tensor, nn

from mail_torchrec.settings import Settings
from mail_torchrec.towers.behaviours import Behaviours, pooled, spread
from mail_torchrec.towers.inputs import SequenceShape
from mail_torchrec.towers.standardise import RunningMoments


class MeanFillSettings(Settings):
    """Mean fill."""

    name: Literal["mean_fill"]


class MeanFill(nn.Module):
    """The moving mean of old rows' summed behaviours and of their number, shared out over that many equal behaviours.

    Args:
        settings: none.
        sequences: the behaviour sequences.
    """

    def __init__(self, settings: MeanFillSettings, sequences: dict[str, SequenceShape]) -> None:
        super().__init__()
        self.sequences = dict(sequences)
        self.sums = nn.ModuleList(RunningMoments(shape.dim) for shape in sequences.values())
        self.relative_lengths = RunningMoments(len(sequences))

    def observe(self, fields_NFD: Tensor, numeric_NM: Tensor, sequences: dict[str, Behaviours]) -> None:
        """Takes old rows into the means; every rank calls it in a training step, with 0 rows too."""
        behaviours = [sequences[name] for name in self.sequences]
        ones_N = torch.ones_like(fields_NFD[:, 0, 0])
        for mean, sequence in zip(self.sums, behaviours, strict=True):
            mean.observe(pooled([sequence]).squeeze(1), ones_N)
        relative = [lengths_N / values_NTD.shape[1] for values_NTD, lengths_N in behaviours]
        self.relative_lengths.observe(torch.stack(relative, dim=1), ones_N)

    def virtual(self, fields_NFD: Tensor, numeric_NM: Tensor) -> dict[str, Behaviours]:
        """Behaviours [N, T, d] of each sequence and their number [N]: the same for every row."""
        num_rows = len(fields_NFD)
        relative_NS = self.relative_lengths.mean_D.expand(num_rows, -1)
        made = {}
        for index, (name, shape) in enumerate(self.sequences.items()):
            mean_N1D = self.sums[index].mean_D.expand(num_rows, 1, -1)
            [made[name]] = spread(mean_N1D, [shape.max_length], relative_NS[:, index : index + 1])
        return made
