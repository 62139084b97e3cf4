"""CVAR: conditional variational autoencoder for cold users' behaviours (Zhao et al., SIGIR 2022).

Source: Zhao et al., "Improving Item Cold-start Recommendation via Model-agnostic Conditional
Variational Autoencoder". Shape letters as in ``baselines/filler.py``; ``H`` elements of the latent
code ``z``.

The paper warms up the id vectors of items. A posterior reads the vector, a prior the item's
features, each a Gaussian distribution of a latent code; one decoder makes the vector of a code and
of the item's frequency. It minimises the squared error of the vector decoded from the posterior,
the Wasserstein distance of both distributions, and the ranking loss with the vector decoded from
the prior, in which the ranking tower is a constant. Here:

- a user's pooled behaviours stand in the place of the id's vector, since they are what a cold user
  lacks, and their number in the place of the frequency;
- a cold user, whose own number says nothing, is decoded with the mean number of warm users;
- tables and tower are trained in the same pass, where the paper's are finished: the prior reads the
  tables' vectors instead of tables of its own, as constants, and all vectors are read and
  reconstructed standardised, since tables grow.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from mail_torchrec.baselines.filler import TrainedFiller
from mail_torchrec.losses.wasserstein import gaussian_wasserstein
from mail_torchrec.settings import Settings
from mail_torchrec.towers.inputs import SequenceShape
from mail_torchrec.towers.layers.mlp import dense_layers, last_dim

_MOST_LOG_VARIANCE = 10.0


class CVARSettings(Settings):
    """CVAR (Zhao et al., SIGIR 2022); defaults of its released code, in means over rows."""

    name: Literal["cvar"]
    """Name of the baseline."""
    latent_dim: PositiveInt = 16
    """Elements of the latent code."""
    hidden_dims: tuple[PositiveInt, ...] = ()
    """Hidden layers of each encoder and, backwards, of the decoder; the released code has none."""
    noise: float = Field(default=1e-4, ge=0.0)
    """Factor of the standard deviation when codes are drawn in training; the released code has
    1e-4, the formula 1, and 0 takes the mean. Evaluation takes the mean."""
    reconstruction_weight: float = Field(default=1.0, ge=0.0)
    """Weight of the reconstruction error, a mean over elements and warm users (L_v)."""
    wasserstein_weight: float = Field(default=0.2, ge=0.0)
    """Weight of the Wasserstein distance, a mean over warm users (L_d); the released code has 1e-4
    of the sum over 2,048 rows."""
    ranking_weight: float = Field(default=1.0, ge=0.0)
    """Weight of the ranking loss of all rows scored on virtual behaviours (L_r)."""


class CVAR(TrainedFiller):
    """Decodes pooled behaviours of cold users from a latent code of their attributes.

    Args:
        settings: options.
        sequences: the behaviour sequences.
        num_attributes: P, elements of all attribute vectors and numeric attributes together.
    """

    def __init__(
        self, settings: CVARSettings, sequences: dict[str, SequenceShape], num_attributes: int
    ) -> None:
        super().__init__(sequences, num_attributes, settings.ranking_weight)
        self.settings = settings
        hidden_dims, latent_dim = settings.hidden_dims, settings.latent_dim
        self.posterior = _layers(self.num_pooled, hidden_dims, 2 * latent_dim)
        self.prior = _layers(num_attributes, hidden_dims, 2 * latent_dim)
        self.decoder = _layers(latent_dim + len(sequences), hidden_dims[::-1], self.num_pooled)

    def pooled_losses(
        self, attributes_NP: Tensor, pooled_NQ: Tensor, relative_NS: Tensor
    ) -> dict[str, tuple[Tensor, float]]:
        """Computes the reconstruction error and the Wasserstein distance of warm users."""
        target_NQ = self.pooled_scale(pooled_NQ)
        posterior = _moments(self.posterior(target_NQ))
        prior = _moments(self.prior(self.attribute_scale(attributes_NP)))
        decoded_NQ = self._decode(*posterior, relative_NS)
        return {
            "v": ((decoded_NQ - target_NQ).square().mean(1), self.settings.reconstruction_weight),
            "d": (gaussian_wasserstein(*posterior, *prior), self.settings.wasserstein_weight),
        }

    def predict_pooled(self, attributes_NP: Tensor) -> Tensor:
        """Decodes the prior's code with the mean number of behaviours, [N, Q]."""
        prior = _moments(self.prior(self.attribute_scale(attributes_NP)))
        relative_NS = self.relative_lengths.mean_D.expand(attributes_NP.shape[0], -1)
        return self.pooled_scale.inverse(self._decode(*prior, relative_NS))

    def _decode(self, means_NH: Tensor, log_variances_NH: Tensor, relative_NS: Tensor) -> Tensor:
        """Decodes a drawn code, the mean in evaluation, to standardised behaviours [N, Q]."""
        codes_NH = means_NH
        if self.training and self.settings.noise:
            deviations_NH = (log_variances_NH / 2).exp()
            codes_NH = means_NH + self.settings.noise * deviations_NH * torch.randn_like(means_NH)
        decoded_NQ: Tensor = self.decoder(torch.cat([codes_NH, relative_NS], dim=1))
        return decoded_NQ


def _layers(in_dim: int, hidden_dims: tuple[int, ...], out_dim: int) -> nn.Sequential:
    hidden = dense_layers(in_dim, hidden_dims, lambda _: nn.LeakyReLU())
    return nn.Sequential(*hidden, nn.Linear(last_dim(in_dim, hidden_dims), out_dim))


def _moments(encoded_N2H: Tensor) -> tuple[Tensor, Tensor]:
    """Means and logs of variances, each [N, H]."""
    means_NH, log_variances_NH = encoded_N2H.chunk(2, dim=1)
    # After a first batch of one user vectors are standardised by hardly any deviation, and the
    # exponential of what a layer then says is infinite.
    return means_NH, log_variances_NH.clamp(-_MOST_LOG_VARIANCE, _MOST_LOG_VARIANCE)
