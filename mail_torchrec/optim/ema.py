"""Exponential moving average (EMA) of the dense weights, for evaluation and export.

Averaged are the parameters of the towers, and the running mean and variance of their batch
normalisations, which belong to them. Tables are not averaged (that would double their memory), nor
are the buffers that hold statistics of the tables: they have to fit the tables as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mail_torchrec.optim.settings import EmaSettings

EMA_PREFIX = "ema."
"""Begin of the keys of averages in checkpoints; the rest is the name of the parameter."""


class AveragedWeights:
    """Averages of dense weights, beside the weights that are trained.

    Args:
        tensors: name -> weight or running statistic of the model, any shape [...].
        settings: of the average.
    """

    def __init__(self, tensors: dict[str, Tensor], settings: EmaSettings) -> None:
        self._live, self._settings = tensors, settings
        self.averages = {name: value.detach().clone() for name, value in tensors.items()}
        """Name -> average, any shape [...]."""

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Moves the averages towards the weights.

        Args:
            number: of this update of the weights, from 1.
        """
        decay = min(self._settings.decay, (number + 1) / (number + 10))
        average = get_ema_multi_avg_fn(decay)
        average(list(self.averages.values()), list(self._live.values()), number)

    @torch.no_grad()
    def restart(self) -> None:
        """Begins again with the weights as they are."""
        for name, value in self._live.items():
            self.averages[name].copy_(value)

    @torch.no_grad()
    def load_into_model(self) -> None:
        """Replaces the model's weights by their averages, for good."""
        for name, value in self._live.items():
            value.copy_(self.averages[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replaces the model's weights by their averages; puts them back, to the bit."""
        kept = {name: value.detach().clone() for name, value in self._live.items()}
        self.load_into_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self._live.items():
                    value.copy_(kept[name])


def batch_norm_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Returns the running statistics of the batch normalisations of a model, by name."""
    return {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm1d)
        for key in ("running_mean", "running_var")
        if isinstance(value := getattr(module, key), Tensor)
    }
