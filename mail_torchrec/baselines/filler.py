"""Base of baselines that fill cold users: pooled behaviours learnt from warm users.

Shape letters: ``N`` rows (users), ``F`` attribute fields of dimension ``D``, ``M`` numeric
attributes, ``P`` all of them side by side, ``Q`` the pooled behaviours of all sequences side by
side, ``S`` sequences.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from mail_torchrec.towers.inputs import SequenceShape
from mail_torchrec.towers.layers.behaviours import (
    Behaviours,
    mean_over_positions,
    repeat_over_positions,
)
from mail_torchrec.towers.layers.standardisation import RunningMoments, Standardiser
from mail_torchrec.towers.outputs import virtual_behaviours_specs
from mail_torchrec.utils.output_spec import OutputSpec


class BehaviourFiller(nn.Module):
    """Predicts pooled behaviours from attributes, and repeats them as virtual behaviours.

    A cold user gets as many equal behaviours as warm users have on average, which pool to the
    prediction.

    Args:
        sequences: the behaviour sequences.
    """

    is_trained: bool = False
    """True where it has parameters, which its losses train."""
    ranking_weight: float = 0.0
    """Weight of L_r, the ranking loss of all rows scored on its virtual behaviours."""

    def __init__(self, sequences: dict[str, SequenceShape]) -> None:
        super().__init__()
        self.sequences = dict(sequences)
        self.relative_lengths = RunningMoments(len(sequences))

    @abstractmethod
    def update_pooled(self, attributes_NP: Tensor, pooled_NQ: Tensor, weights_N: Tensor) -> None:
        """Learns from warm users without gradients, to the same state on every rank.

        Args:
            attributes_NP: their attributes; ``N`` may be 0.
            pooled_NQ: their pooled behaviours.
            weights_N: weight of each user.
        """

    @abstractmethod
    def predict_pooled(self, attributes_NP: Tensor) -> Tensor:
        """Predicts pooled behaviours [N, Q] from attributes."""

    def pooled_losses(
        self, attributes_NP: Tensor, pooled_NQ: Tensor, relative_NS: Tensor
    ) -> dict[str, tuple[Tensor, float]]:
        """Computes losses of warm users whose gradient trains the parameters; none by default.

        Args:
            attributes_NP: their attributes; ``N`` may be 0.
            pooled_NQ: their pooled behaviours.
            relative_NS: their number of behaviours as a share of each sequence's positions.

        Returns:
            Loss name -> loss of each user [N], and its weight in the sum that is minimised.
        """
        return {}

    def losses(
        self,
        fields_NFD: Tensor,
        numeric_NM: Tensor,
        sequences: dict[str, Behaviours],
    ) -> dict[str, tuple[Tensor, float]]:
        """Computes :meth:`pooled_losses` of warm users.

        Args:
            fields_NFD: their attribute embeddings, detached; ``N`` may be 0.
            numeric_NM: their numeric attributes.
            sequences: sequence -> detached real behaviours [N, T, D] and their number [N].
        """
        attributes_NP = torch.cat([fields_NFD.flatten(1), numeric_NM], dim=1)
        return self.pooled_losses(attributes_NP, *self._pooled(sequences))

    @torch.no_grad()
    def update(
        self,
        fields_NFD: Tensor,
        numeric_NM: Tensor,
        sequences: dict[str, Behaviours],
        weights_N: Tensor | None = None,
    ) -> None:
        """Learns from warm users; a collective call of all ranks in every training step.

        In evaluation mode, which a frozen module keeps, one with parameters stays as it is.

        Args:
            fields_NFD: their attribute embeddings; ``N`` may be 0.
            numeric_NM: their numeric attributes.
            sequences: sequence -> real behaviours [N, T, D] and their number [N].
            weights_N: weight of each user; 1 by default.
        """
        if self.is_trained and not self.training:
            return
        weights_N = fields_NFD.new_ones(fields_NFD.shape[0]) if weights_N is None else weights_N
        pooled_NQ, relative_NS = self._pooled(sequences)
        self.relative_lengths.update(relative_NS, weights_N)
        attributes_NP = torch.cat([fields_NFD.flatten(1), numeric_NM], dim=1)
        self.update_pooled(attributes_NP, pooled_NQ, weights_N)

    def virtual_behaviours(self, fields_NFD: Tensor, numeric_NM: Tensor) -> dict[str, Behaviours]:
        """Computes virtual behaviours.

        Args:
            fields_NFD: attribute embeddings.
            numeric_NM: numeric attributes.

        Returns:
            Sequence -> vectors [N, T, D] and their number [N] (int64).
        """
        attributes_NP = torch.cat([fields_NFD.flatten(1), numeric_NM], dim=1)
        relative_NS = self.relative_lengths.mean_D.expand(attributes_NP.shape[0], -1)
        dims = [shape.dim for shape in self.sequences.values()]
        parts = torch.split(self.predict_pooled(attributes_NP), dims, dim=1)
        virtual = {}
        for index, (name, shape) in enumerate(self.sequences.items()):
            pooled_N1D, relative_N1 = parts[index].unsqueeze(1), relative_NS[:, index : index + 1]
            [virtual[name]] = repeat_over_positions(pooled_N1D, [shape.max_length], relative_N1)
        return virtual

    def output_specs(self) -> list[OutputSpec]:
        """Declares the virtual behaviours of every sequence."""
        return virtual_behaviours_specs(self.sequences)

    def _pooled(self, sequences: dict[str, Behaviours]) -> tuple[Tensor, Tensor]:
        """Pooled behaviours [N, Q], and their number as a share of the positions [N, S]."""
        behaviours = [sequences[name] for name in self.sequences]
        relative_NS = torch.stack(
            [lengths_N / values_NTD.shape[1] for values_NTD, lengths_N in behaviours], dim=1
        )
        pooled = [mean_over_positions([sequence]).squeeze(1) for sequence in behaviours]
        return torch.cat(pooled, dim=1), relative_NS


class TrainedFiller(BehaviourFiller):
    """Filler with parameters, which its losses train on vectors in units of their moving moments.

    Args:
        sequences: the behaviour sequences.
        num_attributes: P.
        ranking_weight: weight of L_r.
    """

    is_trained = True

    def __init__(
        self, sequences: dict[str, SequenceShape], num_attributes: int, ranking_weight: float
    ) -> None:
        super().__init__(sequences)
        self.ranking_weight = ranking_weight
        self.num_pooled = sum(shape.dim for shape in sequences.values())
        self.attribute_scale = Standardiser(num_attributes)
        self.pooled_scale = Standardiser(self.num_pooled)

    def update_pooled(self, attributes_NP: Tensor, pooled_NQ: Tensor, weights_N: Tensor) -> None:
        """Updates the moments by which vectors are standardised."""
        self.attribute_scale.update_vectors(attributes_NP, weights_N)
        self.pooled_scale.update_vectors(pooled_NQ, weights_N)
