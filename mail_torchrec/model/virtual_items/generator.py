"""Virtual vectors of new items, generated from their content and other columns, behind the wall.

The generator learns from the detached vectors of warm items, as the zero-shot tower does from
behaviours: its losses (``terms.py``) reach no table and no ranking tower, and L_rt does not reach
it.

Shape letters as in ``towers/inputs.py``; ``S`` stored columns of the items' table, ``G`` generated
ones (of the items' table, then of the output-side table), ``P`` inputs side by side.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mail_torchrec.data.items.candidate_item import candidate_item
from mail_torchrec.data.items.hidden_items import crosses_of, withheld_columns
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Group, Schema
from mail_torchrec.model.features import FeatureEmbeddings
from mail_torchrec.model.virtual_items.settings import VirtualItemSettings
from mail_torchrec.towers.layers.mlp import dense_layers, last_dim


@dataclass
class VirtualItemInputs:
    """Inputs of the losses that teach the generator, of one step."""

    embeddings: FeatureEmbeddings
    """Looked-up vectors, in which no item is virtual."""
    generated_BG: Tensor
    """Generated vectors, with the gradient of the generator."""
    real_BG: Tensor
    """Vectors of the items' ids, constants."""
    numeric_BN: Tensor
    """All numeric features."""
    ids_B: Tensor
    """Table row of each row's item (int64)."""


