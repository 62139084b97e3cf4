"""Zero-shot tower and DMR of the direct reference, as one writes them down from the papers.

Shape letters: ``B`` rows, ``O`` old ones, ``N`` any vectors, ``T`` positions, ``A`` attributes,
``F`` fields, ``D`` the dimension of a vector, ``M`` numeric attributes, ``H`` the code, ``X`` all
fields of a row.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mail_torchrec.config import Config
from mail_torchrec.data.schema.schema import Group
from mail_torchrec.towers.dmr import DMRSettings
from mail_torchrec.towers.registry import tower_settings


class Stack(nn.Module):
    """Dense layers that also take the input again (MAIL, Eqs. 15 and 16)."""

    def __init__(self, in_dim: int, dims: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        widths = [in_dim] + [dim + in_dim for dim in dims[:-1]]
        self.layers = nn.ModuleList(
            nn.Linear(width, dim) for width, dim in zip(widths, dims, strict=True)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in] to [N, out]; the last layer is linear."""
        z = x
        for layer in list(self.layers)[:-1]:
            z = torch.cat([functional.leaky_relu(layer(self.dropout(z))), x], dim=1)
        out: Tensor = self.layers[-1](z)
        return out


class Pooling(nn.Module):
    """Attention over the real vectors of a row (MAIL, Eqs. 1 and 2)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.hidden, self.score = nn.Linear(dim, width), nn.Linear(width, 1, bias=False)

    def forward(self, x_NTD: Tensor, mask_NT: Tensor) -> Tensor:
        """Pools [N, T, D] to [N, D]."""
        scores_NT = self.score(torch.tanh(self.hidden(x_NTD))).squeeze(2)
        return (softmax(scores_NT, mask_NT).unsqueeze(2) * x_NTD).sum(1)


def softmax(scores_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Computes the softmax [N, T] over the real positions; zeros for a row without any."""
    return torch.softmax(scores_NT.masked_fill(~mask_NT, -1e9), dim=1) * mask_NT


class ZeroShot(nn.Module):
    """The zero-shot tower (MAIL, Section 3.2.2)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        schema, settings = config.schema_, config.model.zero_shot
        assert settings is not None
        dim, self.max_length = schema.dim, schema.columns[schema.sequences[0]].max_length
        num_attributes, code_dim = len(schema.fields(Group.ATTRIBUTE)), settings.encoder_dims[-1]
        self.sigma = settings.sigma
        self.pool_a, self.pool_v = (
            Pooling(dim, settings.attention_dim),
            Pooling(dim, settings.attention_dim),
        )
        self.e1 = Stack(
            dim + len(schema.numeric(Group.ATTRIBUTE)), settings.encoder_dims, settings.dropout
        )
        self.e2 = Stack(dim, settings.encoder_dims, settings.dropout)
        self.d1 = Stack(code_dim, (*settings.decoder_dims, num_attributes * dim), settings.dropout)
        self.d2 = Stack(code_dim, (*settings.decoder_dims, self.max_length * dim), settings.dropout)

    def code(self, a_NAD: Tensor, numeric_NM: Tensor) -> Tensor:
        """Encodes attributes: ``E1(h_a)`` [N, H]."""
        everywhere = torch.ones(a_NAD.shape[:2], dtype=torch.bool, device=a_NAD.device)
        return functional.leaky_relu(
            self.e1(torch.cat([self.pool_a(a_NAD, everywhere), numeric_NM], dim=1))
        )

    def forward(
        self, a_BAD: Tensor, numeric_BM: Tensor, v_BTD: Tensor, mask_BT: Tensor, old_B: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Makes virtual behaviours of every row (Eq. 8) and the losses of old ones (Eqs. 3 to 6).

        Returns:
            Virtual behaviours [B, T, D], and losses by name.
        """
        p_BH = self.code(a_BAD, numeric_BM)
        q_BH = functional.leaky_relu(self.e2(self.pool_v(v_BTD, mask_BT)))
        virtual_BTD = self.d2(p_BH).view_as(v_BTD)

        def loss(attributes: Tensor, behaviours: Tensor) -> Tensor:
            of_attributes = reconstruction_error(attributes.view_as(a_BAD), a_BAD, old_B)
            return of_attributes + reconstruction_error(behaviours.view_as(v_BTD), v_BTD, old_B)

        losses = {
            "L_a": loss(self.d1(p_BH), virtual_BTD),
            "L_v": loss(self.d1(q_BH), self.d2(q_BH)),
            "L_d": mmd(p_BH[old_B], q_BH[old_B], self.sigma),
        }
        return virtual_BTD, losses


def reconstruction_error(output_BFD: Tensor, target_BFD: Tensor, counts_B: Tensor) -> Tensor:
    """Computes the mean squared error of the rows that count."""
    errors_B = (output_BFD - target_BFD).square().mean((1, 2))
    return (errors_B * counts_B).sum() / counts_B.sum().clamp(min=1)


