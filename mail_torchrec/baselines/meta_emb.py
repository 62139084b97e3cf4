"""MetaEmb: a generated first embedding of a new user's id (Pan et al., "Warm Up Cold-start Advertisements", SIGIR 2019).

Shape letters as in ``towers/inputs.py``; ``D`` the dimension of attributes, ``M`` numeric
attributes.

A generator makes the id's vector phi of the user's other attributes. It is trained on old users as
if they were new, in two
phases: the cold loss on one of a user's rows with phi; a gradient step of that loss, ``phi' = phi -
    step_size d l_a / d phi``; and the
warm loss on another row of the user with phi'. The paper trains it behind a finished ranking tower,
on batches made for it; here both learn in one pass over the same batches, the ranking tower as it
stands being a constant to the generator, and so are the tables.
"""

from itertools import chain
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.func import functional_call

from mail_torchrec.losses.ranking import ranking_loss
from mail_torchrec.settings import Settings
from mail_torchrec.towers.inputs import RankingInputs, RankingOutput, with_attribute
from mail_torchrec.towers.layers.mlp import dense_layers, last_dim


class MetaEmbSettings(Settings):
    """MetaEmb. Defaults are the paper's or its released code's, but for ``step_size``."""

    name: Literal["meta_emb"]
    field: str | None = None
    """The attribute column of the user's id; null finds the one that reads the group key's column
    of the files."""
    alpha: float = Field(default=0.1, ge=0.0, le=1.0)
    """Weight of the cold loss; the warm loss has the rest."""
    step_size: float = Field(default=0.1, gt=0.0)
    """Of the gradient step between the two; the released code's 0.0001 leaves the warm loss a
    second cold one."""
    hidden_dims: tuple[PositiveInt, ...] = ()
    """Hidden layers of the generator; the paper's has none."""
    scale: float = Field(default=0.2, gt=0.0)
    """Generated elements lie between -scale and scale."""


class MetaEmb(nn.Module):
    """Generates the id's vector of new rows, and has the loss that trains this.

    Args:
        settings: options.
        field: place of the id among the attributes.
        num_attributes: A, the id included.
        dim: D.
        num_numeric: M.
    """

    def __init__(
        self, settings: MetaEmbSettings, field: int, num_attributes: int, dim: int, num_numeric: int
    ) -> None:
        super().__init__()
        self.settings, self.field = settings, field
        in_dim = (num_attributes - 1) * dim + num_numeric
        hidden = dense_layers(in_dim, settings.hidden_dims, lambda _: nn.LeakyReLU())
        self.layers = nn.Sequential(
            *hidden, nn.Linear(last_dim(in_dim, settings.hidden_dims), dim, bias=False)
        )

    def forward(self, attributes_BAD: Tensor, numeric_BM: Tensor) -> Tensor:
        """Generated vectors of the id [B, D]; no gradient goes to the attributes."""
        others_BAD = torch.cat(
            [attributes_BAD[:, : self.field], attributes_BAD[:, self.field + 1 :]], dim=1
        ).detach()
        generated_BD: Tensor = self.layers(torch.cat([others_BAD.flatten(1), numeric_BM], dim=1))
        return self.settings.scale * torch.tanh(generated_BD)

    def filled(self, inputs: RankingInputs, numeric_BM: Tensor, new_B: Tensor) -> RankingInputs:
        """The inputs with generated vectors in the rows ``new_B`` (bool), whose own ids so get no gradient."""
        generated_BD = self(
            inputs.attributes_BAD, numeric_BM
        ).detach()  # WALL: data to the ranking tower
        own_BD = inputs.attributes_BAD[:, self.field]
        return with_attribute(
            inputs, self.field, torch.where(new_B.unsqueeze(1), generated_BD, own_BD)
        )

    def losses(
        self,
        tower: nn.Module,
        inputs: RankingInputs,
        numeric_BM: Tensor,
        labels_B: Tensor,
        earlier_B: Tensor,
    ) -> Tensor:
        """``alpha * cold + (1 - alpha) * warm`` of each row [B].

        The gradient reaches the generator alone: the tower's parameters are constants here, it is
        in evaluation mode for the time, and it should score each row by itself, as all towers here
        do then.

        Args:
            tower: scores new rows.
            inputs: as of new rows, detached.
            numeric_BM: numeric attributes.
            labels_B: clicks.
            earlier_B: the row whose gradient step precedes a row's warm loss: another one of the
                same user, see :func:`pairs`.
        """
        state = {
            name: value.detach()
            for name, value in chain(tower.named_parameters(), tower.named_buffers())
        }

        def losses(phi_BD: Tensor) -> Tensor:
            returned = functional_call(tower, state, (with_attribute(inputs, self.field, phi_BD),))
            return ranking_loss(RankingOutput.of(returned).logits_B, labels_B)

        phi_BD = self(inputs.attributes_BAD, numeric_BM)
        was_training = tower.training
        tower.eval()
        try:
            cold_B = losses(phi_BD)
            (slope_BD,) = torch.autograd.grad(cold_B.sum(), phi_BD, create_graph=True)
            warm_B = losses((phi_BD - self.settings.step_size * slope_BD)[earlier_B])
        finally:
            tower.train(was_training)
        return self.settings.alpha * cold_B + (1 - self.settings.alpha) * warm_B


def pairs(users_B: Tensor, counts_B: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of one user, one after the other and the first after the last.

    Args:
        users_B: whose row it is.
        counts_B: rows that can be in a pair (bool).

    Returns:
        The row before each one [B], itself where it is the only one or does not count; and which
        rows are in a pair [B].
    """
    order_B = torch.argsort(users_B, stable=True)
    order_B = order_B[
        torch.argsort((~counts_B[order_B]).to(torch.uint8), stable=True)
    ]  # those that count first
    users_B, places_B = users_B[order_B], torch.arange(len(users_B), device=users_B.device)
    is_first_B = ~counts_B[order_B]
    is_first_B[0] = True
    is_first_B[1:] |= users_B[1:] != users_B[:-1]
    first_B = torch.where(is_first_B, places_B, 0).cummax(0).values
    later_B = torch.where(is_first_B.roll(-1), first_B, places_B + 1)
    earlier_B = torch.empty_like(order_B).scatter_(0, order_B[later_B], order_B)
    paired_B = torch.empty_like(counts_B).scatter_(0, order_B, later_B != places_B)
    return earlier_B, paired_B
