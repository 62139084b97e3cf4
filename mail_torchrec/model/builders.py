"""Which dense parts a model has, and the parts from their settings: what the schema has to say about each.

Errors are ``ValueError``: a part that the schema, or another part, leaves no room for.
"""

from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from mail_torchrec.baselines.meta_emb import MetaEmb, MetaEmbSettings
from mail_torchrec.baselines.registry import BaselineSettings
from mail_torchrec.data.schema.schema import Group, Schema
from mail_torchrec.model.features import user_id_field
from mail_torchrec.settings import Settings
from mail_torchrec.towers.inputs import InputShapes
from mail_torchrec.towers.multi_task import MultiTaskHead, MultiTaskSettings
from mail_torchrec.towers.zero_shot import ZeroShotSettings, ZeroShotTower


class ModelSettings(Settings):
    """Which towers."""

    tower: str = "dmr"
    """The ranking tower: emblr, base_dnn, wide_deep, deepfm, din, dmr, or the import path
    ``package.module:Class`` of your own."""
    tower_options: dict[str, Any] = {}
    """Options of that tower (its ``Settings``)."""
    zero_shot: ZeroShotSettings | None = ZeroShotSettings()
    """The zero-shot tower; null leaves new users without behaviours, as an ordinary ranker does."""
    multi_task: MultiTaskSettings | None = None
    """The head for conversions on the ranking tower; null predicts clicks alone."""
    baseline: BaselineSettings | None = None
    """Another remedy in the zero-shot tower's place, see ``baselines/``."""
    behaviour_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of old rows that the ranking tower meets as new ones in training: without behaviours,
    as DropoutNet, or with virtual ones."""
    cold_loss_weight: float = Field(default=0.0, ge=0.0)
    """In training rows are ranked a second time, as new ones, and that loss counts so much; 0 does
    without. It is of the old rows, and of all where new ones have a tower of their own."""
    new_user_tower: Literal["shared", "own"] = "shared"
    """New rows are scored by the ranking tower, or by one of their own, trained on every row as a
    new one; the tables are shared."""
    mmd_over_all_ranks: bool = True
    """L_d over the old rows of all ranks, as one process would have it; false: each rank its own,
    for very many ranks."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.baseline is not None and self.zero_shot is not None:
            raise ValueError(
                f"baseline '{self.baseline.name}' stands in the zero-shot tower's place; set "
                "zero_shot null, or baseline null"
            )
        if self.new_user_tower == "own" and not self.cold_loss_weight:
            raise ValueError(
                "new_user_tower 'own' is trained by rows as new ones alone; set cold_loss_weight "
                "above 0, to 1 for example"
            )
        return self


def build_multi_task(
    settings: MultiTaskSettings | None, schema: Schema, tower: nn.Module | None, tower_name: str
) -> MultiTaskHead | None:
    """The head on a ranking tower; None without settings, or without a tower."""
    if settings is None or tower is None:
        return None
    if schema.conversion is None:
        raise ValueError(
            "model.multi_task needs a column of group 'conversion' in schema.columns (0 or 1: "
            "what followed the click), found none; "
            "add it, or model.multi_task=null"
        )
    return MultiTaskHead(settings, tower, tower_name)


def build_meta_emb(
    settings: BaselineSettings | None, schema: Schema, shapes: InputShapes, *, has_first_order: bool
) -> MetaEmb | None:
    """The generator of new users' id vectors; None where the baseline is another one."""
    if not isinstance(settings, MetaEmbSettings):
        return None
    if has_first_order:
        raise ValueError(
            "model.baseline: meta_emb makes the vector of a new user's id, and this tower has a "
            "weight of each id beside it, which nothing "
            "makes; choose a tower without first-order weights, base_dnn for example"
        )
    num_numeric = len(schema.numeric(Group.ATTRIBUTE))
    return MetaEmb(
        settings,
        user_id_field(schema, settings.field),
        shapes.num_attributes,
        shapes.attribute_dim,
        num_numeric,
    )


def build_zero_shot(
    settings: ZeroShotSettings | None, schema: Schema, shapes: InputShapes
) -> ZeroShotTower | None:
    """The zero-shot tower for a schema's fields and sequences; None without settings."""
    if settings is None:
        return None
    groups = {"attributes": (shapes.num_attributes, shapes.attribute_dim)}
    if settings.input_fields == "all_fields":
        groups |= {
            "context": (shapes.num_context, shapes.context_dim),
            "items": (shapes.num_items, shapes.item_dim),
        }
    groups = {name: group for name, group in groups.items() if group[0]}
    if len(dims := {dim for _, dim in groups.values()}) != 1:
        raise ValueError(
            "model.zero_shot.input_fields=all_fields needs one dimension in all groups, received "
            f"{groups} (fields, dimension); set schema.dim"
        )
    return ZeroShotTower(
        settings,
        group_fields={name: num for name, (num, _) in groups.items()},
        field_dim=dims.pop(),
        num_numeric=len(schema.numeric(Group.ATTRIBUTE)),
        sequences=shapes.sequences,
    )
