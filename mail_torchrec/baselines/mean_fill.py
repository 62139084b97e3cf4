"""Mean fill: a new row gets the mean old row's behaviours."""

from typing import Literal

from torch import Tensor

from mail_torchrec.baselines.filler import Filler
from mail_torchrec.settings import Settings
from mail_torchrec.towers.inputs import SequenceShape
from mail_torchrec.towers.layers.standardise import RunningMoments


class MeanFillSettings(Settings):
    """Mean fill."""

    name: Literal["mean_fill"]


class MeanFill(Filler):
    """The moving mean of old rows' pooled behaviours, the same for every row.

    Args:
        settings: none.
        sequences: the behaviour sequences.
    """

    def __init__(self, settings: MeanFillSettings, sequences: dict[str, SequenceShape]) -> None:
        super().__init__(sequences)
        self.pooled = RunningMoments(sum(shape.dim for shape in sequences.values()))

    def take(self, attributes_NP: Tensor, pooled_NQ: Tensor, weights_N: Tensor) -> None:
        """Old rows into the mean."""
        self.pooled.observe(pooled_NQ, weights_N)

    def make(self, attributes_NP: Tensor) -> Tensor:
        """The mean [N, Q]."""
        return self.pooled.mean_D.expand(attributes_NP.shape[0], -1)