def mmd(p_OH: Tensor, q_OH: Tensor, sigma: float) -> Tensor:
    """Computes the maximum mean discrepancy (Eq. 5) with a Gaussian kernel."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)
        return torch.exp(-squared / (2 * sigma**2)).mean()

    return kernel(p_OH, p_OH) + kernel(q_OH, q_OH) - 2 * kernel(p_OH, q_OH)


class LastAxisPReLU(nn.PReLU):
    """PReLU with a slope for each element of the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        """Applies it to a tensor of any shape."""
        return functional.prelu(x.reshape(-1, x.shape[-1]), self.weight).view(x.shape)


class AttentionScores(nn.Module):
    """DMR's attention: ``g([q, e, q - e, q * e])`` at each position."""

    def __init__(
        self, settings: DMRSettings, max_length: int, num_actions: int, dim: int, target_dim: int
    ) -> None:
        super().__init__()
        width = settings.embedding_dim
        self.position, self.action = (
            nn.Embedding(max_length, width),
            nn.Embedding(num_actions, width),
        )
        self.query = nn.Sequential(nn.Linear(2 * width + target_dim, dim), LastAxisPReLU(dim))
        self.g = hidden_layers(4 * dim, settings.attention_dims, lambda _: nn.Sigmoid())

    def forward(
        self, v_BTD: Tensor, places_BT: Tensor, actions_BT: Tensor, target_BD: Tensor | None = None
    ) -> Tensor:
        """Computes the scores [B, T]."""
        seen = [self.position(places_BT), self.action(actions_BT)]
        if target_BD is not None:
            seen.append(target_BD[:, None].expand(-1, v_BTD.shape[1], -1))
        q = self.query(torch.cat(seen, dim=2))
        scores: Tensor = self.g(torch.cat([q, v_BTD, q - v_BTD, q * v_BTD], dim=2)).squeeze(2)
        return scores


def hidden_layers(
    in_dim: int, dims: tuple[int, ...], activation: Callable[[int], nn.Module]
) -> nn.Sequential:
    """Builds dense layers with an activation each, and one output."""
    layers: list[nn.Module] = []
    for dim in dims:
        layers += [nn.Linear(in_dim, dim), activation(dim)]
        in_dim = dim
    return nn.Sequential(*layers, nn.Linear(in_dim, 1))


class DMR(nn.Module):
    """Deep match to rank (Lyu et al. 2020)."""

    def __init__(self, config: Config, num_actions: int) -> None:
        super().__init__()
        schema, settings = config.schema_, tower_settings("dmr", config.model.tower_options)
        assert isinstance(settings, DMRSettings)
        dim, max_length = schema.dim, schema.columns[schema.sequences[0]].max_length
        self.user_scores = AttentionScores(settings, max_length, num_actions, dim, 0)
        self.item_scores = AttentionScores(settings, max_length, num_actions, dim, dim)
        self.user = nn.Sequential(nn.Linear(dim, dim), LastAxisPReLU(dim))
        num_fields = sum(
            len(schema.fields(group)) for group in (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM)
        )
        in_dim = num_fields * dim + len(schema.numeric()) + 3 * dim + 2
        self.norm, self.mlp = (
            nn.BatchNorm1d(in_dim),
            hidden_layers(in_dim, settings.hidden_dims, LastAxisPReLU),
        )

    def forward(
        self,
        fields_BX: Tensor,
        v_BTD: Tensor,
        lengths_B: Tensor,
        actions_BT: Tensor,
        target_BD: Tensor,
        wanted_BD: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Computes the logit [B] of each row, and ``u_{T-1}`` [B, D]."""
        order_T = torch.arange(v_BTD.shape[1], device=v_BTD.device)
        mask_BT, before_BT = order_T < lengths_B[:, None], order_T < lengths_B[:, None] - 1
        places_BT = (lengths_B[:, None] - 1 - order_T).clamp(min=0)
        scores_BT = self.user_scores(v_BTD, places_BT, actions_BT)
        users = [
            self.user((softmax(scores_BT, mask)[:, :, None] * v_BTD).sum(1))
            for mask in (mask_BT, before_BT)
        ]
        raw_BT = self.item_scores(v_BTD, places_BT, actions_BT, target_BD)
        attended_BD = (softmax(raw_BT, mask_BT)[:, :, None] * v_BTD).sum(1)
        r_B1, relevance_B1 = (
            (users[0] * wanted_BD).sum(1, keepdim=True),
            (raw_BT * mask_BT).sum(1, keepdim=True),
        )
        sum_BD = v_BTD.sum(1)
        x = torch.cat(
            [fields_BX, sum_BD, target_BD * sum_BD, r_B1, relevance_B1, attended_BD], dim=1
        )
        return self.mlp(self.norm(x)).squeeze(1), users[1]
