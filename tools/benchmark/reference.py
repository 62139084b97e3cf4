"""MAIL-DMR as one writes it down from the papers in plain PyTorch: nn.Embedding, padded rows, float32, dense Adam. Nothing is clever here.

What trains fast in this project is measured against this file, so it shares no code with the
towers; ``tests/tools`` compares its losses and gradients with theirs. Every row goes through the
whole zero-shot tower, once: its loss counts where the row is old, what it made of the attributes'
code becomes the virtual behaviours where the row is new. Of DMR's softmaxes over prefixes only the
two that are used are computed.

Shape letters: ``B`` rows, ``O`` old ones, ``T`` positions, ``A`` attributes, ``d`` a vector, ``K``
negatives, ``H`` the code.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mail_torchrec.config import Config
from mail_torchrec.data.schema.schema import Group
from mail_torchrec.towers.dmr import DMRSettings
from mail_torchrec.towers.registry import tower_settings
from tools.benchmark.padded import Padded


class Stack(nn.Module):
    """MAIL, Eqs. 15 and 16: each layer sees the previous one's output and the input."""

    def __init__(self, in_dim: int, dims: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        widths = [in_dim] + [dim + in_dim for dim in dims[:-1]]
        self.layers = nn.ModuleList(
            nn.Linear(width, dim) for width, dim in zip(widths, dims, strict=True)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in] -> [N, out]; the last layer is linear."""
        z = x
        for layer in list(self.layers)[:-1]:
            z = torch.cat([functional.leaky_relu(layer(self.dropout(z))), x], dim=1)
        out: Tensor = self.layers[-1](z)
        return out


class Pooling(nn.Module):
    """MAIL, Eqs. 1 and 2: attention over the real vectors of a row."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.hidden, self.score = nn.Linear(dim, width), nn.Linear(width, 1, bias=False)

    def forward(self, x_NTd: Tensor, mask_NT: Tensor) -> Tensor:
        """[N, T, d] -> [N, d]."""
        scores_NT = self.score(torch.tanh(self.hidden(x_NTd))).squeeze(2)
        return (softmax(scores_NT, mask_NT).unsqueeze(2) * x_NTd).sum(1)


def softmax(scores_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Over the real positions; zeros for a row without any."""
    return torch.softmax(scores_NT.masked_fill(~mask_NT, -1e9), dim=1) * mask_NT


class ZeroShot(nn.Module):
    """MAIL, Section 3.2.2."""

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

    def code(self, a_NAd: Tensor, numeric_NM: Tensor) -> Tensor:
        """``E1(h_a)``."""
        everywhere = torch.ones(a_NAd.shape[:2], dtype=torch.bool, device=a_NAd.device)
        return functional.leaky_relu(
            self.e1(torch.cat([self.pool_a(a_NAd, everywhere), numeric_NM], dim=1))
        )

    def forward(
        self, a_BAd: Tensor, numeric_BM: Tensor, v_BTd: Tensor, mask_BT: Tensor, old_B: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Virtual behaviours of every row [B, T, d] (Eq. 8), and the losses of the old ones (Eqs. 3 to 6)."""
        p_BH = self.code(a_BAd, numeric_BM)
        q_BH = functional.leaky_relu(self.e2(self.pool_v(v_BTd, mask_BT)))
        virtual_BTd = self.d2(p_BH).view_as(v_BTd)
        losses = {
            "L_a": error(self.d1(p_BH).view_as(a_BAd), a_BAd, old_B)
            + error(virtual_BTd, v_BTd, old_B),
            "L_v": error(self.d1(q_BH).view_as(a_BAd), a_BAd, old_B)
            + error(self.d2(q_BH).view_as(v_BTd), v_BTd, old_B),
            "L_d": mmd(p_BH[old_B], q_BH[old_B], self.sigma),
        }
        return virtual_BTd, losses


def error(made_BFd: Tensor, wanted_BFd: Tensor, counts_B: Tensor) -> Tensor:
    """Mean squared error of the rows that count."""
    return ((made_BFd - wanted_BFd).square().mean((1, 2)) * counts_B).sum() / counts_B.sum().clamp(
        min=1
    )


def mmd(p_OH: Tensor, q_OH: Tensor, sigma: float) -> Tensor:
    """Eq. 5 with a Gaussian kernel."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)
        return torch.exp(-squared / (2 * sigma**2)).mean()

    return kernel(p_OH, p_OH) + kernel(q_OH, q_OH) - 2 * kernel(p_OH, q_OH)


class Slopes(nn.PReLU):
    """PReLU, a slope an element of the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return functional.prelu(x.reshape(-1, x.shape[-1]), self.weight).view(x.shape)


class Scores(nn.Module):
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
        self.query = nn.Sequential(nn.Linear(2 * width + target_dim, dim), Slopes(dim))
        self.g = hidden_layers(4 * dim, settings.attention_dims, lambda _: nn.Sigmoid())

    def forward(
        self, v_BTd: Tensor, places_BT: Tensor, actions_BT: Tensor, target_Bd: Tensor | None = None
    ) -> Tensor:
        """[B, T]."""
        seen = [self.position(places_BT), self.action(actions_BT)]
        if target_Bd is not None:
            seen.append(target_Bd[:, None].expand(-1, v_BTd.shape[1], -1))
        q = self.query(torch.cat(seen, dim=2))
        scores: Tensor = self.g(torch.cat([q, v_BTd, q - v_BTd, q * v_BTd], dim=2)).squeeze(2)
        return scores


def hidden_layers(
    in_dim: int, dims: tuple[int, ...], activation: Callable[[int], nn.Module]
) -> nn.Sequential:
    """Dense layers with an activation each, and one output."""
    layers: list[nn.Module] = []
    for dim in dims:
        layers += [nn.Linear(in_dim, dim), activation(dim)]
        in_dim = dim
    return nn.Sequential(*layers, nn.Linear(in_dim, 1))


class DMR(nn.Module):
    """Lyu et al. 2020."""

    def __init__(self, config: Config, num_actions: int) -> None:
        super().__init__()
        schema, settings = config.schema_, tower_settings("dmr", config.model.tower_options)
        assert isinstance(settings, DMRSettings)
        dim, max_length = schema.dim, schema.columns[schema.sequences[0]].max_length
        self.user_scores = Scores(settings, max_length, num_actions, dim, 0)
        self.item_scores = Scores(settings, max_length, num_actions, dim, dim)
        self.user = nn.Sequential(nn.Linear(dim, dim), Slopes(dim))
        num_fields = sum(
            len(schema.fields(group)) for group in (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM)
        )
        in_dim = num_fields * dim + len(schema.numeric()) + 3 * dim + 2
        self.norm, self.mlp = (
            nn.BatchNorm1d(in_dim),
            hidden_layers(in_dim, settings.hidden_dims, Slopes),
        )

    def forward(
        self,
        fields_BX: Tensor,
        v_BTd: Tensor,
        lengths_B: Tensor,
        actions_BT: Tensor,
        target_Bd: Tensor,
        wanted_Bd: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The logit of each row, and ``u_{T-1}``."""
        order_T = torch.arange(v_BTd.shape[1], device=v_BTd.device)
        mask_BT, before_BT = order_T < lengths_B[:, None], order_T < lengths_B[:, None] - 1
        places_BT = (lengths_B[:, None] - 1 - order_T).clamp(min=0)
        scores_BT = self.user_scores(v_BTd, places_BT, actions_BT)
        users = [
            self.user((softmax(scores_BT, mask)[:, :, None] * v_BTd).sum(1))
            for mask in (mask_BT, before_BT)
        ]
        raw_BT = self.item_scores(v_BTd, places_BT, actions_BT, target_Bd)
        attended_Bd = (softmax(raw_BT, mask_BT)[:, :, None] * v_BTd).sum(1)
        r_B1, relevance_B1 = (
            (users[0] * wanted_Bd).sum(1, keepdim=True),
            (raw_BT * mask_BT).sum(1, keepdim=True),
        )
        sum_Bd = v_BTd.sum(1)
        x = torch.cat(
            [fields_BX, sum_Bd, target_Bd * sum_Bd, r_B1, relevance_B1, attended_Bd], dim=1
        )
        return self.mlp(self.norm(x)).squeeze(1), users[1]


class Reference(nn.Module):
    """Tables, zero-shot tower and DMR.

    Args:
        config: columns and widths; one sequence with actions, joined by product, DMR with its match
            loss. ``model.zero_shot`` may be null.
        num_rows: table -> rows.

    Raises:
        ValueError: another schema or tower.
    """

    def __init__(self, config: Config, num_rows: dict[str, int]) -> None:
        super().__init__()
        self.schema = schema = config.schema_
        if (
            len(schema.sequences) != 1
            or schema.action_of(schema.sequences[0]) is None
            or config.model.tower != "dmr"
        ):
            raise ValueError(
                "the reference is DMR on one behaviour sequence with actions; choose such a "
                "configuration"
            )
        self.sequence = schema.sequences[0]
        self.action, self.target = (
            schema.action_of(self.sequence) or "",
            schema.target_of(self.sequence),
        )
        settings = tower_settings("dmr", config.model.tower_options)
        assert isinstance(settings, DMRSettings)
        self.match_weight = settings.match_weight
        self.tables = nn.ModuleDict(
            {
                f"table_{name}": nn.Embedding(num_rows[name], schema.dim)
                for name in schema.table_names
            }
        )
        self.output_table = nn.Embedding(num_rows[schema.table_of(self.sequence)], schema.dim)
        for name, table in [
            *((name, self.table(name)) for name in schema.table_names),
            (schema.table_of(self.sequence), self.output_table),
        ]:
            mean, width = schema.table(name).init_mean, schema.table(name).init_range
            nn.init.uniform_(table.weight, mean - width, mean + width)
        self.dmr = DMR(config, num_rows[schema.table_of(self.action)])
        self.zero_shot = ZeroShot(config) if config.model.zero_shot is not None else None

    def table(self, name: str) -> nn.Embedding:
        """The table of that name."""
        found = self.tables[f"table_{name}"]
        assert isinstance(found, nn.Embedding)
        return found

    def forward(self, rows: Padded) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits [B], and in training the losses by name."""
        attributes_BAd, context_BCd, items_BId = (
            self.fields(rows, group) for group in (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM)
        )
        lengths_B, actions_BT = rows.lengths[self.sequence], rows.ids[self.action]
        mask_BT = torch.arange(actions_BT.shape[1], device=lengths_B.device) < lengths_B[:, None]
        v_BTd = (
            self.vectors(self.sequence, rows)
            * self.vectors(self.action, rows)
            * mask_BT[:, :, None]
        )
        losses: dict[str, Tensor] = {}
        is_cold_B, numeric_BM = (
            rows.is_cold_B,
            rows.numeric_BN[:, : len(self.schema.numeric(Group.ATTRIBUTE))],
        )
        if self.zero_shot is not None:
            virtual_BTd, losses = self.zero_shot(
                attributes_BAd.detach(), numeric_BM, v_BTd.detach(), mask_BT, ~is_cold_B
            )
            losses = losses if self.training else {}
            v_BTd = torch.where(is_cold_B[:, None, None], virtual_BTd.detach(), v_BTd)
            lengths_B = torch.where(is_cold_B, v_BTd.shape[1], lengths_B)
            actions_BT = actions_BT.masked_fill(is_cold_B[:, None], 0)
        fields_BX = torch.cat(
            [
                attributes_BAd.flatten(1),
                items_BId.flatten(1),
                context_BCd.flatten(1),
                rows.numeric_BN,
            ],
            dim=1,
        )
        wanted_Bd = self.output_table(rows.ids[self.target])
        logits_B, before_Bd = self.dmr(
            fields_BX, v_BTd, lengths_B, actions_BT, items_BId[:, 0], wanted_Bd
        )
        if self.training:
            losses["L_rt"] = functional.binary_cross_entropy_with_logits(logits_B, rows.labels_B)
            losses["L_match"] = self.match_loss(
                before_Bd, rows, (lengths_B >= 3) & ~(is_cold_B & (self.zero_shot is not None))
            )
        return logits_B, losses

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """What is minimised."""
        return torch.stack(
            [
                self.match_weight * loss if name == "L_match" else loss
                for name, loss in losses.items()
            ]
        ).sum()

    def vectors(self, column: str, rows: Padded) -> Tensor:
        """The vectors of a column's ids."""
        found: Tensor = self.table(self.schema.table_of(column))(rows.ids[column])
        return found

    def fields(self, rows: Padded, group: Group) -> Tensor:
        """The fields of a group, [B, F, d]; a list's is the mean of its vectors."""
        found = []
        for name in self.schema.fields(group):
            vectors = self.vectors(name, rows)
            if name in rows.lengths:
                lengths_B1 = rows.lengths[name][:, None]
                real_BT = torch.arange(vectors.shape[1], device=vectors.device) < lengths_B1
                vectors = (vectors * real_BT[:, :, None]).sum(1) / lengths_B1.clamp(min=1)
            found.append(vectors)
        return torch.stack(found, dim=1)

    def match_loss(self, before_Bd: Tensor, rows: Padded, counts_B: Tensor) -> Tensor:
        """Sampled softmax over the newest behaviour and the negatives, with the log-frequency correction."""
        match = rows.match
        true_B1 = (before_Bd * self.output_table(match.last_U)).sum(
            1, keepdim=True
        ) - match.last_log_q_U[:, None]
        others_BK = before_Bd @ self.output_table(match.negatives_K).T - match.negatives_log_q_K
        others_BK = others_BK.masked_fill(match.last_U[:, None] == match.negatives_K, -torch.inf)
        losses_B = functional.cross_entropy(
            torch.cat([true_B1, others_BK], dim=1), torch.zeros_like(match.last_U), reduction="none"
        )
        return (losses_B * counts_B).sum() / counts_B.sum().clamp(min=1)
