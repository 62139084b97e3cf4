"""MetaEmb: generated embeddings of cold users' ids (Pan et al., SIGIR 2019).

Source: Pan et al., "Warm Up Cold-start Advertisements: Improving CTR Predictions via Learning to
Learn ID Embeddings". Shape letters as in ``towers/inputs.py``; ``D`` the dimension of attributes,
``M`` numeric attributes.

A generator computes the id's vector phi from the user's other attributes. It is trained on warm
users as if they were cold, in two phases: the cold loss on one of a user's rows with phi; a
gradient step of that loss, ``phi' = phi - step_size d l_a / d phi``; and the warm loss on another
row of the user with phi'. The paper trains it behind a finished ranking tower, on batches made for
it; here both learn in one pass over the same batches, the ranking tower as it stands being a
constant to the generator, and so are the tables.
"""

from itertools import chain
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.func import functional_call

from mail_torchrec.losses.ranking import ranking_loss
from mail_torchrec.settings import Settings
from mail_torchrec.towers.inputs import RankingInputs, RankingOutput, replace_attribute
from mail_torchrec.towers.layers.mlp import dense_layers, last_dim


class MetaEmbSettings(Settings):
    """MetaEmb (Pan et al., SIGIR 2019); defaults of the paper or its code, but ``step_size``."""

    name: Literal["meta_emb"]
    """Name of the baseline."""
    field: str | None = None
    """The attribute column of the user's id; null finds the one that reads the group key's column
    of the files."""
    alpha: float = Field(default=0.1, ge=0.0, le=1.0)
    """Weight of the cold loss; the warm loss has the rest."""
    step_size: float = Field(default=0.1, gt=0.0)
    """Size of the gradient step between the two losses; with the released code's 0.0001 the warm
    loss is a second cold one."""
    hidden_dims: tuple[PositiveInt, ...] = ()
    """Hidden layers of the generator; the paper's has none."""
    scale: float = Field(default=0.2, gt=0.0)
    """Bound of the generated elements, which lie between -scale and scale."""


class MetaEmb(nn.Module):
    """Generator of the id vectors of cold users, with the loss that trains it.

    Args:
        settings: options.
        field: index of the id among the attributes.
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
        """Generates vectors of the id [B, D]; no gradient goes to the attributes."""
        before_BAD, _, behind_BAD = attributes_BAD.tensor_split((self.field, self.field + 1), dim=1)
        others_BAD = torch.cat([before_BAD, behind_BAD], dim=1).detach()
        generated_BD: Tensor = self.layers(torch.cat([others_BAD.flatten(1), numeric_BM], dim=1))
        return self.settings.scale * torch.tanh(generated_BD)

    def fill_ids(self, inputs: RankingInputs, numeric_BM: Tensor, cold_B: Tensor) -> RankingInputs:
        """Replaces the id vectors of cold rows, whose own ids so get no gradient.

        Args:
            inputs: any rows.
            numeric_BM: their numeric attributes.
            cold_B: rows that get generated vectors (bool).
        """
        # WALL: generated vectors are constants to the ranking tower.
        generated_BD = self(inputs.attributes_BAD, numeric_BM).detach()
        own_BD = inputs.attributes_BAD[:, self.field]
        vectors_BD = torch.where(cold_B.unsqueeze(1), generated_BD, own_BD)
        return replace_attribute(inputs, self.field, vectors_BD)

    def losses(
        self,
        tower: nn.Module,
        inputs: RankingInputs,
        numeric_BM: Tensor,
        labels_B: Tensor,
        previous_B: Tensor,
    ) -> Tensor:
        """Computes ``alpha * cold + (1 - alpha) * warm`` of each row [B].

        The gradient reaches the generator alone: the tower's parameters are constants here, it is
        in evaluation mode for the time, and it should score each row by itself, as all towers here
        do then.

        Args:
            tower: the tower that scores cold users.
            inputs: as of cold users, detached.
            numeric_BM: numeric attributes.
            labels_B: clicks.
            previous_B: the row whose gradient step precedes a row's warm loss: another one of the
                same user, see :func:`pair_rows` (int64).
        """
        named = chain(tower.named_parameters(), tower.named_buffers())
        state = {name: value.detach() for name, value in named}

        def losses_of(phi_BD: Tensor) -> Tensor:
            returned = functional_call(
                tower, state, (replace_attribute(inputs, self.field, phi_BD),)
            )
            return ranking_loss(RankingOutput.wrap(returned).logits_B, labels_B)

        phi_BD = self(inputs.attributes_BAD, numeric_BM)
        was_training = tower.training
        tower.eval()
        try:
            cold_B = losses_of(phi_BD)
            (slope_BD,) = torch.autograd.grad(cold_B.sum(), phi_BD, create_graph=True)
            stepped_BD = phi_BD - self.settings.step_size * slope_BD
            warm_B = losses_of(stepped_BD[previous_B])
        finally:
            tower.train(was_training)
        return self.settings.alpha * cold_B + (1 - self.settings.alpha) * warm_B


def pair_rows(users_B: Tensor, counts_B: Tensor) -> tuple[Tensor, Tensor]:
    """Links each row to another row of the same user: the one before it, the first to the last.

    Users ``[7, 8, 7, 7]``, which all count, give the previous rows ``[3, 1, 0, 2]``.

    Args:
        users_B: the user of each row (int64).
        counts_B: rows that can be in a pair (bool).

    Returns:
        The previous row of each one [B], itself where it is the only one or does not count; and
        the rows that are in a pair [B] (bool).
    """
    order_B = torch.argsort(users_B, stable=True)
    # Rows that count come first.
    skipped_B = (~counts_B[order_B]).to(torch.uint8)
    order_B = order_B[torch.argsort(skipped_B, stable=True)]
    users_B, places_B = users_B[order_B], torch.arange(len(users_B), device=users_B.device)
    is_first_B = ~counts_B[order_B]
    is_first_B[:1] = True  # a slice is filled, a single element copied from the host
    is_first_B[1:] |= users_B[1:] != users_B[:-1]
    first_B = torch.where(is_first_B, places_B, 0).cummax(0).values
    next_B = torch.where(is_first_B.roll(-1), first_B, places_B + 1)
    previous_B = torch.empty_like(order_B).scatter_(0, order_B[next_B], order_B)
    is_paired_B = torch.empty_like(counts_B).scatter_(0, order_B, next_B != places_B)
    return previous_B, is_paired_B
