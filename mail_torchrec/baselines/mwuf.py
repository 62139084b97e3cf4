"""MWUF: mean behaviours, scaled and shifted by meta networks (Zhu et al., SIGIR 2021).

Source: Zhu et al., "Learning to Warm Up Cold Item Embeddings for Cold-start Recommendation with
Meta Scaling and Shifting Networks". Shape letters as in ``baselines/filler.py``.

The paper gives all new items one id vector to begin with, the mean of the old ones. It warms it up
as ``scale * v + shift``: a scaling network reads the item's features, a shifting network the mean
vector of the users who interacted with the item. Both networks learn from the ranking loss with the
warmed-up vector, in which all else is a constant. Here:

- a user's pooled behaviours stand in the place of the id's vector, since they are what a cold user
  lacks; ``v`` is the moving mean of warm users, and is not trained further (the paper's cold loss),
  for a user without rows has none to train on;
- what a user interacted with are the behaviours themselves. A cold user has none, so the shifting
  network reads their mean over warm users: its shift is common to all cold users, and only the
  scaling network tells them apart;
- the networks begin with a scale of 1 and a shift of 0, as mean fill, and learn in the one pass in
  which tables and tower are trained. They read and shift vectors in units of their moving
  deviation, since tables grow.
"""

from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from mail_torchrec.baselines.filler import TrainedFiller
from mail_torchrec.settings import Settings
from mail_torchrec.towers.inputs import SequenceShape
from mail_torchrec.towers.layers.mlp import dense_layers, last_dim


class MWUFSettings(Settings):
    """Meta scaling and shifting networks (MWUF, Zhu et al., SIGIR 2021)."""

    name: Literal["mwuf"]
    """Name of the baseline."""
    hidden_dims: tuple[PositiveInt, ...] = (16,)
    """Hidden layers of each of both networks."""
    ranking_weight: float = Field(default=1.0, gt=0.0)
    """Weight of the ranking loss of all rows scored on virtual behaviours (L_r), which trains both
    networks."""


class MWUF(TrainedFiller):
    """Scales warm users' mean pooled behaviours by attributes, and shifts them.

    Args:
        settings: options.
        sequences: the behaviour sequences.
        num_attributes: P, elements of all attribute vectors and numeric attributes together.
    """

    def __init__(
        self, settings: MWUFSettings, sequences: dict[str, SequenceShape], num_attributes: int
    ) -> None:
        super().__init__(sequences, num_attributes, settings.ranking_weight)
        dims, num_pooled = settings.hidden_dims, self.num_pooled
        self.scaling = _network(num_attributes, dims, num_pooled)
        self.shifting = _network(num_pooled, dims, num_pooled)

    def predict_pooled(self, attributes_NP: Tensor) -> Tensor:
        """Scales and shifts the mean, [N, Q]."""
        mean_Q, deviation_Q = self.pooled_scale.mean_D, self.pooled_scale.deviation_D
        scale_NQ: Tensor = 1 + self.scaling(self.attribute_scale(attributes_NP))
        shift_Q: Tensor = self.shifting((mean_Q / deviation_Q).unsqueeze(0)) * deviation_Q
        return scale_NQ * mean_Q + shift_Q


def _network(in_dim: int, hidden_dims: tuple[int, ...], out_dim: int) -> nn.Sequential:
    """A network whose outputs begin as zeros."""
    out = nn.Linear(last_dim(in_dim, hidden_dims), out_dim)
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)
    return nn.Sequential(*dense_layers(in_dim, hidden_dims, lambda _: nn.ReLU()), out)
