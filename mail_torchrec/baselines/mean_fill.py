"""Mean fill: cold users get the mean behaviours of warm users.

Shape letters as in ``baselines/filler.py``.
"""

from typing import Literal

from torch import Tensor

from mail_torchrec.baselines.filler import BehaviourFiller
from mail_torchrec.settings import Settings
from mail_torchrec.towers.inputs import SequenceShape
from mail_torchrec.towers.layers.standardisation import RunningMoments


class MeanFillSettings(Settings):
    """Cold users get the mean pooled behaviours of warm users; no options."""

    name: Literal["mean_fill"]
    """Name of the baseline."""


class MeanFill(BehaviourFiller):
    """Moving mean of the pooled behaviours of warm users, the same for every user.

    Args:
        settings: none.
        sequences: the behaviour sequences.
    """

    def __init__(self, settings: MeanFillSettings, sequences: dict[str, SequenceShape]) -> None:
        super().__init__(sequences)
        self.pooled = RunningMoments(sum(shape.dim for shape in sequences.values()))

    def update_pooled(self, attributes_NP: Tensor, pooled_NQ: Tensor, weights_N: Tensor) -> None:
        """Updates the mean."""
        self.pooled.update(pooled_NQ, weights_N)

    def predict_pooled(self, attributes_NP: Tensor) -> Tensor:
        """Returns the mean [N, Q]."""
        return self.pooled.mean_D.expand(attributes_NP.shape[0], -1)
