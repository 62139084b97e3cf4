"""Products of user attributes and target items, for every ranking tower.

A tower that pools its groups, or has few layers, cannot tell which items an attribute speaks for.
Products can, with and without behaviours.

Shape letters as in ``towers/inputs.py``; ``K`` products of a row.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from mail_torchrec.settings import Settings
from mail_torchrec.towers.inputs import InputShapes, RankingInputs, RankingOutput
from mail_torchrec.towers.outputs import declared_specs
from mail_torchrec.utils.output_spec import OutputSpec


class AttributeCrossesSettings(Settings):
    """Products of attributes and target items, for any ranking tower."""

    form: Literal["bilinear", "fm"] = "bilinear"
    """Vectors that are multiplied: bilinear (a dense layer on all attributes, another on all item
    fields) or fm (the sum of the attributes' vectors, and of the item fields')."""
    rank: PositiveInt = 32
    """Number of products of bilinear; fm has one for each element of the widest table."""


class AttributeCrosses(nn.Module):
    """Elementwise product ``u * w`` [B, K] of an attribute side and an item side.

    - ``bilinear``: ``u = P [a_1, ..., a_A, x]`` and ``w = Q [t_1, ..., t_I, y]``, dense layers
      without bias, so that each product is one bilinear form of all attributes and item fields.
    - ``fm``: ``u = sum a_i + V x`` and ``w = sum t_j + V' y``, whose dot product are the
      attribute-by-item terms of a factorization machine (Rendle, ICDM 2010). Where dimensions
      differ, a dense layer without bias projects the narrower side to the wider.

    ``x`` are the numeric attributes and ``y`` the items' numeric features.

    Args:
        settings: form and number of products.
        shapes: of the inputs.

    Raises:
        ValueError: there is no attribute, or no item field.
    """

    def __init__(self, settings: AttributeCrossesSettings, shapes: InputShapes) -> None:
        super().__init__()
        sides = {
            "attribute": (
                shapes.num_attributes,
                shapes.attribute_dim,
                shapes.num_numeric_attributes,
            ),
            "item": (shapes.num_items, shapes.item_dim, shapes.num_numeric_items),
        }
        for group, (num, _, num_numeric) in sides.items():
            if not num + num_numeric:
                raise ValueError(
                    f"model.attribute_crosses multiplies attributes by item fields, and no column "
                    f"has group '{group}'; add one to schema.columns, or set it null"
                )
        is_fm = settings.form == "fm"
        dims = [dim for num, dim, _ in sides.values() if num]
        self.num_products = max(dims, default=1) if is_fm else settings.rank
        self.num_numeric = shapes.num_numeric_attributes, shapes.num_numeric_items
        side = _SummedSide if is_fm else _DenseSide
        self.attributes, self.items = (side(*sizes, self.num_products) for sizes in sides.values())

    def forward(self, inputs: RankingInputs) -> Tensor:
        """Computes the products [B, K]."""
        num_attributes, num_items = self.num_numeric
        numeric_BN = inputs.numeric_BN
        first_of_items = numeric_BN.shape[1] - num_items
        u_BK = self.attributes(inputs.attributes_BAD, numeric_BN[:, :num_attributes])
        w_BK = self.items(inputs.items_BID, numeric_BN[:, first_of_items:])
        products_BK: Tensor = u_BK * w_BK
        return products_BK


class _DenseSide(nn.Module):
    """Dense layer on all vectors and numbers of a side."""

    def __init__(self, num_fields: int, dim: int, num_numeric: int, num_products: int) -> None:
        super().__init__()
        self.layer = nn.Linear(num_fields * dim + num_numeric, num_products, bias=False)

    def forward(self, fields_BFD: Tensor, numeric_BN: Tensor) -> Tensor:
        """Maps ``F`` fields and the numbers to [B, K]."""
        mapped_BK: Tensor = self.layer(torch.cat([fields_BFD.flatten(1), numeric_BN], dim=1))
        return mapped_BK


class _SummedSide(nn.Module):
    """Sum of the vectors of a side, projected where narrow, and of its numbers' vectors."""

    def __init__(self, num_fields: int, dim: int, num_numeric: int, num_products: int) -> None:
        super().__init__()
        is_narrow = num_fields > 0 and dim != num_products
        self.fields = nn.Linear(dim, num_products, bias=False) if is_narrow else nn.Identity()
        self.numeric = nn.Linear(num_numeric, num_products, bias=False) if num_numeric else None
        self.num_fields = num_fields

    def forward(self, fields_BFD: Tensor, numeric_BN: Tensor) -> Tensor:
        """Adds ``F`` fields and the numbers up to [B, K]."""
        parts = [self.fields(fields_BFD.sum(1))] if self.num_fields else []
        parts += [self.numeric(numeric_BN)] if self.numeric is not None else []
        return torch.stack(parts).sum(0)


class CrossedTower(nn.Module):
    """Ranking tower that reads normalised products as numeric features and adds them to its logit.

    ``z = BatchNorm(u * w)`` stands behind the numeric features, and ``logit = tower + c . z``. The
    products of a large table step would otherwise drown the rest, and ``c`` begins at 0, so that
    the tower begins as it is. What reads the tower's last hidden layer has the features alone.

    Args:
        tower: built for :func:`crossed_shapes`.
        crosses: of the shapes themselves.
    """

    def __init__(self, tower: nn.Module, crosses: AttributeCrosses) -> None:
        super().__init__()
        self.tower, self.crosses = tower, crosses
        self.norm = nn.BatchNorm1d(crosses.num_products)
        self.logit = nn.Linear(crosses.num_products, 1, bias=False)
        nn.init.zeros_(self.logit.weight)
        if (width := getattr(tower, "representation_dim", None)) is not None:
            self.representation_dim = width

    def forward(self, inputs: RankingInputs) -> RankingOutput:
        """Scores rows by the tower and the products."""
        z_BK = self.norm(self.crosses(inputs))
        numeric_BN = torch.cat([inputs.numeric_BN, z_BK], dim=1)
        output = RankingOutput.wrap(self.tower(replace(inputs, numeric_BN=numeric_BN)))
        return replace(output, logits_B=output.logits_B + self.logit(z_BK).squeeze(1))

    def output_specs(self) -> list[OutputSpec]:
        """Declares what the tower does."""
        return declared_specs(self.tower)


def crossed_shapes(shapes: InputShapes, crosses: AttributeCrosses) -> InputShapes:
    """Returns the shapes that a tower gets when its inputs have the products too.

    They count as numeric features of the items, behind whose own they stand.
    """
    more = crosses.num_products
    return replace(
        shapes,
        num_numeric=shapes.num_numeric + more,
        num_numeric_items=shapes.num_numeric_items + more,
    )
