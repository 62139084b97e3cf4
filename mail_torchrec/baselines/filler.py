"""What baselines that fill new rows have in common: old rows pooled, and new rows with equal behaviours that pool to what was made.

Shape letters: ``N`` rows, ``F`` attribute fields of dimension ``D``, ``M`` numeric attributes,
``P`` all of them side by side, ``Q`` the pooled behaviours of all sequences side by side.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from mail_torchrec.towers.inputs import SequenceShape
from mail_torchrec.towers.layers.behaviours import Behaviours, pooled, spread
from mail_torchrec.towers.layers.standardise import RunningMoments


class Filler(nn.Module):
    """Pools behaviours, makes pooled ones of attributes, and shares them out over as many behaviours as old rows have on average.

    Args:
        sequences: the behaviour sequences.
    """

    def __init__(self, sequences: dict[str, SequenceShape]) -> None:
        super().__init__()
        self.sequences = dict(sequences)
        self.relative_lengths = RunningMoments(len(sequences))

    @abstractmethod
    def take(self, attributes_NP: Tensor, pooled_NQ: Tensor, weights_N: Tensor) -> None:
        """Learns from old rows, each counted so often, ``N`` may be 0; without gradients, and alike on every rank."""

    @abstractmethod
    def make(self, attributes_NP: Tensor) -> Tensor:
        """Pooled behaviours of new rows [N, Q]."""

    @torch.no_grad()
    def observe(
        self,
        fields_NFD: Tensor,
        numeric_NM: Tensor,
        sequences: dict[str, Behaviours],
        weights_N: Tensor | None = None,
    ) -> None:
        """Takes old rows in, each counted ``weights_N`` times (once by default); every rank calls it in a step, with 0 rows too."""
        weights_N = fields_NFD.new_ones(fields_NFD.shape[0]) if weights_N is None else weights_N
        behaviours = [sequences[name] for name in self.sequences]
        relative_NS = torch.stack(
            [lengths_N / values_NTD.shape[1] for values_NTD, lengths_N in behaviours], dim=1
        )
        self.relative_lengths.observe(relative_NS, weights_N)
        pooled_NQ = torch.cat([pooled([sequence]).squeeze(1) for sequence in behaviours], dim=1)
        self.take(torch.cat([fields_NFD.flatten(1), numeric_NM], dim=1), pooled_NQ, weights_N)

    def virtual(self, fields_NFD: Tensor, numeric_NM: Tensor) -> dict[str, Behaviours]:
        """Behaviours [N, T, d] of each sequence and their number [N]."""
        attributes_NP = torch.cat([fields_NFD.flatten(1), numeric_NM], dim=1)
        relative_NS = self.relative_lengths.mean_D.expand(attributes_NP.shape[0], -1)
        parts = torch.split(
            self.make(attributes_NP), [shape.dim for shape in self.sequences.values()], dim=1
        )
        made = {}
        for index, ((name, shape), part_ND) in enumerate(
            zip(self.sequences.items(), parts, strict=True)
        ):
            [made[name]] = spread(
                part_ND.unsqueeze(1), [shape.max_length], relative_NS[:, index : index + 1]
            )
        return made
