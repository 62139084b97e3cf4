"""Settings of the virtual vectors of new items: the generator, and the losses that teach it."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from mail_torchrec.data.items.candidate_item import candidate_item, item_column
from mail_torchrec.data.items.settings import HiddenItemSettings, NewItemSettings
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.settings import Settings


def _is_none(value: object) -> bool:
    return value is None


class ItemContrastSettings(Settings):
    """Contrastive alignment of generated vectors with those of the items' ids (CLCRec, MM 2021)."""

    weight: float = Field(default=1.0, gt=0.0)
    """Weight of the loss."""
    temperature: float = Field(default=0.2, ge=0.05)
    """Divisor of the cosines; the authors' code has 1 by default."""
    steps: PositiveInt | None = None
    """Training steps of contrast, behind which the ranking loss (ranking_weight) teaches instead: a
    content proxy, aligned first and then trained end to end; null: both in every step."""


class ItemDistillationSettings(Settings):
    """Aligning distillation, known items teaching themselves as new ones (ALDI, SIGIR 2023)."""

    ranking_weight: float = Field(default=0.9, ge=0.0)
    """Weight of the alignment of preferences between a clicked item and another (the paper's
    alpha)."""
    identification_weight: float = Field(default=0.05, ge=0.0)
    """Weight of the alignment of how far an item stands out of others (beta)."""
    rating_weight: float = Field(default=0.1, ge=0.0)
    """Weight of the alignment of scores (gamma)."""
    frequency_cap: float | None = Field(default=4.0, gt=0.0)
    """Multiple of an item's relative frequency in tanh, which weighs it as a teacher (M); null
    weighs all alike, and needs no ids that are counted."""


class VirtualItemSettings(Settings):
    """Generator of the vectors of new items."""

    fill: Literal["generated", "mean"] = "generated"
    """Vector of new items: made of the item's other columns, or the mean of warm items' vectors,
    the control that a generator has to beat."""
    hidden_dims: tuple[PositiveInt, ...] = (64,)
    """Hidden layers of the generator."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the rows that each training step ranks by the virtual vector though their item is a
    known one, so that the ranking tower learns what such a vector is worth."""
    item: str | None = Field(default=None, exclude_if=_is_none)
    """Column of the candidate item, as `data.new_items` names it; by default the target of the
    first behaviour column."""
    mse_weight: float = Field(default=1.0, ge=0.0, exclude_if=lambda weight: weight == 1)
    """Weight of the squared error of generated vectors."""
    ranking_weight: float = Field(default=0.0, ge=0.0, exclude_if=lambda weight: not weight)
    """Weight of the ranking loss of all rows scored on virtual vectors, for the generator alone:
    tables and towers are constants to it."""
    contrast: ItemContrastSettings | None = Field(default=None, exclude_if=_is_none)
    """Contrastive alignment of generated vectors with those of the items' ids; null without."""
    distillation: ItemDistillationSettings | None = Field(default=None, exclude_if=_is_none)
    """Aligning distillation of known items as new ones; null without."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        is_taught = self.contrast is not None or self.distillation is not None
        if self.fill == "mean" and (is_taught or self.ranking_weight or self.mse_weight != 1):
            raise ValueError(
                "fill 'mean' learns a mean and nothing of an item, received mse_weight, "
                "ranking_weight, contrast or distillation beside it; drop them, or choose fill "
                "'generated'"
            )
        if not (self.mse_weight or self.ranking_weight or is_taught):
            raise ValueError(
                "mse_weight is 0, and nothing else teaches the generator; give ranking_weight, "
                "contrast or distillation"
            )
        if self.contrast is not None and self.contrast.steps and not self.ranking_weight:
            raise ValueError(
                "contrast.steps ends the contrast for the ranking loss, whose ranking_weight is 0; "
                "give one, or drop contrast.steps"
            )
        return self


def check_virtual_items(
    settings: VirtualItemSettings | None,
    schema: Schema,
    rule: NewItemSettings | None,
    hidden: HiddenItemSettings | None,
) -> None:
    """Checks that a model that makes vectors of new items is told which items are new.

    Args:
        settings: section ``model.virtual_items``.
        schema: columns and tables.
        rule: section ``data.new_items``.
        hidden: section ``data.cold_start.items``.

    Raises:
        ValueError: it is not, for requests either; the sections name two columns; or teachers are
            weighed by counts of ids that are not counted.
    """
    if settings is None:
        return
    if schema.new_item is None and (rule is None or not rule.has_rule):
        raise ValueError(
            "model.virtual_items makes vectors of new items, and nothing says which items of a "
            "request are new; set data.new_items, {max_count: 0} for example, or give a column of "
            "group 'new_item'"
        )
    column = item_column(schema, rule, hidden)
    if (settings.item or candidate_item(schema)) != column:
        raise ValueError(
            f"model.virtual_items.item should be the column whose ids are new or not, '{column}', "
            f"received {settings.item or 'null'}; set it"
        )
    _check_counts(settings, schema, schema.table_of(column))


def _check_counts(settings: VirtualItemSettings, schema: Schema, table: str) -> None:
    needs_counts = settings.distillation is not None and settings.distillation.frequency_cap
    if needs_counts and not schema.id_policy(table).needs_counts:
        raise ValueError(
            "model.virtual_items.distillation.frequency_cap needs counts of the ids, and "
            f"schema.tables.{table} has ids '{schema.tables[table].ids}', which count none; set it "
            "to null, or choose ids 'vocabulary' or 'managed'"
        )