class VirtualItems(nn.Module):
    """Generates the vector of an item from its other columns: fields, vectors and numbers.

    Args:
        settings: options.
        schema: columns and tables.
        feature_tables: feature keys of a batch and their tables.
        vector_dims: number of elements of each vector column.

    Raises:
        ValueError: the items have no other column.
    """

    num_steps: Tensor
    """Training steps so far, []; there with ``contrast.steps`` alone."""

    def __init__(
        self,
        settings: VirtualItemSettings,
        schema: Schema,
        feature_tables: FeatureTables,
        vector_dims: Mapping[str, int],
    ) -> None:
        super().__init__()
        item = settings.item or candidate_item(schema)
        assert item is not None, "check_virtual_items refuses it"
        self.item, self.dropout, self.settings = item, settings.dropout, settings
        telling = withheld_columns(schema, item) | crosses_of(schema, item)
        others = [name for name in schema.fields(Group.ITEM) if name not in telling]
        self._field_dims = {name: schema.table_dim(name) for name in others}
        self._vectors, self._num_numeric = (
            schema.vectors(Group.ITEM),
            len(schema.numeric(Group.ITEM)),
        )
        in_dim = sum(self._field_dims.values()) + self._num_numeric
        in_dim += sum(vector_dims[name] for name in self._vectors)
        if not in_dim and settings.fill == "generated":
            raise ValueError(
                f"model.virtual_items makes the vector of '{item}' from the item's other columns, "
                "and it has none; add some of group 'item', content vectors above all"
            )
        is_wider = schema.table_of(item) in feature_tables.first_order
        self._num_stored = schema.table_dim(item) + is_wider
        columns = {name: schema.match_column(name) for name in feature_tables.match}
        self._matches = [name for name, one in columns.items() if schema.target_of(one) == item]
        out_dim = self._num_stored + (schema.table_dim(item) if self._matches else 0)
        self.mean_G = nn.Parameter(torch.zeros(out_dim)) if settings.fill == "mean" else None
        if self.mean_G is not None:
            return
        hidden = dense_layers(in_dim, settings.hidden_dims, lambda _: nn.LeakyReLU())
        last = nn.Linear(last_dim(in_dim, settings.hidden_dims), out_dim)
        if settings.contrast is None:  # which normalises vectors, and zeros have no direction
            nn.init.zeros_(last.weight)  # begins with the mean of all items, which the bias learns
            nn.init.zeros_(last.bias)
        elif settings.contrast.steps is not None:
            self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        self.layers = nn.Sequential(*hidden, last)

    def forward(
        self, embeddings: FeatureEmbeddings, vectors: Mapping[str, Tensor], numeric_BN: Tensor
    ) -> Tensor:
        """Generates the vectors of all rows' items, [B, G].

        Args:
            embeddings: looked-up vectors.
            vectors: column -> standardised vectors [B, E].
            numeric_BN: all numeric features.
        """
        if self.mean_G is not None:
            zeros_B1 = 0 * embeddings.fields[self.item][:, :1].detach()
            return self.mean_G + zeros_B1
        first = numeric_BN.shape[1] - self._num_numeric
        inputs = [embeddings.fields[name][:, :dim] for name, dim in self._field_dims.items()]
        inputs += [vectors[name] for name in self._vectors]
        inputs += [numeric_BN[:, first:]] if self._num_numeric else []
        generated_BG: Tensor = self.layers(torch.cat(inputs, dim=1).detach())  # WALL
        return generated_BG

    def real(self, embeddings: FeatureEmbeddings) -> Tensor:
        """Returns the vectors of the rows' own ids, [B, G], constants.

        Args:
            embeddings: looked-up vectors.
        """
        real = [embeddings.fields[self.item][:, : self._num_stored]]
        real += [embeddings.match[name].target_BD for name in self._matches[:1]]
        return torch.cat(real, dim=1).detach()  # WALL: no gradient of a loss here reaches a table.

    def fill(
        self, embeddings: FeatureEmbeddings, generated_BG: Tensor, is_cold_B: Tensor
    ) -> FeatureEmbeddings:
        """Replaces the vectors of cold items, whose own rows so get no gradient.

        Args:
            embeddings: looked-up vectors.
            generated_BG: of :meth:`forward`.
            is_cold_B: rows of new items (bool).
        """
        if self.training and self.dropout:
            is_cold_B = is_cold_B | (
                torch.rand(is_cold_B.shape, device=is_cold_B.device) < self.dropout
            )
        # WALL: a virtual vector is a constant to the ranking tower.
        return self.put(embeddings, generated_BG.detach(), is_cold_B)

    def put(
        self, embeddings: FeatureEmbeddings, vectors_BG: Tensor, is_put_B: Tensor
    ) -> FeatureEmbeddings:
        """Puts vectors in the place of those of items' ids.

        Args:
            embeddings: looked-up vectors.
            vectors_BG: the vectors.
            is_put_B: rows that get them (bool); the others keep theirs.
        """
        is_put_B1 = is_put_B.unsqueeze(1)

        def filled(real_BS: Tensor, virtual_BS: Tensor) -> Tensor:
            return torch.where(is_put_B1, virtual_BS.to(real_BS.dtype), real_BS)

        real_BS = embeddings.fields[self.item]  # stored columns may be filled up behind these
        stored_BS = filled(real_BS[:, : self._num_stored], vectors_BG[:, : self._num_stored])
        if real_BS.shape[1] > self._num_stored:
            stored_BS = torch.cat([stored_BS, real_BS[:, self._num_stored :]], dim=1)
        output_BD = vectors_BG[:, self._num_stored :]
        match = {
            name: replace(embeddings.match[name], target_BD=filled(found.target_BD, output_BD))
            if name in self._matches
            else found
            for name, found in embeddings.match.items()
        }
        fields = embeddings.fields | {self.item: stored_BS}
        return FeatureEmbeddings(fields, embeddings.sequences, match)


def with_virtual_items(
    items: VirtualItems | None, embeddings: FeatureEmbeddings, batch: Batch
) -> tuple[FeatureEmbeddings, VirtualItemInputs | None]:
    """Gives the rows of new items virtual vectors.

    Args:
        items: the generator; None leaves all as it is.
        embeddings: looked-up vectors.
        batch: vectors, numbers, and which items are new.

    Returns:
        The embeddings, and inputs of the generator's losses; None without one.
    """
    if items is None:
        return embeddings, None
    assert batch.is_cold_item_B is not None, "the configuration says which items are new"
    generated_BG = items(embeddings, batch.vectors, batch.numeric_BN)
    filled = items.fill(embeddings, generated_BG, batch.is_cold_item_B)
    is_pooled = items.item in batch.pooled.keys()
    ids_B = (batch.pooled if is_pooled else batch.unpooled)[items.item].values()
    real_BG = items.real(embeddings)
    return filled, VirtualItemInputs(embeddings, generated_BG, real_BG, batch.numeric_BN, ids_B)
