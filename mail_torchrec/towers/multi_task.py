"""Multi-task head: conversions learnt over all impressions (ESMM, Ma et al., SIGIR 2018).

Shape letters: ``B`` rows.
"""

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from mail_torchrec.settings import Settings
from mail_torchrec.towers.inputs import RankingOutput
from mail_torchrec.towers.layers.mlp import dense_layers, last_dim
from mail_torchrec.towers.outputs import probability_spec
from mail_torchrec.utils.output_spec import OutputSpec

CONVERSION_TASKS = "cvr", "ctcvr"
"""Tasks of the head."""


class MultiTaskSettings(Settings):
    """Head for conversions; loss ``w BCE(pCTR, click) + (1 - w) BCE(pCTCVR, conversion)``."""

    click_weight: float = Field(default=0.7, gt=0.0, lt=1.0)
    """Weight w of the click loss; the loss of clicked and converted rows has 1 - w."""
    hidden_dims: tuple[PositiveInt, ...] = (64,)
    """Hidden layers of the conversion network, on the ranking tower's last hidden layer."""


class MultiTaskHead(nn.Module):
    """Predicts ``pCVR`` from a tower's representation, and ``pCTCVR = pCTR * pCVR``.

    ``pCTR`` is the tower's own prediction. pCVR is no target of its own: it is learnt as a factor
    of pCTCVR, from all rows, where a model of the clicked rows alone would learn from a selection.

    Args:
        settings: widths.
        tower: the ranking tower that returns the representation.
        tower_name: its name, for messages.

    Raises:
        ValueError: the tower gives no representation.
    """

    def __init__(self, settings: MultiTaskSettings, tower: nn.Module, tower_name: str) -> None:
        super().__init__()
        self._tower_name = tower_name
        self._dim = representation_dim(
            tower, f"model.multi_task: tower '{tower_name}'", "model.multi_task=null"
        )
        layers = dense_layers(self._dim, settings.hidden_dims, lambda _: nn.LeakyReLU())
        self.layers = nn.Sequential(
            *layers, nn.Linear(last_dim(self._dim, settings.hidden_dims), 1)
        )

    def forward(self, ranked: RankingOutput) -> dict[str, Tensor]:
        """Computes the logits of pCVR and of pCTCVR, ``{"cvr": [B], "ctcvr": [B]}``.

        Args:
            ranked: output of the ranking tower.

        Raises:
            ValueError: the representation is missing or not ``[B, representation_dim]``.
        """
        x_BR = checked_representation(ranked, self._dim, self._tower_name)
        cvr_logits_B = self.layers(x_BR).squeeze(1)
        return {"cvr": cvr_logits_B, "ctcvr": product_logits(ranked.logits_B, cvr_logits_B)}

    def output_specs(self) -> list[OutputSpec]:
        """Declares the probabilities of the head, in the order of :meth:`forward`."""
        return [
            probability_spec("cvr", "probability of a conversion, given a click"),
            probability_spec("ctcvr", "probability of a click and a conversion"),
        ]


def representation_dim(tower: nn.Module, where: str, remedy: str) -> int:
    """Returns the width of a tower's last hidden layer.

    Args:
        tower: a ranking tower.
        where: of the setting and the tower, for messages.
        remedy: setting that needs none.

    Raises:
        ValueError: the tower gives no representation.
    """
    dim = getattr(tower, "representation_dim", None)
    if isinstance(dim, int):
        return dim
    raise ValueError(
        f"{where} gives no representation for the heads of further tasks (it has no "
        "attribute representation_dim, the width of its last hidden layer); choose another tower, "
        f"or {remedy}"
    )


def checked_representation(ranked: RankingOutput, dim: int, tower_name: str) -> Tensor:
    """Returns a tower's representation [B, R].

    Args:
        ranked: output of the ranking tower.
        dim: its width R.
        tower_name: for messages.

    Raises:
        ValueError: it is missing or not ``[B, dim]``.
    """
    x_BR = ranked.representation_BR
    received = None if x_BR is None else tuple(x_BR.shape)
    expected = (ranked.logits_B.shape[0], dim)
    if x_BR is None or received != expected:
        raise ValueError(
            f"tower '{tower_name}' should return RankingOutput.representation_BR of shape "
            f"{expected}, rows and its representation_dim, received {received or 'none'}"
        )
    return x_BR


def product_logits(x_B: Tensor, y_B: Tensor) -> Tensor:
    """Computes the logit [B] of ``sigmoid(x) sigmoid(y)``, exactly.

    Gradients are finite however large ``x`` and ``y``: ``1 / (sigmoid(x) sigmoid(y)) = (1 + e^-x)
    (1 + e^-y)``, and ``logit(p) = -log(1/p - 1)``, so it is ``-log(e^-x + e^-y + e^-(x+y))``.

    Args:
        x_B: logits.
        y_B: logits.
    """
    return -torch.logsumexp(torch.stack([-x_B, -y_B, -x_B - y_B]), dim=0)
